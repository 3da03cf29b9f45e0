"""Train one model in several processes, which are started with `accelerate launch`.

The run itself stays a single process, which plans, evaluates and writes the store. It passes a training to the workers
in a file (`worker.py` reads it), follows their progress, and raises their errors. Each worker waits on a pipe that only
the run holds open. So the workers end when the run ends, however it ends.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wpn_bench.core.files import write_json
from wpn_bench.core.validation import as_user_error
from wpn_bench.errors import JobFailed, UserError

if TYPE_CHECKING:
    from wpn_bench.jobs.job import StageContext
    from wpn_bench.unlearn.methods.base import Method

JOB, PROGRESS, FAILURE = "job.json", "progress", "failure-{}.json"
WORKER = "wpn_bench.unlearn.worker"
PATIENCE = 20.0  # seconds to wait until processes end, before they are terminated and again before they are killed
_POLL = 0.05
_SEE = "see docs/training.md, or write the file with `accelerate config`"


class FSDP(BaseModel):
    """The settings in `fsdp_config` of an accelerate file that wpn-bench uses. FSDP version 1 is not supported."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: Literal[2] = 2
    auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"] = "TRANSFORMER_BASED_WRAP"
    transformer_layer_cls_to_wrap: str | None = None
    min_num_params: int = Field(100_000_000, ge=0)
    reshard_after_forward: bool = True
    offload_params: bool = False


# Keys of an accelerate file that are ignored, because wpn-bench sets them or they have no effect.
_PASSED_OVER = {
    "compute_environment",
    "debug",
    "downcast_bf16",
    "main_training_function",
    "rdzv_backend",
    "same_network",
}
_PASSED_OVER |= {"machine_rank", "main_process_ip", "main_process_port", "tpu_env", "enable_cpu_affinity", "use_cpu"}
# Ignored keys of `fsdp_config`. They are for version 1, or for reading and writing files, which wpn-bench does itself.
_PASSED_OVER_OF_FSDP = {"state_dict_type", "cpu_ram_efficient_loading", "sync_module_states", "use_orig_params"}
_PASSED_OVER_OF_FSDP |= {"backward_prefetch", "forward_prefetch", "sharding_strategy"}


