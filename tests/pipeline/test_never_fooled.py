"""Whatever a result depends on: when it changes, exactly that which depends on it is computed again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from workshop import Workshop

from wpn_bench import lab
from wpn_bench.benchmarks.definitions import task_folders
from wpn_bench.errors import UserError
from wpn_bench.jobs import executor
from wpn_bench.jobs import job as jobs_job
from wpn_bench.jobs.store import MANIFEST, Store
from wpn_bench.runs.files import read_manifest

pytestmark = pytest.mark.slow

QUICK = {"steps": 2, "batch_size": 2}
# One method whose training asks the judge, one whose training does not.
METHODS = {"sft": QUICK, "ga": QUICK | {"stop_at_harmless_rate": 0.999, "check_every": 1}}
VET = "vet the forget set's harmless references"


@pytest.fixture(scope="module", autouse=True)
def _no_report() -> Iterator[None]:
    """What a report shows is not asked here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("wpn_bench.report.render"), "render", lambda run: [])
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_opt: Path, triples: list[dict[str, Any]]) -> Workshop:
    """A run whose model, judge and task files are copies that can be changed."""
    folder = tmp_path_factory.mktemp("finished")
    made = Workshop(folder, shutil.copytree(small_opt, folder / "model"), triples)
    shutil.copytree(lab.judge_checkpoint().parent, folder / "judge")
    tasks = shutil.copytree(task_folders(("lab",))[0], folder / "tasks")
    made.settings |= {
        "methods": METHODS,
        "judge": "detoxify:" + str(folder / "judge" / "judge.ckpt"),
        "benchmark_folders": (str(tasks),),
        "allow_pickle": True,
        "trust_remote_code": True,  # the lab's data are made by functions that its task files name
    }
    made.run()
    return made


class Changed:
    """The finished run's world, in the same place, to be changed and run again."""

    def __init__(self, made: Workshop, backup: Path) -> None:
        self.made, self.folder, self.store = made, made.folder, made.store
        self._backup = shutil.copytree(made.folder, backup / "world", symlinks=True)

    def again(self, **changes: Any) -> set[str]:
        """Labels of what was not served from the store."""
        self.made.run("again", **changes)
        return {label for label, status in self.made.statuses("again").items() if status != "cached"}

    @property
    def labels(self) -> set[str]:
        return set(self.made.statuses())

    def of(self, *parts: str, but: tuple[str, ...] = ()) -> set[str]:
        """Labels that hold one of the parts and none of `but`."""
        return {k for k in self.labels if any(p in k for p in parts) and not any(p in k for p in but)}

    def put_back(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self._backup, self.folder, symlinks=True)


@pytest.fixture
def world(finished: Workshop, tmp_path: Path) -> Any:
    world = Changed(finished, tmp_path)
    yield world
    world.put_back()


def test_nothing_changed_nothing_is_computed(world: Changed) -> None:
    assert len(world.labels) > 30
    assert world.again() == set()


def test_other_weights_in_the_same_place(world: Changed) -> None:
    file = world.folder / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    weights[name].view(-1)[0] += 0.5
    save_file(weights, file, metadata={"format": "pt"})
    assert world.again() == world.labels - {VET}


def test_another_tokenizer_beside_the_same_weights(world: Changed) -> None:
    file = world.folder / "model" / "tokenizer.json"
    settings = json.loads(file.read_text())
    a, b = list(settings["model"]["vocab"])[-2:]
    vocabulary = settings["model"]["vocab"]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(settings))
    assert world.again() == world.labels - {VET}


def edit(file: Path) -> None:
    """One letter of a stored response."""
    row, *rest = file.read_text(encoding="utf-8").split("\n")
    changed = json.loads(row)
    changed["response"] = "x" + (changed["response"] or "")
    file.write_text("\n".join([json.dumps(changed), *rest]), encoding="utf-8")


def artifact(world: Changed, label: str) -> Path:
    manifest = read_manifest(world.folder / "run")
    (job,) = (s for s in manifest["stages"] if s["label"] == label)
    return world.store / job["stage"] / job["digest"]


def test_one_stored_response_edited(world: Changed) -> None:
    edit(artifact(world, "sft (seed 0): answer typos") / "responses.jsonl")
    assert world.again() == {"sft (seed 0): answer typos"}  # its verdict was on what is there again


