"""Compare estimated and measured memory of a large model on a small machine, with random weights of OPT's shapes.

    python benchmarks/large_model.py --shape opt-1.3b --limit-gib 4
    python benchmarks/large_model.py --shape opt-2.7b --limit-gib 8

Creates the model in bfloat16 (in --folder, else in a temporary folder) and then, each in a separate process:

- trains adapters (rank 16, gradient checkpointing, --steps steps of WPN; every row has full length, the worst case of the
  estimate);
- answers prompts and scores continuations with the model in memory, in --dtype, and then offloaded to disk under a limit of
  --limit-gib on the process's data (RLIMIT_DATA, including libraries and mapped files), which is smaller than the weights in
  that type; the answers must be equal;
- tries the same without offloading under that limit, which must fail;
- starts `wpn-bench full` with training of all weights in twice the memory of the weights in float32, which must be rejected
  before anything is loaded.

"needed" is the free memory that a run requires before it starts: the estimate, a tenth for the allocator and 1 GiB for libraries.
"measured" is the peak of the whole process. "not of files" is the peak without mapped files, sampled every 20 ms: the kernel
frees pages of files if memory is short (Linux). The answers of random weights have no meaning.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from cost_of_methods import Peak

from wpn_bench.core.machine import USABLE_FRACTION

GIB = 2**30
# Hidden size, layers, heads (Zhang et al. 2022, OPT, table 1).
SHAPES = {"opt-125m": (768, 12, 12), "opt-1.3b": (2048, 24, 32), "opt-2.7b": (2560, 32, 32)}
TEXT = "the old baker sells warm bread and sweet cakes in the busy market of the small quiet town every day"
PROMPTS, NEW_TOKENS = 4, 4


class Memory:
    """Measures the peak memory of this process in bytes: resident, and resident without mapped files."""

    def __init__(self) -> None:
        self.resident = Peak("cpu")
        self.own = 0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.own = max(self.own, Peak._status("RssAnon"))
            time.sleep(0.02)

    def peaks(self) -> dict[str, int]:
        return {"measured": self.resident.before + self.resident.above(), "own": self.own}


def make(folder: Path, shape: str) -> None:
    """Create random weights in bfloat16, with the lab's tokenizer, whose ids are valid for OPT's vocabulary of 50,272."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    from wpn_bench import lab, models

    width, layers, heads = SHAPES[shape]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = OPTConfig(
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    OPTForCausalLM(config).save_pretrained(folder, max_shard_size="1GB")
    models.load_tokenizer(lab.base_model()).save_pretrained(folder)


def _subject(args: argparse.Namespace, **changes: Any) -> Any:
    from wpn_bench import config
    from wpn_bench.preflight.estimates import ModelSpec

    settings = config.build("lab").model_dump() | {"model": str(args.folder), "dtype": "bfloat16", "device": "cpu"}
    subject = ModelSpec.of(config.from_settings(settings | changes))
    assert subject is not None
    return subject


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps of WPN with adapters, as `--lora 16 --gradient-checkpointing --dtype bfloat16`."""
    import peft  # noqa: F401  # what is imported belongs to the libraries, for which a run sets memory aside

    import wpn_bench.unlearn.loop  # noqa: F401
    from wpn_bench import models
    from wpn_bench.preflight import estimates
    from wpn_bench.prompts import Item, Template
    from wpn_bench.unlearn.methods import METHODS
    from wpn_bench.unlearn.train import train as unlearn

    options = {
        "steps": args.steps, "lora": 16, "gradient_checkpointing": True, "batch_size": 2, "retain_batch_size": 2,
        "max_length": args.length, "retain_max_length": args.length,
    }  # fmt: skip
    estimate = estimates.training_memory(_subject(args, training=options), "wpn")
    long = " ".join([TEXT] * (args.length // 8))
    items = [Item(str(k), f"What does number {k} sell?", harmful=(long,), harmless=(long,)) for k in range(8)]
    kind = METHODS.get("wpn")
    tokenizer = models.load_tokenizer(args.folder)
    memory = Memory()
    model = models.load_fresh(args.folder, "cpu", "bfloat16")
    said = unlearn(
        model,
        tokenizer,
        kind(kind.Config(**options)),
        items,
        [long] * 8,
        template=Template.parse("Q: {prompt} A:"),
        seed=0,
    )
    return {
        "estimated": estimate.total / USABLE_FRACTION + estimates.LIBRARY_BYTES["cpu"],
        **memory.peaks(),
        "seconds": said.seconds / said.steps,
        "losses": [h["loss"] for h in said.history],
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Generate and score. `args.offload` is the kind of offloading, `args.capped` whether memory is limited."""
    from wpn_bench import models
    from wpn_bench.engine.decode import Rules, decode
    from wpn_bench.engine.likelihood import loglikelihoods
    from wpn_bench.preflight import estimates

    need = estimates.inference_memory(_subject(args, dtype=args.dtype, offload=args.offload))
    tokenizer = models.load_tokenizer(args.folder)
    ids = tokenizer(TEXT)["input_ids"]
    prompts = [ids[: 12 + k] for k in range(PROMPTS)]
    pairs = [(ids[:10], ids[10 : 14 + k]) for k in range(PROMPTS)]
    if args.capped:
        resource.setrlimit(resource.RLIMIT_DATA, (int(args.limit_gib * GIB), resource.RLIM_INFINITY))
    memory, start = Memory(), time.monotonic()
    model, _ = models.load(args.folder, "cpu", args.dtype, args.offload)
    texts = decode(model, prompts, Rules(NEW_TOKENS))
    scores = loglikelihoods(model, pairs, max_length=512)
    placed = list(getattr(model, "hf_device_map", {"": "cpu"}).values())
    return {
        # This script loads no judge.
        "estimated": (need.memory - need.parts["judge"]) / USABLE_FRACTION + estimates.LIBRARY_BYTES["cpu"],
        "weights": models.weights_bytes(args.folder, args.dtype),
        **memory.peaks(),
        "seconds": time.monotonic() - start,
        "answers": [texts, scores],
        "on_disk": sum(place == "disk" for place in placed) / len(placed),
    }


def child(args: argparse.Namespace, task: str, offload: str = "none", capped: bool = False) -> dict[str, Any]:
    """Run a task in a separate process; return its result, or {"failed": last line of its output}."""
    command = [sys.executable, __file__, "--child", task, "--folder", str(args.folder), "--offload", offload]
    command += [
        "--steps",
        str(args.steps),
        "--length",
        str(args.length),
        "--limit-gib",
        str(args.limit_gib),
        "--dtype",
        args.dtype,
    ]
    done = subprocess.run([*command, *(["--capped"] if capped else [])], capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def refused(args: argparse.Namespace) -> tuple[str, float]:
    """Run `full` with training of all weights under a limit of twice the float32 weights; return its message and time."""
    from wpn_bench import models

    most = 2 * models.weights_bytes(args.folder, "float32")
    start = time.monotonic()
    command = [sys.executable, "-m", "wpn_bench", "full", "--model", str(args.folder), "--preset", "lab"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "--methods", "wpn", "--out", f"{folder}/run", "--store", f"{folder}/store", "--device", "cpu"],
            capture_output=True,
            text=True,
            timeout=300,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY)),
        )
    if done.returncode != 2:
        raise SystemExit(f"full was not rejected: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stderr.strip().splitlines()[-1], time.monotonic() - start


def gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def row(what: str, found: dict[str, Any], more: str = "") -> None:
    """Print a row of the table."""
    if "failed" in found:
        print(f"| {what} | | fails: {found['failed'][:200]} | | | |", flush=True)
        return
    sizes = " | ".join(gib(found[name]) for name in ("estimated", "measured", "own"))
    print(f"| {what} | {sizes} | {found['seconds']:.0f} | {more} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="opt-1.3b")
    parser.add_argument("--folder", type=Path, help="folder of the model, created if necessary and kept")
    parser.add_argument(
        "--limit-gib", type=float, default=4.0, help="limit on the data of the offloaded process, including libraries"
    )
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--length", type=int, default=96, help="tokens of every row")
    parser.add_argument("--child", choices=("train", "measure", "make"), help=argparse.SUPPRESS)
    parser.add_argument("--offload", default="none", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help="that it is measured in")
    parser.add_argument("--capped", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "make":
        make(args.folder, args.shape)
    elif args.child:
        print(json.dumps({"train": train, "measure": measure}[args.child](args)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            args.folder = args.folder or Path(folder) / args.shape
            run(args)


def run(args: argparse.Namespace) -> None:
    if not (args.folder / "config.json").is_file():
        command = [sys.executable, __file__, "--child", "make", "--shape", args.shape, "--folder", str(args.folder)]
        subprocess.run(command, check=True)
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    print(f"| {args.shape}, random weights | needed GiB | measured GiB | not of files | seconds | |")
    print("|---|---|---|---|---|---|")
    row(f"adapters, {args.length} tokens per row, one step", child(args, "train"))
    plain = child(args, "measure")
    row("measuring, in memory", plain, f"weights {gib(plain['weights'])} GiB" if "weights" in plain else "")
    under = f"under {args.limit_gib} GiB"
    spread = child(args, "measure", "disk", capped=True)
    if "answers" in spread:
        same = "the same answers" if spread["answers"] == plain["answers"] else "OTHER ANSWERS"
        row(f"measuring, {under}, --offload disk", spread, f"{spread['on_disk']:.0%} of modules on disk, {same}")
    else:
        row(f"measuring, {under}, --offload disk", spread)
    row(f"measuring, {under}, --offload none", child(args, "measure", capped=True))
    said, seconds = refused(args)
    print(f"\n{said}\n(after {seconds:.0f} s)")


if __name__ == "__main__":
    main()