@dataclass(frozen=True)
class Launch:
    """How a training in several processes is started.

    Attributes:
        processes: Number of processes on this machine.
        fsdp: Settings of FSDP; None if each process has the whole model.
        mixed_precision: Mixed precision that the accelerate file sets.
    """

    processes: int
    fsdp: Mapping[str, Any] | None = None
    mixed_precision: str = "no"

    @classmethod
    def of(cls, processes: int | None, file: str | None) -> Launch | None:
        """Combine the options `--processes` and `--accelerate`.

        Args:
            processes: Number of processes; None uses the number in the file.
            file: Path of an accelerate file; None if there is no file.

        Returns:
            How to start trainings; None to train in this process.

        Raises:
            UserError: The file is for a single process, or has a setting that is not supported.
        """
        said = cls._read(Path(file).expanduser()) if file else cls(1)
        count = processes or said.processes
        if file and count < 2:
            raise UserError(
                f"{Path(file).name} needs several processes, but their number is {count}",
                "set num_processes to 2 or more, or leave out --accelerate",
            )
        return cls(count, said.fsdp, said.mixed_precision) if count > 1 else None

    @classmethod
    def _read(cls, path: Path) -> Launch:
        from wpn_bench.core.yaml_files import read_yaml

        raw = read_yaml(path)
        kind = str(raw.pop("distributed_type", "NO"))
        if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
            raise UserError(
                f"{path.name}: distributed_type {kind} is not supported", "use FSDP, MULTI_GPU or MULTI_CPU"
            )
        processes, machines = raw.pop("num_processes", 1), raw.pop("num_machines", 1)
        if not isinstance(processes, int) or processes < 1:
            raise UserError(f"{path.name}: num_processes {processes!r} is not a positive number", _SEE)
        if machines != 1:
            raise UserError(
                f"{path.name}: num_machines is {machines}, but a training can use only one machine",
                "set num_machines: 1",
            )
        fsdp = raw.pop("fsdp_config", None) or {}
        precision = str(raw.pop("mixed_precision", "no") or "no")
        # CUDA_VISIBLE_DEVICES chooses the GPUs. Any other setting would be silently ignored, so it is an error.
        for name, value in raw.items():
            if name not in _PASSED_OVER and value not in (None, False, {}, [], "", "no", "all"):
                raise UserError(f"{path.name}: {name} is not supported", f"remove it; {_SEE}")
        return cls(processes, _fsdp(path, fsdp) if kind == "FSDP" else None, precision)

    def check(self, methods: Sequence[Method], device: str) -> None:
        """Check that these processes can train the given methods.

        Args:
            methods: The unlearning methods with their settings.
            device: The device as the user named it.

        Raises:
            UserError: A method cannot be trained in this number of processes or on this device.
        """
        import torch

        if device not in ("cpu", "cuda"):
            raise UserError(
                f"--device {device} is a single device, but {self.processes} processes need one each",
                "use --device cuda, and choose the GPUs with CUDA_VISIBLE_DEVICES",
            )
        gpus = torch.cuda.device_count()
        if device == "cuda" and self.processes > gpus:
            raise UserError(
                f"each of the {self.processes} processes needs a GPU, but this machine has {gpus}",
                f"use --processes {gpus}, or --device cpu"
                if gpus > 1
                else "use --device cpu, or leave out --processes",
            )
        for method in methods:
            config = method.config
            if self.mixed_precision not in ("no", config.mixed_precision):
                raise UserError(
                    f"the accelerate file sets mixed_precision: {self.mixed_precision}, but {method.name} is trained with"
                    f" {config.mixed_precision}",
                    f"add --mixed-precision {self.mixed_precision}, because wpn-bench uses only this option",
                )
            if config.mixed_precision == "fp16":
                raise UserError(
                    f"{method.name}: fp16 works only in a single process",
                    "use --mixed-precision bf16, or leave out --processes",
                )
            sizes = {"batch_size": config.batch_size} if method.uses - {"retain"} else {}
            sizes |= {"retain_batch_size": config.retain_batch_size} if "retain" in method.uses else {}
            for name, size in sizes.items():
                if size < self.processes:
                    raise UserError(
                        f"{method.name}: with {name} {size}, some of the {self.processes} processes have no work",
                        f"use --processes {size} or fewer, or a larger {name}",
                    )

    def file(self, device: str) -> dict[str, Any]:
        """Return the settings for `accelerate launch`. All are set, so that the user's own defaults have no effect."""
        told: dict[str, Any] = {
            "compute_environment": "LOCAL_MACHINE",
            # This is also used on CPUs. With MULTI_CPU, accelerate would start the processes with MPI.
            "distributed_type": "FSDP" if self.fsdp is not None else "MULTI_GPU",
            "num_processes": self.processes,
            "num_machines": 1,
            "machine_rank": 0,
            "main_process_port": 0,  # use any free port
            "mixed_precision": "no",  # the training loop applies the setting of the method
            "use_cpu": device == "cpu",
        }
        if self.fsdp is not None:
            told["fsdp_config"] = {f"fsdp_{k}": v for k, v in self.fsdp.items() if v is not None}
            told["fsdp_config"] |= {"fsdp_state_dict_type": "FULL_STATE_DICT", "fsdp_cpu_ram_efficient_loading": False}
        return told


