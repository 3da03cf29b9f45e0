"""Measure the cost of an optimiser step of each method relative to fine-tuning on the same tokens, older code and TRL.

    python benchmarks/cost_of_methods.py                                        # the lab's base model and forget set
    python benchmarks/cost_of_methods.py --model facebook/opt-125m --forget rtp_triples_train.jsonl --kind continuation
    python benchmarks/cost_of_methods.py --trl            # also TRL's DPOTrainer and SFTTrainer (pip install trl)
    python benchmarks/cost_of_methods.py --against ../old # also the code in another folder, such as a git worktree

A method and its counterpart take alternate steps in one process, on the same batches, each with its own AdamW. The counterpart
computes the cross-entropy on exactly the rows that the method uses (on the responses of harmless, harmful and random rows, and
on whole retain rows). Times are medians of `--pairs` pairs after one warm-up pair. Peak memory is measured in separate processes,
above the memory at the start of training. With `--against`, this code and the other train in processes that alternate, on the same
batches, and the first two steps are not counted. Times are wall time and processor time, which other work on the machine disturbs less. Prints one row per method.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from wpn_bench import models, prompts
from wpn_bench.prompts.templates import choose_template
from wpn_bench.unlearn.batches import Batch, Batches
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.methods.base import Method, cross_entropy
from wpn_bench.unlearn.remembered import remember


class Peak:
    """Measures the peak memory in bytes above the level at its creation.

    It is the GPU's memory if there is one, else that of this process (on Linux, where the peak can be reset).
    """

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._status("VmRSS")

    def above(self) -> int:
        import torch

        now = torch.cuda.max_memory_allocated() if self.device == "cuda" else self._status("VmHWM")
        return now - self.before

    @staticmethod
    def _status(name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise SystemExit(f"/proc/self/status has no {name}")


class Bench:
    """Return the model, data and batches for a method."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.ref = models.resolve(args.model, None)
        self.base, self.tokenizer = models.load(self.ref.path, args.device, "float32")
        lab = self.ref.is_lab
        forget = args.forget or ("lab_forget" if lab else "pku_forget")
        self.items = prompts.load_prompts(prompts.spec_for(forget, role="forget", kind=args.kind)).items
        retain = args.retain or ("lab_retain" if lab else "wikitext_retain")
        texts = prompts.spec_for(retain, role="retain", kind="text")
        self.texts = prompts.load_texts(texts).texts
        self.template = choose_template("auto", self.tokenizer)

    def batches(self, method: Method) -> list[Batch]:
        config = method.config
        made = Batches(
            self.tokenizer,
            self.items,
            self.texts,
            template=self.template,
            uses=method.uses,
            steps=self.args.pairs + 1,
            batch_size=self.args.batch_size,
            retain_batch_size=self.args.retain_batch_size or self.args.batch_size,
            negatives=method.negatives,
            random_answers=method.random_answers,
            max_length=config.max_length,
            retain_max_length=config.retain_max_length,
            seed=0,
        )
        return [Batch.from_tensors(made[k]) for k in range(len(made))]

    def stepper(self, loss: Callable[[Any, Batch], Any]) -> Callable[[Batch], float]:
        """Return a function that takes one optimiser step on a batch and returns its seconds."""
        import torch

        model = models.load_fresh(self.ref.path, self.args.device, "float32")
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def step(batch: Batch) -> float:
            began = time.perf_counter()
            optimiser.zero_grad(set_to_none=True)
            loss(model, batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            if self.args.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - began

        return step


def plain(model: Any, batch: Batch) -> Any:
    """Return the cross-entropy of all rows of the batch."""
    parts = [(rows, rows.response_mask) for rows in (batch.harmless, batch.harmful, batch.random) if rows is not None]
    if batch.retain is not None:
        parts.append((batch.retain, batch.retain.attention_mask))
    return sum(cross_entropy(model, rows, mask) for rows, mask in parts)


def cost(bench: Bench, name: str) -> dict[str, Any]:
    kind = METHODS.get(name)
    method = kind(kind.Config())
    batches = bench.batches(method)
    reference = bench.base if method.needs_reference else None
    ours = bench.stepper(lambda model, batch: method.loss(model, batch, reference).total)
    theirs = bench.stepper(plain)
    if bench.args.remembered and reference is not None:
        remember(reference, name)
    times = []
    for batch in batches:
        if bench.args.remembered:
            ours(batch)
        times.append((ours(batch), theirs(batch)))
    times = times[1:]
    tokens = [sum(int(r.attention_mask.sum()) for r in vars(b).values() if r is not None) for b in batches]
    return {
        "method": name,
        "tokens": round(median(tokens)),
        "seconds": median(t for t, _ in times),
        "plain": median(t for _, t in times),
        "ratio": median(a / b for a, b in times),
    }


def memory(args: argparse.Namespace, name: str) -> float:
    """Return the ratio of the peak memory of a method to that of its counterpart."""
    above = []
    for what in (name, f"plain:{name}"):
        above.append(in_process(args, "--only-memory", what)["above"])
    return float(above[0] / above[1])


def in_process(args: argparse.Namespace, option: str, what: str, code: Path | None = None) -> dict[str, Any]:
    """Run this script with a hidden option in a new process, and return the JSON object that it prints.

    `code` is a folder with another version of the package.
    """
    command = [sys.executable, __file__, option, what, "--pairs", str(args.pairs)]
    for name in ("model", "forget", "retain", "kind", "batch_size", "retain_batch_size", "device", "mixed_precision"):
        value = "no" if code and name == "mixed_precision" else getattr(args, name)
        command += [f"--{name.replace('_', '-')}", str(value)] if value else []
    environment = os.environ | ({"PYTHONPATH": str(code.resolve())} if code else {})
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def only_steps(args: argparse.Namespace) -> None:
    """Train with a method, and print the wall and processor seconds of each step but the first two, losses and peak memory.

    Memory that the first steps allocate is reused by later ones, so the first steps take longer.
    """
    from wpn_bench.unlearn.train import train

    bench = Bench(args)
    kind = METHODS.get(args.only_steps)
    config = kind.Config(
        steps=args.pairs + 2,
        batch_size=args.batch_size,
        retain_batch_size=args.retain_batch_size or args.batch_size,
        mixed_precision=args.mixed_precision,
        save_every=0,
    )
    method = kind(config)
    model = models.load_fresh(bench.ref.path, args.device, "float32")
    ends: list[tuple[float, float]] = []
    peak = Peak(args.device)
    trained = train(
        model,
        bench.tokenizer,
        method,
        bench.items,
        bench.texts,
        template=bench.template,
        seed=0,
        reference=bench.base if method.needs_reference else None,
        advance=lambda n: ends.append((time.perf_counter(), time.process_time())) if n else None,
    )
    above = peak.above()
    wall, processor = ([b - a for a, b in pairwise(t[1:])] for t in zip(*ends, strict=True))
    losses = [row["loss"] for row in trained.history]
    print(json.dumps({"wall": wall, "processor": processor, "losses": losses, "above": above}))


def against_code(args: argparse.Namespace, name: str) -> None:
    """Print one row: this code's and the other code's seconds per step, their ratios, and how far the losses differ."""
    runs: dict[str, list[dict[str, Any]]] = {"new": [], "old": []}
    for k in range(args.repeats):
        for which in ("new", "old") if k % 2 else ("old", "new"):
            runs[which].append(in_process(args, "--only-steps", name, args.against if which == "old" else None))

    def middle(which: str, what: str) -> float:
        return median(seconds for run in runs[which] for seconds in run[what])

    new, old = runs["new"][0], runs["old"][0]
    apart = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(new["losses"], old["losses"], strict=True))
    print(
        f"| {name} | {middle('old', 'wall'):.2f} | {middle('new', 'wall'):.2f} |"
        f" {middle('new', 'wall') / middle('old', 'wall'):.2f} | {middle('old', 'processor'):.1f} |"
        f" {middle('new', 'processor'):.1f} | {middle('new', 'processor') / middle('old', 'processor'):.2f} |"
        f" {new['above'] / old['above']:.2f} | {apart:.0e} |",
        flush=True,
    )


