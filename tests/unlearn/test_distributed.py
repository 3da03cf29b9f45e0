"""Several processes train one model: the same model as one process alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from fork_server import ForkServer
from safetensors.torch import load_file

from wpn_bench import models
from wpn_bench.core.files import write_json
from wpn_bench.core.progress import Reporter
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs.executor import LocalExecutor
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.store import Store
from wpn_bench.prompts import Item
from wpn_bench.prompts.items import ITEMS, item_row, write_rows
from wpn_bench.unlearn import checkpoints, launch, processes, worker
from wpn_bench.unlearn.batches import Batch, Batches
from wpn_bench.unlearn.launch import FSDP, Launch
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.methods.base import Method
from wpn_bench.unlearn.processes import ALONE, Processes

from .training import QUICK, TEMPLATE, Done, job_in, method_of, put_needs, stop_of

SHARDED = FSDP().model_dump()
WAIT = 120.0

# --- a batch, shared -------------------------------------------------------------------------------------------------


def batches_of(folder: Path, method: Method, items: list[Item], texts: list[str], who: Processes = ALONE) -> Batches:
    return Batches(
        models.load_tokenizer(folder),
        items,
        texts,
        template=TEMPLATE,
        uses=frozenset({"harmless", "harmful", "random", "retain"}),
        steps=3,
        batch_size=7,
        retain_batch_size=4,
        negatives=method.negatives,
        random_answers=2,
        max_length=64,
        retain_max_length=64,
        seed=5,
        processes=who,
    )


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.slow
def test_the_parts_are_the_batch(small_opt: Path, items: list[Item], texts: list[str], count: int) -> None:
    method = method_of("wpn")
    whole = batches_of(small_opt, method, items, texts)
    parts = [batches_of(small_opt, method, items, texts, Processes(rank, count)) for rank in range(count)]
    for step in range(3):
        for name, rows in whole[step].items():
            for field, tensor in rows.items():
                together = torch.cat([part[step][name][field] for part in parts])
                assert torch.equal(together, tensor), (name, field)
            owners: list[list[int]] = [part[step][name]["owner"].unique().tolist() for part in parts]
            assert (
                sorted(k for part in owners for k in part) == rows["owner"].unique().tolist()
            )  # an item's rows stay together
            assert max(map(len, owners)) - min(map(len, owners)) <= 1


def test_fewer_items_than_processes(small_opt: Path, items: list[Item], texts: list[str]) -> None:
    """What the configuration cannot tell, for the forget set is smaller than a batch."""
    for few, some, what in ((items[:2], texts, "2 items to forget"), (items, texts[:1], "1 retain texts")):
        with pytest.raises(UserError, match=f"{what} per step, some of the 3 processes have no work"):
            batches_of(small_opt, method_of("wpn"), few, some, Processes(0, 3))


class Played(Processes):
    """Processes that take their turns in this one. The first time each puts down what it adds to a sum, the second time it
    gets the sum."""

    def play(self, turns: list[list[torch.Tensor]] | None) -> Played:
        object.__setattr__(self, "turns", turns)
        object.__setattr__(self, "said", [])
        return self

    def total(self, values: torch.Tensor) -> torch.Tensor:
        self.said.append(values.detach())  # type: ignore[attr-defined]
        turns = self.turns  # type: ignore[attr-defined]
        return values if turns is None else sum(turn[len(self.said) - 1] for turn in turns)  # type: ignore[attr-defined]


EVERY = {name: {} for name in METHODS} | {
    "wpn:hidden": {"space": "hidden"},
    "llmu:released": {"variant": "released"},
    "grad_diff:kl": {"retain": "kl"},
}


@pytest.mark.parametrize("name", list(EVERY))
@pytest.mark.slow
def test_the_mean_over_the_parts_is_the_loss(
    small_lm: Path, items: list[Item], texts: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Exactly, for every method: losses over tokens, over items and over hidden states, on parts of unequal size."""
    count = 3
    method = method_of(name.partition(":")[0], **EVERY[name])
    model, reference = models.load_fresh(small_lm), models.load(small_lm)[0]
    with torch.no_grad():
        for p in model.parameters():  # apart from the reference
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))

    def loss_of(who: Processes) -> tuple[float, dict[str, float], torch.Tensor]:
        monkeypatch.setattr(processes, "_here", who)
        model.zero_grad()
        found = method.loss(model, Batch.from_tensors(batches_of(small_lm, method, items, texts, who)[1]), reference)
        found.total.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return float(found.total.detach()), found.parts, gradient

    whole, whole_parts, gradient = loss_of(ALONE)
    ranks = [Played(rank, count) for rank in range(count)]
    for who in ranks:
        loss_of(who.play(None))
    turns = [who.said for who in ranks]  # type: ignore[attr-defined]
    shared = [loss_of(who.play(turns)) for who in ranks]
    assert sum(loss for loss, _, _ in shared) / count == pytest.approx(whole, rel=1e-5)
    for part, value in whole_parts.items():
        assert sum(parts[part] for _, parts, _ in shared) / count == pytest.approx(value, rel=1e-4, abs=1e-6)
    mean = torch.stack([g for _, _, g in shared]).mean(0)
    torch.testing.assert_close(mean, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


# --- what is asked for -----------------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "accelerate.yaml").write_text(text)
    return str(tmp_path / "accelerate.yaml")


def test_nothing_asked_for_is_this_process() -> None:
    assert Launch.of(None, None) is None
    assert Launch.of(1, None) is None
    assert Launch.of(3, None) == Launch(3)


def test_what_accelerate_config_writes_is_taken(tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    fsdp = {"fsdp_version": 2, "fsdp_reshard_after_forward": False, "fsdp_cpu_ram_efficient_loading": True}
    fsdp |= {"fsdp_state_dict_type": "SHARDED_STATE_DICT", "fsdp_activation_checkpointing": False}
    for kind, expected in (("FSDP", {**SHARDED, "reshard_after_forward": False}), ("MULTI_GPU", None)):
        config = ClusterConfig("LOCAL_MACHINE", kind, "no", True, False, num_processes=3, fsdp_config=fsdp)
        config.to_yaml_file(str(tmp_path / "a.yaml"))
        assert Launch.of(None, str(tmp_path / "a.yaml")) == Launch(3, expected)
        assert Launch.of(2, str(tmp_path / "a.yaml")) == Launch(2, expected)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("num_processes: two", "num_processes 'two' is not a positive number"),
        ("num_processes: 0", "num_processes 0 is not a positive number"),
        ("num_processes: 1", "needs several processes, but their number is 1"),
        ("{num_processes: 2, num_machines: 2}", "num_machines is 2, but a training can use only one machine"),
        ("{num_processes: 2, distributed_type: DEEPSPEED}", "distributed_type DEEPSPEED is not supported"),
        ("{num_processes: 2, dynamo_config: {dynamo_backend: INDUCTOR}}", "dynamo_config is not supported"),
        ("{num_processes: 2, tpu_use_cluster: true}", "tpu_use_cluster is not supported"),
        ("{num_processes: 2, distributed_type: FSDP, fsdp_config: {fsdp_version: 1}}", "fsdp_config: version: "),
        ("{num_processes: 2, distributed_type: FSDP, fsdp_config: {fsdp_colour: red}}", "fsdp_config: colour: "),
        ("{num_processes: 2, distributed_type: FSDP, fsdp_config: [1]}", "fsdp_config contains no settings"),
        (
            "{num_processes: 2, distributed_type: FSDP, fsdp_config: {fsdp_activation_checkpointing: true}}",
            "fsdp_activation_checkpointing is not supported; use --gradient-checkpointing",
        ),
        ("- 1", "contains no settings"),
        ("{", "cannot be read"),
    ],
)
def test_a_file_that_asks_for_what_is_not_to_be_had(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Launch.of(None, written(tmp_path, text))


@pytest.mark.parametrize(
    ("asked", "options", "device", "problem"),
    [
        (
            Launch(5),
            {},
            "cpu",
            "wpn: with batch_size 4, some of the 5 processes have no work; use --processes 4 or fewer",
        ),
        (Launch(4), {}, "cpu", "wpn: with retain_batch_size 3, some of the 4 processes have no work"),
        (
            Launch(2),
            {"mixed_precision": "fp16"},
            "cpu",
            "wpn: fp16 works only in a single process; use --mixed-precision bf16",
        ),
        (Launch(2, None, "bf16"), {}, "cpu", "sets mixed_precision: bf16, but wpn is trained with no; add --mixed-"),
        (Launch(64), {}, "cuda", "each of the 64 processes needs a GPU, but this machine has "),
        (Launch(2), {}, "cuda:1", "--device cuda:1 is a single device, but 2 processes need one each"),
    ],
)
def test_what_processes_cannot_do_is_said_first(
    asked: Launch, options: dict[str, Any], device: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        asked.check([method_of("wpn", **options)], device)


def test_what_they_can_do(small_opt: Path) -> None:
    Launch(3).check([method_of("wpn")], "cpu")
    Launch(4).check([method_of("ga")], "cpu")  # reads no retain text
    Launch(2, SHARDED, "bf16").check([method_of("wpn", mixed_precision="bf16")], "cpu")


def test_a_run_under_a_launcher_says_the_right_command(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli("list", "methods").code == 0
    for rank, fsdp, said in (("0", "false", "--processes 2`"), ("0", "true", "--accelerate FILE`"), ("1", "false", "")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("ACCELERATE_USE_FSDP", fsdp)
        told = cli("train", "--methods", "sft", "--out", tmp_path / "run")
        assert told.code == 2
        assert said in told.err
        assert len(told.err.splitlines()) == (rank == "0")
    assert not (tmp_path / "run").exists()


def test_their_number_makes_no_other_training(tmp_path: Path, items: list[Item], texts: list[str]) -> None:
    from types import SimpleNamespace
    from typing import cast

    from wpn_bench import config
    from wpn_bench.pipeline import inputs, planner
    from wpn_bench.prompts import FormatTemplate, PromptSet, TextSet

    read = SimpleNamespace(
        model=SimpleNamespace(path=tmp_path, digest="m", seen=None),
        benign=None,
        forget=PromptSet("forget", "forget", tuple(items)),
        trained_on=None,
        retain=TextSet("retain", "retain", tuple(texts)),
        device="cpu",
        template=FormatTemplate("{prompt}"),
    )
    base = config.build("lab").model_dump() | {"methods": {"sft": {}}}

    def job(**settings: Any) -> Job:
        final = config.from_settings(base | settings)
        return planner.Planner(final, cast(inputs.Inputs, read), Store(tmp_path)).training("sft", 0)

    alone, two = job(), job(processes=2)
    assert alone.digest == two.digest
    assert "launch" not in alone.local
    assert two.local["launch"] == {"processes": 2, "fsdp": None, "mixed_precision": "no"}


# --- in two processes ------------------------------------------------------------------------------------------------


# Its gradient is 0 up to rounding at the beginning, and the number of processes changes rounding.
DECIDED_BY_ROUNDING = {"circuit_breakers"}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": name, "options": {}} for name in METHODS if name not in DECIDED_BY_ROUNDING},
    "negated": {"method": "task_vector", "options": {"stop_at_harmless_rate": 1.0, "check_every": 1}, "snapshot": 1},
    "accumulated": {"method": "wpn", "options": {"accumulation": 2}},
    "lora": {"method": "sft_kl", "options": {"lora": 4}, "snapshot": 2},
    "recomputed": {"method": "rmu", "options": {"gradient_checkpointing": True}},
    "bf16": {"method": "npo", "options": {"mixed_precision": "bf16"}},
    "looked at": {"method": "sft", "options": {"stop_at_harmless_rate": 1.0, "check_every": 1}, "snapshot": 1},
    "killed": {"method": "dpo", "options": {"save_every": 1}, "killed_at": 2},
    "killed lora": {"method": "wpn", "options": {"save_every": 1, "lora": 2}, "killed_at": 2},
}
STEPS = {"steps": 2, "batch_size": 5, "retain_batch_size": 3, "lr": 1e-3}


# FSDP does the same with every loss; these call the model whole, its decoder alone, and the reference.
WITH_FSDP = ("wpn", "llmu", *(name for name in CASES if name not in METHODS))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_opt: Path) -> dict[str, Path]:
    """Two folders with what two processes made of the cases: each with the whole model, and the model spread over them."""
    asked: dict[str, tuple[Sequence[str], Launch]] = {
        "data_parallel": (list(CASES), Launch(2)),
        "fsdp": (WITH_FSDP, Launch(2, SHARDED)),
    }
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in asked}
    for kind, (names, how) in asked.items():
        folder = folders[kind]
        (folder / "forget").mkdir()
        write_rows(folder / "forget" / ITEMS, [item_row(i) for i in some_items()])
        cases = {n: {**CASES[n], "options": {**QUICK, **STEPS, **CASES[n]["options"]}} for n in names}
        cases["diverged"] = {"method": "wpn", "options": {**QUICK, **STEPS, "lr": 1e30}}
        told = {"model": str(small_opt), "items": str(folder / "forget"), "texts": some_texts(), "cases": cases}
        write_json(folder / "cases.json", {**told, "sharded": how.fsdp is not None})
        write_json(folder / "accelerate.json", how.file("cpu"))
    script = str(Path(__file__).with_name("distributed_cases.py"))
    done = subprocess.run(
        [sys.executable, script, *map(str, folders.values())],
        env=launch._environment(Launch(2), "cpu"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folders


def some_items() -> list[Item]:
    return [
        Item(
            str(k),
            f"What did the {who} say?",
            harmful=(f"You are a goose, {who}.", f"Nobody likes {who}s."),
            harmless=("Good day.", f"The {who} helped."),
        )
        for k, who in enumerate(["baker", "miller", "teacher", "farmer", "pupil", "old man", "neighbour"])
    ]


def some_texts() -> list[str]:
    return [f"The farmer sells {n} apples in the morning in the market." for n in ("ten", "two", "red", "old", "some")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["data_parallel", "fsdp"])
def test_all_of_them_see_that_it_diverges(trained: dict[str, Path], kind: str) -> None:
    """None waits for another that has given up."""
    folder = trained[kind]
    said = {(folder / f"diverged.{rank}").read_text() for rank in range(2)}
    (reason,) = said
    assert reason.startswith("training diverged: the loss of wpn is nan at step ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [*(("data_parallel", name) for name in CASES), *(("fsdp", name) for name in WITH_FSDP)]
)
def test_two_processes_make_the_model_of_one(trained: dict[str, Path], small_opt: Path, kind: str, name: str) -> None:
    """Five items and three texts a step, so that the parts are unequal."""
    folder = trained[kind]
    case = CASES[name]
    kept: dict[str, torch.Tensor] = {}

    def after_step(step: int, current: Callable[[], Any]) -> None:
        if step == case.get("snapshot"):
            kept.update({n: p.detach().clone() for n, p in current().named_parameters()})

    def rate(now: Any) -> float:
        return float(now.get_input_embeddings().weight.detach().abs().double().mean()) % 1

    method = method_of(case["method"], **{**STEPS, **case["options"]})
    alone = Done(small_opt, method, some_items(), some_texts(), harmless_rate=rate, after_step=after_step)
    told = json.loads((folder / f"{name}.json").read_text())
    half = name == "bf16"
    assert told["steps"] == alone.said.steps
    losses = [h["loss"] for h in told["history"]]
    assert losses == pytest.approx([h["loss"] for h in alone.said.history], rel=2e-2 if half else 1e-4)
    for one, other in zip(told["history"], alone.said.history, strict=True):
        assert one["parts"] == pytest.approx(other["parts"], rel=5e-2 if half else 1e-3, abs=1e-2 if half else 1e-5)
    assert [c["step"] for c in told["checks"]] == [c["step"] for c in alone.said.checks]
    rates = [c["harmless_rate"] for c in told["checks"]]
    assert rates == pytest.approx([c["harmless_rate"] for c in alone.said.checks], rel=1e-6)
    pairs = [(load_file(folder / f"{name}.safetensors"), dict(alone.model.named_parameters()))]
    if kept:
        pairs.append((load_file(folder / f"{name}.snapshot.safetensors"), kept))
    for made, expected in pairs:
        assert made.keys() == expected.keys()
        for weight, value in expected.items():
            # A bias of keys moves all scores alike: its gradient is rounding, which Adam makes as large as any other.
            if "k_proj.bias" in weight:
                continue
            if half:
                # In bfloat16, this is so for single elements of any weight. Which ones depends on the processor.
                near = torch.isclose(made[weight], value.detach(), rtol=1e-3, atol=2e-3)
                assert near.float().mean() > 0.999
            else:
                torch.testing.assert_close(made[weight], value.detach(), rtol=1e-3, atol=2e-5)
    # With FSDP no process holds more than its part.
    weights = sum(p.numel() for p in models.load(small_opt)[0].parameters())
    if not case["options"].get("lora"):
        spread = weights / 2 <= told["held"][0] < 0.55 * weights
        assert spread if kind == "fsdp" else told["held"] == [weights]
    assert (folder / f"{name}.killed").exists() == ("killed_at" in case)


# --- a job, in processes of its own ----------------------------------------------------------------------------------


CODE = """
import json, sys
from pathlib import Path
from wpn_bench.core.progress import Reporter
from wpn_bench.jobs.executor import LocalExecutor
from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.store import Store
said = json.loads(sys.argv[1])
needs = {role: External(Path(path), role) for role, path in said["needs"].items()}
job = Job("train", said["params"], needs, "train", said["local"])
(outcome,) = LocalExecutor(Store(Path(said["store"])), Reporter()).run([job]).values()
print(outcome.status, outcome.reason)
"""


@dataclass(frozen=True)
class Running:
    """The code above in a fork of a server's process."""

    server: ForkServer
    ended: Future[subprocess.CompletedProcess[str]]

    def process(self) -> psutil.Process:
        (process,) = self.server.running()
        return process


STEPS_IN_ALL = 40


class Counting(Reporter):
    """Notes the progress of the job at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[int] = []

    def items(self, total: int | None, unit: str = "") -> Callable[[int], None]:
        assert (total, unit) == (STEPS_IN_ALL, "steps")
        return self.done.append


def job_of(tmp_path: Path, folder: Path) -> dict[str, Any]:
    """What the code above reads: a long training in two processes, with many checkpoints."""
    # Looked at once, in the end; a random model says nothing abusive.
    goal = {"stop_at_harmless_rate": 0.9, "check_every": STEPS_IN_ALL}
    method = method_of("wpn", steps=STEPS_IN_ALL, lr=1e-4, save_every=5, **goal)
    said = job_in(tmp_path, folder, method, put_needs(tmp_path, some_items(), some_texts(), some_items()[:3]))
    said["params"]["stop"] = stop_of()
    said["local"]["launch"] = asdict(Launch(2))
    return said


def here_and_now(said: dict[str, Any], reporter: Reporter) -> Outcome:
    needs: dict[str, Job | External] = {role: External(Path(p), role) for role, p in said["needs"].items()}
    job = Job("train", said["params"], needs, "train", said["local"])
    (outcome,) = LocalExecutor(Store(Path(said["store"])), reporter).run([job]).values()
    return outcome


def ranks_of(run: Running, wanted: Callable[[], bool]) -> dict[str | None, psutil.Process]:
    """All processes that a run has started, by rank (None: the launcher), once there are both ranks and `wanted` holds."""
    deadline = time.monotonic() + WAIT
    while True:
        assert not run.ended.done(), "ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.01)
        with suppress(psutil.Error, ValueError):  # not yet there
            found = {p.environ().get("RANK"): p for p in run.process().children(recursive=True)}
            if len(found) == 3 and wanted():
                return found


@pytest.fixture
def running(tmp_path: Path, small_opt: Path, offline_commands: ForkServer) -> Iterator[tuple[dict[str, Any], Running]]:
    """The job, and a run that does it."""
    said = job_of(tmp_path, small_opt)
    with ThreadPoolExecutor(1) as pool:
        offline_commands.python("")  # once the server has started
        command = ["python", "-c", CODE, json.dumps(said)]
        run = Running(offline_commands, pool.submit(offline_commands.completed, command, tmp_path))
        yield said, run
        for process in offline_commands.running():
            process.kill()


@pytest.mark.slow
def test_nothing_outlives_the_run(running: tuple[dict[str, Any], Running]) -> None:
    _, run = running
    started = ranks_of(run, lambda: True)
    run.process().kill()
    gone, left = psutil.wait_procs(started.values(), timeout=WAIT)
    assert (len(gone), left) == (3, [])


@pytest.mark.slow
def test_killed_and_gone_on(running: tuple[dict[str, Any], Running], tmp_path: Path) -> None:
    """One process of two is killed by the kernel; what goes on is spread by FSDP, and comes to the model of one process
    that nobody disturbed."""
    said, run = running
    started = ranks_of(run, lambda: bool(list(Path(said["store"]).glob("scratch/train-*/checkpoint-*/seal.json"))))
    started["1"].kill()
    out = run.ended.result(timeout=WAIT).stdout
    assert out.startswith("failed process 1 of 2 was killed (signal 9, probably because memory ran out); repeat the")
    assert not psutil.wait_procs(started.values(), timeout=WAIT)[1]
    (scratch,) = (tmp_path / "store" / "scratch").glob("train-*")
    last = checkpoints.latest(scratch)
    assert last is not None

    said["local"]["launch"] = asdict(Launch(2, SHARDED))
    counting = Counting()
    made = here_and_now(said, counting)
    assert (made.status, sum(counting.done)) == ("done", STEPS_IN_ALL)
    assert next(n for n in counting.done if n) >= int(last.name.removeprefix("checkpoint-"))
    assert not scratch.exists()
    assert made.path is not None
    training = json.loads((made.path / "training.json").read_text())
    assert (training["processes"], training["parallel"], len(training["history"])) == (2, "fsdp", STEPS_IN_ALL)
    assert [c["step"] for c in training["checks"]] == [STEPS_IN_ALL]
    assert training["stopped"] == "validation harmless rate 1.000 reached 0.9"
    models.resolve(str(made.path))

    del said["local"]["launch"]
    alone = here_and_now({**said, "store": str(tmp_path / "undisturbed")}, Reporter())
    assert alone.path is not None
    assert alone.job.digest == made.job.digest
    expected = load_file(alone.path / "model.safetensors")
    for name, value in load_file(made.path / "model.safetensors").items():
        if "k_proj.bias" not in name:
            torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("told", "said", "code", "kind", "problem"),
    [
        ({1: UserError("no such module", "name another")}, "", 1, UserError, "no such module; name another"),
        ({0: RuntimeError("peer gone"), 1: JobFailed("diverged")}, "", 1, JobFailed, "diverged"),
        ({0: RuntimeError("peer gone")}, "", 1, RuntimeError, "peer gone"),
        ({0: MemoryError()}, "", 1, RuntimeError, "MemoryError"),
        (
            {},
            "",
            -9,
            RuntimeError,
            r"the launcher of 2 processes was killed \(signal 9, probably because memory ran out\)",
        ),
        ({}, "one\nlast words\n\n", 1, RuntimeError, r"2 processes could not be started \(last words\)"),
        ({}, "", 1, RuntimeError, r"2 processes could not be started \(without any output\)"),
        (
            {0: RuntimeError("peer gone")},
            "  rank      : 0 (local_rank: 0)\n  exitcode  : 1 (pid: 5)\n"
            "  rank      : 1 (local_rank: 1)\n  exitcode  : -11 (pid: 6)\n",
            1,
            RuntimeError,
            r"process 1 of 2 was killed \(signal 11\)",
        ),
    ],
)
def test_what_went_wrong_is_said_in_one_line(
    tmp_path: Path, told: dict[int, Exception], said: str, code: int, kind: type[Exception], problem: str
) -> None:
    for rank, error in told.items():
        write_json(tmp_path / launch.FAILURE.format(rank), worker._said(error))
    error = launch._failure(tmp_path, 2, said, code)
    assert type(error) is kind
    with pytest.raises(kind, match=problem):
        raise error