def _fsdp(path: Path, raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise UserError(f"{path.name}: fsdp_config contains no settings", _SEE)
    given = {str(name).removeprefix("fsdp_"): value for name, value in raw.items()}
    if given.pop("activation_checkpointing", False):
        raise UserError(f"{path.name}: fsdp_activation_checkpointing is not supported", "use --gradient-checkpointing")
    if not given.pop("activation_checkpointing_offload", False):
        given = {name: value for name, value in given.items() if name not in _PASSED_OVER_OF_FSDP}
    with as_user_error(f"{path.name}: fsdp_config", _SEE):
        return FSDP(**given).model_dump()


def run(ctx: StageContext) -> None:
    """Run the training of `ctx` in new processes, which `ctx.local["launch"]` describes.

    Errors of the workers are raised again in this process. If a process died, the error is a `RuntimeError`, because
    another attempt may succeed.
    """
    from wpn_bench import models

    launch, device = Launch(**ctx.local["launch"]), str(ctx.local["device"])
    models.let_go()  # the new processes need the memory
    with tempfile.TemporaryDirectory(prefix="wpn-bench-") as name:
        folder = Path(name)
        write_json(folder / JOB, _told(ctx))
        write_json(folder / "accelerate.json", launch.file(device))
        with (folder / "said").open("w+b") as said:
            code = _follow(ctx, folder, _environment(launch, device), said)
            said.seek(0)
            text = said.read().decode(errors="replace")
        if code:
            raise _failure(folder, launch.processes, text, code)


def _told(ctx: StageContext) -> dict[str, Any]:
    local = {name: value for name, value in ctx.local.items() if name != "launch"}
    if "curves" in local:
        local["curves"] = {**local["curves"], "folder": local["curves"]["folder"] and str(local["curves"]["folder"])}
    return {
        "params": dict(ctx.params),
        "needs": {role: str(path) for role, path in ctx.needs.items()},
        "out": str(ctx.out),
        "local": local,
        "scratch": None if ctx.scratch is None else str(ctx.scratch),
        "sharded": ctx.local["launch"]["fsdp"] is not None,
    }


def _follow(ctx: StageContext, folder: Path, environment: Mapping[str, str], said: Any) -> int:
    """Start the processes and report their progress until they end. Returns the exit code."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.json")]
    process = subprocess.Popen(
        [*command, "-m", WORKER, str(folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=said,
        start_new_session=True,  # so that only the run gets Ctrl-C and then ends the workers
    )
    try:
        advance, seen = None, 0
        while True:
            code = process.poll()
            with suppress(FileNotFoundError):
                done, total = map(int, (folder / PROGRESS).read_text(encoding="utf-8").split())
                advance = advance or ctx.progress(total, "steps")
                advance(done - seen)
                seen = done
            if code is not None:
                return code
            time.sleep(_POLL)
    finally:
        _end(process)


def _environment(launch: Launch, device: str) -> dict[str, str]:
    import torch

    # If a launcher started this process, its variables would be taken for settings of the new processes.
    theirs = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "PARALLELISM_CONFIG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    package = str(Path(__file__).resolve().parents[2])
    kept["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [kept.get("PYTHONPATH")])])
    kept["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // launch.processes))
    if device == "cpu":
        kept |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return kept


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the remaining processes. The workers end when their pipe closes, and the launcher ends after them."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    for way in (lambda: None, process.terminate, process.kill):
        way()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
            return


def _failure(folder: Path, processes: int, said: str, code: int) -> Exception:
    """Return the error to raise: that of a worker, or else which process was killed, or else the last output line."""
    told = [folder / FAILURE.format(rank) for rank in range(processes)]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in told if file.is_file()]
    for one in found:
        if one["kind"] == "UserError":
            return UserError(one["problem"], one["hint"])
        if one["kind"] == "JobFailed":
            return JobFailed(one["reason"])
    # Read torchrun's summary. A worker also fails if another one has gone, so the killed process is named first.
    ended = re.findall(r"rank\s*:\s*(\d+).*?\n\s*exitcode\s*:\s*(-?\d+)", said)
    killed = [(f"process {rank} of {processes}", -int(one)) for rank, one in ended if int(one) < 0 and int(one) != -15]
    if code < 0:
        killed.append((f"the launcher of {processes} processes", -code))
    if killed:
        who, signal = killed[0]
        why = ", probably because memory ran out" if signal == 9 else ""
        return RuntimeError(
            f"{who} was killed (signal {signal}{why}); repeat the command to resume from the last checkpoint"
        )
    if found:
        return RuntimeError(found[0]["reason"])
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return RuntimeError(
        f"{processes} processes could not be started ({lines[-1][:300] if lines else 'without any output'})"
    )


def local_of(launch: Launch | None) -> dict[str, Any]:
    """Return the entry of a job's `local` that starts its processes, or an empty dict to train in this process."""
    return {} if launch is None else {"launch": asdict(launch)}
