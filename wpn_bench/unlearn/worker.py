"""One of the processes that train a model together.

Only `launch.py` starts it: `accelerate launch -m wpn_bench.unlearn.worker FOLDER`. The first process writes the
progress and the model. Each process writes its own error to a file.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

from wpn_bench.core.files import write_json
from wpn_bench.core.progress import Advance
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs.job import StageContext
from wpn_bench.unlearn.launch import FAILURE, JOB, PROGRESS
from wpn_bench.unlearn.processes import Processes, here, join

# The other processes wait while the first one evaluates the validation prompts, which may take long. A long timeout is
# safe, because the launcher notices at once if a process dies.
_WAIT = timedelta(days=1)


def main(folder: Path) -> None:
    """Do this process's part of the training that `folder` describes, then exit."""
    threading.Thread(target=_die_with_the_run, daemon=True).start()
    rank = int(os.environ["RANK"])
    try:
        _train(folder)
    except BaseException as e:
        traceback.print_exc()
        write_json(folder / FAILURE.format(rank), _said(e))
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    # Exit without destroying the process group, because this may wait for a process that has gone.
    os._exit(code)


def _train(folder: Path) -> None:
    from accelerate import PartialState

    from wpn_bench.unlearn.train import run_train_stage

    told = json.loads((folder / JOB).read_text(encoding="utf-8"))
    on_cpu = told["local"]["device"] == "cpu"
    state = PartialState(cpu=on_cpu, timeout=_WAIT)
    device = "cpu" if on_cpu else str(state.device)  # accelerate returns cpu:0, which other code does not expect
    join(Processes(state.process_index, state.num_processes, told["sharded"], device))
    # FSDP shards a model from main memory, because the whole model may be too large for the device.
    local = {**told["local"], "device": "cpu" if here().sharded else device}
    if local.get("curves", {}).get("folder"):
        local["curves"] |= {"folder": Path(local["curves"]["folder"])}
    ctx = StageContext(
        told["params"],
        {role: Path(path) for role, path in told["needs"].items()},
        Path(told["out"]),
        local,
        _progress(folder),
        None if told["scratch"] is None else Path(told["scratch"]),
    )
    run_train_stage(ctx)
    here().wait()


def _progress(folder: Path) -> Any:
    """Return a progress function that writes to a file, which the run reads."""

    def items(total: int | None, unit: str = "") -> Advance:
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            if here().main:
                partial = folder / f".{PROGRESS}"
                partial.write_text(f"{done} {total}", encoding="utf-8")
                os.replace(partial, folder / PROGRESS)

        return advance

    return items


def _said(e: BaseException) -> dict[str, str]:
    if isinstance(e, UserError):
        return {"kind": "UserError", "problem": e.problem, "hint": e.hint}
    kind = "JobFailed" if isinstance(e, JobFailed) else "error"
    return {"kind": kind, "reason": " ".join(str(e).split())[:500] or type(e).__name__}


def _die_with_the_run() -> None:
    """Exit when standard input closes. The run holds the other end of this pipe and never writes to it."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
