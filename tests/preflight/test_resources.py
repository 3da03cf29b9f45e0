"""Resource estimates, and the rejection of runs before anything is downloaded or loaded."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import OPTConfig

from wpn_bench import config, models
from wpn_bench.core.progress import Reporter
from wpn_bench.errors import UserError
from wpn_bench.models import loading
from wpn_bench.pipeline import runner
from wpn_bench.preflight import estimates, resources
from wpn_bench.preflight.estimates import ModelSpec
from wpn_bench.preflight.resources import FitCheck

Cli = Callable[..., Any]
GIB = estimates.GIB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the configuration of OPT-1.3B, without weights."""
    folder = tmp_path_factory.mktemp("large")
    OPTConfig(
        hidden_size=2048, word_embed_proj_dim=2048, ffn_dim=8192, num_hidden_layers=24, num_attention_heads=32
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the free memory in GiB: `free(8)`."""

    def set_to(gib: float) -> None:
        monkeypatch.setattr("wpn_bench.core.device_memory.free_memory", lambda device: int(gib * GIB))

    set_to(64)
    return set_to


def subject(folder: Path, **changes: Any) -> ModelSpec:
    settings = config.build("lab").model_dump() | {"model": str(folder), "methods": {"wpn": {}, "ga": {}}}
    found = ModelSpec.of(config.from_settings(settings | {"device": "cpu"} | changes))
    assert found is not None
    return found


# --- estimates -------------------------------------------------------------------------------------------------------


def test_weights(large: Path, small_lm: Path) -> None:
    assert subject(large).weights() == 4 * 1_315_758_080  # like facebook/opt-1.3b
    assert subject(large, dtype="bfloat16").weights() == 2 * 1_315_758_080
    real = models.load_fresh(small_lm)
    n = sum(p.numel() for p in real.parameters())
    assert subject(small_lm).parameters == n
    assert models.weights_bytes(small_lm, "bfloat16") == 2 * n


def test_every_stage_has_a_need(large: Path) -> None:
    attacks = {"gradient_attacks": {"gcg": {}}, "quantise": ("int8",), "relearn": {}, "relearn_search": {}}
    found = {(need.stage, need.name): need for need in estimates.memory_needs(subject(large, **attacks))}
    assert list(found) == [
        ("train", "wpn"), ("train", "ga"), ("generate", ""), ("gcg", "gcg"), ("quantise", "int8"), ("relearn", "relearn"),
        ("relearn_search", "relearn_search"),
    ]  # fmt: skip
    weights = subject(large).weights()
    assert found["train", "wpn"].memory > 5 * weights  # with a reference
    assert 4 * weights < found["train", "ga"].memory < found["train", "wpn"].memory
    assert weights < found["generate", ""].memory < found["gcg", "gcg"].memory < 2 * weights
    assert found["relearn", "relearn"].memory == found["relearn_search", "relearn_search"].memory > 4 * weights
    only = {need.stage for need in estimates.memory_needs(subject(large, stages=("train",), **attacks))}
    assert only == {"train"}


def test_memory_of_offloading(large: Path) -> None:
    whole, spread = (estimates.inference_memory(subject(large, offload=way)) for way in ("none", "disk"))
    assert spread.parts["weights"] == 2 * 4 * 50272 * 2048
    assert spread.memory < whole.memory / 3


def test_store_usage(large: Path) -> None:
    """Computed by hand: models of 2 methods and 3 seeds, and checkpoints (with Adam's states) of one training at a time."""
    one = subject(large).weights()
    plain = estimates.store_usage(subject(large, seeds=(0, 1, 2)))
    assert (plain.trained, plain.snapshots, plain.rounded) == (6 * one, 0, 0)
    assert plain.checkpoints == 2 * 3 * one  # after 50 and 100 steps
    assert estimates.store_usage(subject(large, seeds=(0, 1, 2)), done=4).trained == 2 * one
    assert estimates.store_usage(subject(large, seeds=(0, 1, 2)), done=6) == estimates.StoreUsage(0, 0, 0, 0)
    assert estimates.store_usage(subject(large, tune=4, tune_halving=False)).trained == (2 + 8) * one
    assert estimates.store_usage(subject(large, tune=4)).trained == (2 + 3 * 8) * one  # up to two pauses of each trial
    relearn = {"kinds": ("harmful",), "steps": (0, 5, 10)}
    attacked = estimates.store_usage(subject(large, dtype="bfloat16", relearn=relearn, quantise=("int8", "int4")))
    assert attacked.snapshots == 3 * 2 * one  # base and two methods after two steps, in float32
    assert attacked.rounded == 3 * 2 * one // 2
    searched = estimates.store_usage(subject(large, dtype="bfloat16", methods={}, relearn_search={}))
    assert (searched.snapshots, searched.checkpoints) == (0, 3 * 3 * one)
    assert attacked.total == sum((attacked.trained, attacked.snapshots, attacked.rounded, attacked.checkpoints))


# --- checks ----------------------------------------------------------------------------------------------------------


def test_one_model_at_a_time_is_enough(large: Path, free: Callable[[float], None]) -> None:
    for gib, fits, text in (
        (16, True, "fits: the base"),
        (10, True, "fits one model"),
        (5, False, "does not fit: one"),
    ):
        free(gib)
        found = resources.check_inference(subject(large))
        assert (found.fits, found.text.startswith(text)) == (fits, True), found


@pytest.mark.parametrize(
    ("gib", "changes", "hint"),
    [
        (5, {}, "use --dtype bfloat16"),
        (5, {"dtype": "bfloat16"}, None),
        (3.5, {}, "use --offload disk"),
        (3.5, {"offload": "cpu"}, "use --offload disk"),
        (3.5, {"offload": "disk"}, None),
        (1.2, {"offload": "disk"}, "use a smaller model"),
    ],
)
def test_the_option_that_makes_inference_fit(
    large: Path, free: Callable[[float], None], gib: float, changes: dict[str, Any], hint: str | None
) -> None:
    free(gib)
    found = resources.check_inference(subject(large, **changes))
    assert found.fits == (hint is None)
    assert found.hint.startswith(hint or "")


@pytest.mark.parametrize(
    ("gib", "options", "hint"),
    [
        (16, {}, "use --lora 16 --gradient-checkpointing"),
        (10.5, {}, "use --lora 16 --gradient-checkpointing --dtype bfloat16 ("),
        (
            10.5,
            {"mixed_precision": "bf16"},
            "use --lora 16 --gradient-checkpointing --dtype bfloat16 --mixed-precision no (",
        ),
        (5, {}, "use --lora 16 --gradient-checkpointing --dtype bfloat16 and `training: {batch_size: 1, "),
        (2, {}, "use a smaller model"),
    ],
)
@pytest.mark.slow
def test_the_options_that_make_training_fit(
    large: Path, free: Callable[[float], None], gib: float, options: dict[str, Any], hint: str
) -> None:
    free(gib)
    found = resources.check_training(subject(large, training=options))
    assert not found.fits
    assert found.text.startswith("does not fit: wpn needs at most ")
    assert found.hint.startswith(hint), found.hint
    typed = found.hint.partition("use --")[2]
    if typed and "batch_size" not in typed:  # with batch size 1 it fits
        given = {"lora": 16, "gradient_checkpointing": True}
        dtype = "bfloat16" if "bfloat16" in typed else "float32"
        assert resources.check_training(subject(large, training=given, dtype=dtype)).fits


def test_attacks_need_the_whole_model(large: Path, free: Callable[[float], None]) -> None:
    free(6)
    asked = subject(large, gradient_attacks={"gcg": {}}, quantise=("int8",), relearn={}, offload="disk")
    found = list(resources.check_attacks(asked))
    assert [one.text.split()[3] for one in found] == ["gcg", "int8", "relearn"]
    assert not any(one.fits for one in found)
    assert all("--attacks" in one.hint for one in found)
    free(64)
    assert all(one.fits for one in resources.check_attacks(asked))


def test_a_context_too_small_for_a_response(large: Path) -> None:
    decoding = {"max_new_tokens": 2048}
    with pytest.raises(UserError, match=r"has a context of 2048 tokens.*; use --max-new-tokens below 2048"):
        resources.check_resources(subject(large, decoding=decoding).config, force=True)


def test_a_model_that_cannot_be_estimated_is_accepted_with_a_note(
    large: Path, free: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(subject: ModelSpec) -> FitCheck:
        raise TypeError("forward() got an unexpected keyword")

    monkeypatch.setattr(resources, "check_training", fails)
    notes: list[str] = []
    resources.check_resources(subject(large).config, warn=notes.append)
    assert len(notes) == 1
    assert "the memory of OPTForCausalLM cannot be estimated (forward() got" in notes[0]


# --- disk ------------------------------------------------------------------------------------------------------------


@pytest.mark.hub
def test_download_size(hub_with: Callable[..., dict[str, str]], run_python: Any) -> None:
    """It is the size of the files that `resolve` downloads, and zero once they are cached."""
    code = (
        "from pathlib import Path; from wpn_bench import models; from wpn_bench.preflight import estimates, resources\n"
        "asked = 'facebook/opt-125m'; before = estimates.download_bytes(asked)\n"
        "folder = models.resolve(asked).path\n"
        "print(before, sum(p.stat().st_size for p in folder.iterdir()), estimates.download_bytes(asked))\n"
        "print(estimates.download_bytes('no/such-model'))\n"
    )
    before, fetched, after, unknown = map(int, run_python(code, hub_with()).stdout.split())
    assert before == fetched > 1_000_000
    assert (after, unknown) == (0, 0)


def test_a_download_that_exceeds_the_disk(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "download_bytes", lambda asked, revision: 3 * GIB)
    for free, fits in ((2 * GIB, False), (4 * GIB, True)):
        monkeypatch.setattr(resources, "free_disk", lambda folder, free=free: free)
        found = resources.check_download(subject(large).config)
        assert found.fits == fits
        assert ("set HF_HOME" in found.hint) != fits
        assert "3.0 GiB" in found.text


@pytest.mark.slow
def test_trained_models_that_exceed_the_disk_unless_cached(
    small_opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, triples: list[dict[str, Any]], write_jsonl: Any
) -> None:
    """The disk has space for one more model: too little for two, but enough for the second if the first is stored."""
    forget = write_jsonl(tmp_path / "forget.jsonl", triples)
    settings = config.build("lab").model_dump() | {
        "model": str(small_opt), "forget": str(forget), "in_domain": (), "ood": (), "benign": (), "validation": None,
        "stages": ("train",), "benchmarks": (), "vet": True, "device": "cpu", "retain": "lab_retain", "heldout": None,
        "training": {"steps": 1, "save_every": 0},
    }  # fmt: skip

    def run(*methods: str, **options: Any) -> dict[str, Any]:
        asked = config.from_settings(settings | {"methods": {name: {} for name in methods}})
        store, out = tmp_path / "store", tmp_path / "out"
        return runner.run(asked, out=out, store=store, reporter=Reporter(), command="", **options)

    one = models.weights_bytes(small_opt, "float32")
    monkeypatch.setattr(resources, "free_disk", lambda folder: int(1.5 * one))
    with pytest.raises(UserError, match=r"store: .* the trained models alone may need .*--force"):
        run("sft", "ga")
    assert not (tmp_path / "store" / "train").exists()
    assert run("sft")["models"]["sft"]["status"] == "ok"
    results = run("sft", "ga")
    assert results["models"]["ga"]["status"] == "ok"
    monkeypatch.setattr(resources, "free_disk", lambda folder: 0)
    assert run("sft", "npo", force=True)["models"]["npo"]["status"] == "ok"


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["full", "train", "harmless", "attack", "benchmarks"])
def test_a_run_is_rejected_in_one_line_before_anything_is_loaded(
    command: str, large: Path, free: Callable[[float], None], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(16)

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was asked for")

    monkeypatch.setattr(models, "resolve", loaded)
    # Simulate a model on the hub.
    monkeypatch.setattr(models, "lies_here", lambda asked: False)
    monkeypatch.setattr(models, "settings_folder", lambda asked, revision: large)
    where = ("--out", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu")
    start = time.process_time()
    said = cli(command, "-m", large, "--preset", "lab", "--methods", "wpn", *where)
    assert time.process_time() - start < 15  # CPU seconds, so that other load does not matter
    assert (said.code, said.out) == (2, "")
    (line,) = said.err.strip().splitlines()
    assert line.startswith("wpn-bench: training: does not fit: wpn needs at most ")
    assert "available on cpu; use --lora 16" in line
    assert "--force" in line
    assert not (tmp_path / "out").exists()
    said = cli(command, "-m", large, "--preset", "lab", "--methods", "wpn", *where, "--force")
    assert said.code == 1
    assert "AssertionError: the model was asked for" in said.err


def test_an_implausible_number_of_layers(large: Path, tmp_path: Path) -> None:
    """Before the download, only config.json of a model on the hub is known."""
    config = json.loads((large / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    with pytest.raises(UserError, match="has 1000000000 layers"):
        subject(tmp_path)


def test_a_forced_run_prints_warnings(large: Path, free: Callable[[float], None]) -> None:
    free(1)
    notes: list[str] = []
    resources.check_resources(subject(large).config, force=True, warn=notes.append)
    assert [note.split(":")[1].strip() for note in notes] == ["training", "measuring"]
    assert all(note.endswith("continuing because of --force") for note in notes)


@pytest.mark.slow
def test_offloading_to_disk_gives_the_same_results(
    small_opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, triples: list[dict[str, Any]], write_jsonl: Any,
    comparable: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:  # fmt: skip
    """A whole run with `offload: disk` and no memory for the weights gives the same results as one in memory."""
    base = shutil.copytree(small_opt, tmp_path / "base")
    tests = write_jsonl(
        tmp_path / "tests.jsonl", [{"prompt": f"Where does the {r['prompt'][13:]}"} for r in triples[:6]]
    )
    settings = config.build("lab").model_dump() | {
        "model": str(base), "methods": {"sft": {"steps": 2}}, "forget": str(write_jsonl(tmp_path / "f.jsonl", triples)),
        "in_domain": (str(tests),), "ood": (), "benign": (), "attacks": (), "validation": None, "device": "cpu",
        "benchmarks": ("lab_copa",), "limit": 6, "decoding": {"max_new_tokens": 6},
    }  # fmt: skip
    found, placed = [], []
    real = loading._placement

    def noting(*given: Any) -> dict[str, Any]:
        placed.append(real(*given))
        return placed[-1]

    monkeypatch.setattr(loading, "_placement", noting)
    for way in ("none", "disk"):
        monkeypatch.setattr(loading, "_LOADED", type(loading._LOADED)())
        monkeypatch.setattr(loading, "free_under_ulimit", lambda way=way: 0.0 if way == "disk" else float("inf"))
        placed.clear()
        asked = config.from_settings(settings | {"offload": way})
        results = runner.run(
            asked, out=tmp_path / way, store=tmp_path / f"store-{way}", reporter=Reporter(), command=""
        )
        assert not results["run"]["failed"]
        assert any(place.get("max_memory") == {"cpu": 0} for place in placed) == (way == "disk")
        found.append(json.dumps(comparable(results), sort_keys=True))
    assert found[0] == found[1]


def test_the_index_of_a_gpu_is_ignored(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "pick_device", lambda asked: "cuda:1")
    found = ModelSpec(SimpleNamespace(device="cuda:1"), None, None)  # type: ignore[arg-type]
    assert found.device == "cuda"
