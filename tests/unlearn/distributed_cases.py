"""What each of several processes does in `test_distributed.py`: train every case with the others, and keep what came out.

    python distributed_cases.py FOLDER...

Each FOLDER holds accelerate.json, settings for `accelerate launch`, and cases.json: the model's folder, items, texts, whether
weights are spread, and cases by name. Its processes are forks of this one, with the environment that `accelerate launch` and
`torchrun` would give them, so that libraries are imported once. The first process writes NAME.safetensors and NAME.json. A
case says after how many steps it is killed, as it were, to go on right away.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.commands import launch
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from wpn_bench import models
from wpn_bench.errors import JobFailed
from wpn_bench.prompts import FormatTemplate
from wpn_bench.prompts.items import read_items
from wpn_bench.unlearn import loop
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.processes import Processes, here, join
from wpn_bench.unlearn.train import train


class Killed(BaseException):
    """What no code of ours catches."""


def one(told: dict[str, Any], name: str, case: dict[str, Any], folder: Path) -> None:
    kind = METHODS.get(case["method"])
    method = kind(kind.Config(**case["options"]))
    model = models.load_fresh(Path(told["model"]))
    reference = models.load_fresh(Path(told["model"])).eval() if method.needs_reference else None
    snapshots: dict[str, Any] = {}
    held: list[int] = []
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if done == case.get("killed_at") and not (folder / f"{name}.killed").exists():
            here().wait()
            if here().main:
                (folder / f"{name}.killed").touch()
            here().wait()
            raise Killed

    def after_step(step: int, current: Any) -> None:
        if not held:
            weights = (p.data for p in Watched.trainer.taught.parameters())
            held.append(sum((w.to_local() if isinstance(w, DTensor) else w).numel() for w in weights))
        if step == case.get("snapshot"):
            now = current()
            snapshots.update({n: p.detach().clone() for n, p in now.named_parameters()} if here().main else {})

    said = train(
        model,
        models.load_tokenizer(Path(told["model"])),
        method,
        read_items(Path(told["items"])),
        told["texts"],
        template=FormatTemplate("Q: {prompt} A:"),
        seed=0,
        reference=reference,
        # A figure of the weights: it is the same only if the look is at the whole model of then.
        harmless_rate=lambda now: float(now.get_input_embeddings().weight.detach().abs().double().mean()) % 1,
        advance=advance,
        after_step=after_step,
        checkpoints=folder / f"{name}.scratch" if "killed_at" in case else None,
    )
    if here().main:
        save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, folder / f"{name}.safetensors")
        if snapshots:
            save_file(snapshots, folder / f"{name}.snapshot.safetensors")
        told_back = {"history": said.history, "checks": said.checks, "steps": said.steps, "held": held}
        (folder / f"{name}.json").write_text(json.dumps(told_back))


class Watched(loop.UnlearnTrainer):
    """The trainer, where the cases can look at it."""

    trainer: Any = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        Watched.trainer = self


def work(folder: Path) -> None:
    told = json.loads((folder / "cases.json").read_text())
    state = PartialState(cpu=True)
    join(Processes(state.process_index, state.num_processes, told["sharded"]))
    loop.UnlearnTrainer = Watched  # type: ignore[misc]
    for name, case in told["cases"].items():
        try:
            one(told, name, case, folder)
        except Killed:
            one(told, name, case, folder)
        except JobFailed as e:
            (folder / f"{name}.{here().rank}").write_text(str(e))
    here().wait()


def environments(folder: Path) -> list[dict[str, str]]:
    """The environment of each process, as `accelerate launch --config_file accelerate.json` sets it."""
    told = launch.launch_command_parser().parse_args(["--config_file", str(folder / "accelerate.json"), __file__])
    told, _, _ = launch._validate_launch_command(told)
    shared = prepare_multi_gpu_env(told)
    n = str(told.num_processes)
    shared |= {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(told.master_port)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(told.num_processes)]


def main(folders: list[Path]) -> None:
    for name in ("peft", "torch.distributed.fsdp", "transformers.models.opt.modeling_opt"):
        importlib.import_module(name)
    # Each training collects garbage: in a fork that would walk over, and so copy, all that was imported.
    gc.collect()
    gc.freeze()
    for folder in folders:
        children = []
        for environment in environments(folder):
            child = os.fork()
            if not child:
                os.environ.clear()
                os.environ.update(environment)
                code = 1
                try:
                    work(folder)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            sys.exit(f"{folder.name}: the processes ended with {codes}")


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
