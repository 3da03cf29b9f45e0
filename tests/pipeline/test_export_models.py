from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from wpn_bench.core.files import digest_file, digest_of, write_json
from wpn_bench.jobs.store import MANIFEST, Store
from wpn_bench.pipeline import export_models
from wpn_bench.pipeline.export_models import Export


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A trained model, as far as its files go."""
    with Store(tmp_path / "store").build("train", "d" * 64, {}) as out:
        (out / "model.safetensors").write_bytes(b"weights")
        (out / "config.json").write_text("{}")
        (out / "adapter").mkdir()
        (out / "adapter" / "adapter_model.safetensors").write_bytes(b"small")
        (out / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": null, "r": 4}')
        write_json(out / "training.json", {"method": "sft", "steps": 1, "stopped": "all steps done", "lr": 0.1})
    return tmp_path / "store" / "train" / ("d" * 64)


def results(revision: str | None = None) -> dict[str, Any]:
    run = {"model": "facebook/opt-125m", "revision": revision, "lab": False, "limit": None, "template": "{prompt}"}
    model = {"title": "SFT", "paper": "none", "config": {}}
    return {"run": {**run, "seeds": [0]}, "models": {"sft": model}, "metrics": []}


PLAIN: dict[str, Any] = {"wpn_bench": "0", "prompt_sets": {}, "texts": {}, "tasks": {}}


def one_of(artifact: Path, seeds: tuple[int, ...] = (0,)) -> list[Export]:
    return export_models.collect({("sft", seed): artifact for seed in seeds}, seeds)


def test_the_digest_is_that_of_the_weights(artifact: Path) -> None:
    (one,) = one_of(artifact)
    assert one.digest == digest_file(artifact / "model.safetensors")
    assert one.folder == "models/sft"
    parts = {"a.safetensors": "1" * 64, "b.safetensors": "2" * 64}
    assert Export("x", 0, "", artifact, {**parts, "config.json": "3" * 64}).digest == digest_of(parts)


def test_folders_name_the_seed_where_there_are_several(artifact: Path) -> None:
    assert [e.folder for e in one_of(artifact, (0, 3))] == ["models/sft-seed0", "models/sft-seed3"]
    trained = {("sft", 0): artifact, ("sft", 1): None, ("my/method", 0): artifact}
    assert [e.folder for e in export_models.collect(trained, (0, 1))] == ["models/sft-seed0", "models/my-method-seed0"]


def test_weights_are_links_and_small_files_copies(artifact: Path, tmp_path: Path) -> None:
    export_models.write(tmp_path / "run", one_of(artifact), results(), PLAIN)
    folder = tmp_path / "run" / "models" / "sft"
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (folder / name).samefile(artifact / name)
        assert (folder / name).stat().st_mode & 0o777 == 0o644
    for name in ("config.json", "training.json"):
        assert (folder / name).read_bytes() == (artifact / name).read_bytes()
        assert not (folder / name).samefile(artifact / name)
    assert (folder / "README.md").read_text().startswith("---\n")
    assert not (folder / MANIFEST).exists()
    assert [p.name for p in (tmp_path / "run" / "models").iterdir()] == ["sft"]


def test_snapshots_of_earlier_steps_stay_in_the_store(artifact: Path, tmp_path: Path) -> None:
    files = {**one_of(artifact)[0].files, "step-5/model.safetensors": "5" * 64}
    one = Export("sft", 0, "models/sft", artifact, files)
    export_models.write(tmp_path / "run", [one], results(), PLAIN)
    assert not (tmp_path / "run" / "models" / "sft" / "step-5").exists()
    assert (tmp_path / "run" / "models" / "sft" / "adapter").is_dir()
    assert one.digest == digest_file(artifact / "model.safetensors")


def test_copies_where_links_cannot_be(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    export_models.write(tmp_path / "run", one_of(artifact), results(), PLAIN)
    copy = tmp_path / "run" / "models" / "sft" / "model.safetensors"
    assert copy.read_bytes() == b"weights"
    assert not copy.samefile(artifact / "model.safetensors")


def test_an_adapter_knows_its_base_where_that_has_a_public_name(artifact: Path, tmp_path: Path) -> None:
    config = Path("models/sft/adapter/adapter_config.json")
    export_models.write(tmp_path / "own", one_of(artifact), results(), PLAIN)
    assert json.loads((tmp_path / "own" / config).read_text()) == {"base_model_name_or_path": None, "r": 4}
    export_models.write(tmp_path / "hub", one_of(artifact), results("c" * 40), PLAIN)
    assert json.loads((tmp_path / "hub" / config).read_text()) == {
        "base_model_name_or_path": "facebook/opt-125m",
        "revision": "c" * 40,
        "r": 4,
    }


def test_another_run_into_the_same_folder(artifact: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "models" / "theirs").mkdir(parents=True)
    export_models.write(run, one_of(artifact, (0, 1)), results(), PLAIN)
    before = {"sft": {str(e.seed): {"folder": e.folder} for e in one_of(artifact, (0, 1))}}
    write_json(run / MANIFEST, {"models": before})
    export_models.write(run, one_of(artifact), results(), PLAIN)
    # What the earlier run had made is gone; what it had not is none of ours.
    assert {p.name for p in (run / "models").iterdir()} == {"sft", "theirs"}
    export_models.write(run, one_of(artifact), results(), PLAIN)
    assert (run / "models" / "sft" / "model.safetensors").samefile(artifact / "model.safetensors")


@pytest.mark.parametrize("folder", ["../elsewhere", "models/../../elsewhere", ".", "models", "models/a/b", "/tmp"])
def test_a_manifest_cannot_name_others_folders_to_be_removed(artifact: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    run = tmp_path / "run"
    (run / "models" / "a" / "b").mkdir(parents=True)
    write_json(run / MANIFEST, {"models": {"sft": {"0": {"folder": folder}}}})
    export_models.write(run, one_of(artifact), results(), PLAIN)
    assert (tmp_path / "elsewhere").is_dir()
    assert (run / "models" / "a" / "b").is_dir()


@pytest.mark.parametrize("manifest", ["", "[]", '{"models": 3}', '{"models": {"a": {"0": {}}}}'])
def test_a_manifest_that_says_nothing(artifact: Path, tmp_path: Path, manifest: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / MANIFEST).write_text(manifest)
    export_models.write(tmp_path / "run", one_of(artifact), results(), PLAIN)
    assert (tmp_path / "run" / "models" / "sft" / "config.json").is_file()