def test_a_stored_response_edited_with_its_digest(world: Changed, comparable: Callable[[Any], Any]) -> None:
    """Whoever corrects the digest as well has made another response: its verdict is another one's."""
    folder = artifact(world, "sft (seed 0): answer typos")
    edit(folder / "responses.jsonl")
    manifest = json.loads((folder / MANIFEST).read_text())
    from wpn_bench.core.files import digest_file, digest_of

    manifest["files"] = {name: digest_file(folder / name) for name in manifest["files"]}
    manifest["content"] = digest_of(manifest["files"])
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert world.again() == {"sft (seed 0): judge typos"}


@pytest.mark.parametrize("file", ["samples.parquet", MANIFEST])
@pytest.mark.parametrize("how", ["cut", "bit", "gone"])
def test_a_damaged_verdict(world: Changed, file: str, how: str) -> None:
    path = artifact(world, "base: judge other") / file
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "bit":
        data[2 if file == MANIFEST else len(data) // 2] ^= 1  # in the manifest: a quotation mark
        path.write_bytes(data)
    assert world.again() == {"base: judge other"}


def test_the_judges_threshold(world: Changed) -> None:
    # What was scored is read otherwise; only trainings that were told of it are others.
    assert world.again(threshold=0.4) == {VET} | world.of("ga (seed 0)")


def test_the_judges_weights(world: Changed) -> None:
    file = world.folder / "judge" / "judge.ckpt"
    checkpoint = torch.load(file, weights_only=False)
    name = next(k for k, v in checkpoint["state_dict"].items() if v.is_floating_point())
    checkpoint["state_dict"][name].view(-1)[0] += 0.01
    torch.save(checkpoint, file)
    assert world.again() == {VET} | world.of("ga (seed 0)", ": judge")


def test_the_template(world: Changed) -> None:
    # Benchmarks and plain text have none; what was trained with it is another model.
    base = world.of("base: copa", "base: piqa", "base: held-out")
    assert len(base) == 3
    assert world.again(template="Q: {prompt}\nA:") == world.labels - {VET} - base


def test_the_decoding(world: Changed) -> None:
    changed = world.again(decoding={"max_new_tokens": 4, "batch_size": 8})
    assert changed == world.of("ga (seed 0)", ": answer", ": judge")


def test_a_task_file(world: Changed) -> None:
    file = next((world.folder / "tasks").glob("*copa.yaml"))
    file.write_text(file.read_text() + "\n# another version\n")
    assert world.again() == world.of(": copa")
    assert world.again(benchmark_batch_size=4) == world.of(": copa", ": piqa")


@pytest.mark.parametrize(
    ("library", "parts"), [("lm-eval", (": copa", ": piqa")), ("detoxify", ("vet", "judge")), ("peft", ("sft", "ga"))]
)
def test_another_version_of_a_library(
    world: Changed, monkeypatch: pytest.MonkeyPatch, library: str, parts: tuple[str, ...]
) -> None:
    known = jobs_job.version
    monkeypatch.setattr(jobs_job, "version", lambda name: "0.0.1" if name == library else known(name))
    assert world.again() == world.of(*parts)


def afterwards(stage: str, do: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Something happens after each job of this stage."""
    perform = executor.execute_job

    def performed(store: Store, job: Any, *rest: Any) -> Any:
        outcome = perform(store, job, *rest)
        if job.stage == stage:
            do()
        return outcome

    monkeypatch.setattr(executor, "execute_job", performed)


def test_a_model_that_changes_while_the_run_is_under_way(world: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(world.store)

    def other_weights() -> None:
        file = world.folder / "model" / "model.safetensors"
        weights = load_file(file)
        save_file({name: value + 1 for name, value in weights.items()}, file, metadata={"format": "pt"})

    afterwards("calibrate", other_weights, monkeypatch)
    with pytest.raises(UserError, match="the files in model changed during the run"):
        world.again()


def test_a_judge_that_changes_while_the_run_is_under_way(world: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(world.store)

    def other_judge() -> None:
        with (world.folder / "judge" / "judge.ckpt").open("ab") as f:
            f.write(b"\0")

    afterwards("generate", other_judge, monkeypatch)
    world.again()
    failed = json.loads((world.folder / "again" / "results.json").read_text())["run"]["failed"]
    judged = [item for item in failed if ": judge " in item["job"]]
    assert judged
    assert all("the judge detoxify:judge.ckpt is not the one that this run began with" in i["reason"] for i in judged)