def only_memory(args: argparse.Namespace) -> None:
    args.pairs = 2
    bench = Bench(args)
    name = args.only_memory.removeprefix("plain:")
    kind = METHODS.get(name)
    method = kind(kind.Config())
    batches = bench.batches(method)
    if args.only_memory == name:
        step = bench.stepper(
            lambda model, batch: method.loss(model, batch, bench.base if method.needs_reference else None).total
        )
    else:
        step = bench.stepper(plain)
    peak = Peak(args.device)
    for batch in batches:
        step(batch)
    print(json.dumps({"above": peak.above()}))


def against_trl(bench: Bench, name: str) -> tuple[float, float, float]:
    """Time a step of our method `dpo` or `sft` and of TRL's trainer on the same pairs.

    Returns:
        Both medians of seconds per step, and the median of the ratios.
    """
    import tempfile

    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from wpn_bench.prompts import joined, render
    from wpn_bench.unlearn.train import train

    kind = METHODS.get(name)
    steps, size = bench.args.pairs * 2, bench.args.batch_size
    only = {"alpha": 0.0} if name == "dpo" else {}
    precision = bench.args.mixed_precision
    config = kind.Config(steps=steps, batch_size=size, save_every=0, mixed_precision=precision, **only)
    items = [i for i in bench.items if i.harmless and i.harmful]
    answers = ("chosen", "rejected") if name == "dpo" else ("completion",)
    rows = Dataset.from_list(
        [
            {"prompt": render(i, bench.template)}
            | {k: joined(y) for k, y in zip(answers, (i.harmless[0], i.harmful[0]), strict=False)}
            for i in (items * (1 + steps * size // len(items)))[: steps * size]
        ]
    )
    trainer_class, config_class = (DPOTrainer, DPOConfig) if name == "dpo" else (SFTTrainer, SFTConfig)

    def ours() -> float:
        model = models.load_fresh(bench.ref.path, bench.args.device, "float32")
        began = time.perf_counter()
        train(
            model,
            bench.tokenizer,
            kind(config),
            items,
            bench.texts,
            template=bench.template,
            seed=0,
            reference=bench.base if name == "dpo" else None,
        )
        return (time.perf_counter() - began) / steps

    def theirs() -> float:
        with tempfile.TemporaryDirectory() as scratch:
            trainer = trainer_class(
                model=models.load_fresh(bench.ref.path, bench.args.device, "float32"),
                args=config_class(
                    output_dir=scratch,
                    per_device_train_batch_size=size,
                    max_steps=steps,
                    max_length=config.max_length,
                    learning_rate=1e-5,
                    report_to=[],
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                    gradient_checkpointing=False,
                    bf16=precision == "bf16",
                    use_cpu=bench.args.device == "cpu",
                    **({"beta": config.beta} if name == "dpo" else {}),
                ),
                train_dataset=rows,
                processing_class=bench.tokenizer,
                **({"ref_model": bench.base} if name == "dpo" else {}),
            )
            began = time.perf_counter()
            trainer.train()
            return (time.perf_counter() - began) / steps

    found = []
    for k in range(bench.args.repeats):
        # The order alternates between pairs. Our time includes building the batches; TRL's data was tokenised before.
        times = {run: run() for run in ((ours, theirs) if k % 2 else (theirs, ours))}
        found.append((times[ours], times[theirs]))
    return median(a for a, _ in found), median(b for _, b in found), median(a / b for a, b in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--forget")
    parser.add_argument("--retain", help="JSON lines with texts")
    parser.add_argument("--kind", default="question", choices=("question", "continuation"))
    parser.add_argument("--methods", default=",".join(METHODS.names()))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--retain-batch-size", type=int, help="--batch-size if not given")
    parser.add_argument(
        "--repeats", type=int, default=5, help="pairs of processes with --against, of trainings with --trl"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trl", action="store_true")
    parser.add_argument("--against", type=Path, help="folder of another version of this repository")
    parser.add_argument(
        "--mixed-precision",
        default="no",
        choices=("no", "bf16"),
        help="of this code with --against, of both with --trl",
    )
    parser.add_argument(
        "--remembered",
        action="store_true",
        help="what the reference computes is known, as for the second method of a run",
    )
    parser.add_argument("--only-memory", help=argparse.SUPPRESS)
    parser.add_argument("--only-steps", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_memory:
        only_memory(args)
        return
    if args.only_steps:
        only_steps(args)
        return
    if args.against:
        print(
            "| method | old, s | new, s | ratio | old, processor s | new, processor s | ratio | peak memory, ratio | losses apart |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for name in args.methods.split(","):
            against_code(args, name)
        return
    bench = Bench(args)
    if args.trl:
        for name, trainer in (("dpo", "DPOTrainer"), ("sft", "SFTTrainer")):
            ours, theirs, ratio = against_trl(bench, name)
            print(
                f"{name}, a step in the trainer: {ours:.3f} s; TRL's {trainer} {theirs:.3f} s; ratio {ratio:.2f}",
                flush=True,
            )
        return
    print("| method | tokens a step | s a step | plain fine-tuning, s | time ratio | peak memory ratio |")
    print("|---|---|---|---|---|---|")
    for name in args.methods.split(","):
        row = cost(bench, name)
        print(
            f"| {name} | {row['tokens']} | {row['seconds']:.3f} | {row['plain']:.3f} | {row['ratio']:.2f} |"
            f" {memory(args, name):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
