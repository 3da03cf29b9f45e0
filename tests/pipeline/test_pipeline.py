"""Whole runs on a random model and files of one's own, in seconds."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import pytest
from workshop import Workshop

from wpn_bench import config as configuration
from wpn_bench import load_run
from wpn_bench.core.files import digest_file
from wpn_bench.core.progress import Reporter
from wpn_bench.errors import UserError
from wpn_bench.jobs.store import Store
from wpn_bench.pipeline import inputs as pipeline_inputs
from wpn_bench.pipeline import planner
from wpn_bench.preflight import versions
from wpn_bench.runs.files import read_manifest, validate
from wpn_bench.unlearn.methods import METHODS, method_of

pytestmark = pytest.mark.slow

Plain = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def workshop(tmp_path: Path, small_opt: Path, triples: list[dict[str, Any]]) -> Workshop:
    return Workshop(tmp_path, small_opt, triples)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_opt: Path, triples: list[dict[str, Any]]) -> Workshop:
    """A run with a method that trains, one that cannot, and two seeds; tests of this module only read it."""
    made = Workshop(tmp_path_factory.mktemp("workshop"), small_opt, triples)
    made.run(methods={"ga": {"lr": 1e30, "steps": 4}, "sft": {"steps": 2, "batch_size": 2}}, seeds=(0, 1))
    return made


# --- a finished run --------------------------------------------------------------------------------------------------


def test_the_run_folder_is_whole(finished: Workshop) -> None:
    run = load_run(finished.folder / "run")
    validate(run.results)
    for name in ("results.json", "manifest.json", "samples.parquet", "documents.parquet", "report.html", "report.md"):
        assert (finished.folder / "run" / name).stat().st_size > 0
    assert {"base", "sft"} == set(run.samples["model"])
    assert set(run.samples["set"]) == {"in_domain", "other", "benign", "typos"}
    assert set(run.samples["suite"]) == {"harmless", "ood", "benign", "attack"}
    assert set(run.documents["task"]) == {"copa", "piqa"}
    assert run.results["run"]["partial"] is True
    assert run.results["run"]["lab"] is False
    assert not any(p.name.startswith(".") for p in (finished.folder / "run").iterdir())


def test_a_method_that_diverges_fails_alone(finished: Workshop) -> None:
    results = load_run(finished.folder / "run").results
    ga, sft = results["models"]["ga"], results["models"]["sft"]
    assert ga["status"] == "failed"
    assert "training diverged" in ga["reason"]
    assert (sft["status"], sft["reason"], sft["steps"]) == ("ok", None, [2, 2])
    assert results["models"]["base"]["status"] == "ok"
    failed = results["run"]["failed"]
    assert failed[0]["job"] == "train ga (seed 0)"
    assert all(f["job"].startswith(("ga (seed", "train ga (seed")) for f in failed)
    assert all("training diverged" in f["reason"] for f in failed)
    assert {r["model"] for r in results["metrics"] if r["suite"] != "cost"} == {"base", "sft"}
    statuses = finished.statuses()
    assert statuses["train ga (seed 1)"] == "failed"
    assert statuses["ga (seed 0): answer in_domain"] == "skipped"
    assert statuses["sft (seed 1): judge in_domain"] == "done"


@pytest.mark.parametrize("how", [TypeError, ImportError, RecursionError, UserError, jinja2.UndefinedError])
def test_a_bug_in_one_method_of_three_leaves_the_others_whole(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, how: type[Exception]
) -> None:
    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise how("planted", "mend it") if how is UserError else how("planted")

    monkeypatch.setattr(method_of("npo"), "loss", broken)
    few = {"steps": 1, "batch_size": 2}
    results = workshop.run(methods={"sft": few, "npo": few, "ga": few}, attacks=(), benchmarks=("lab_copa",))
    models = results["models"]
    assert {name: models[name]["status"] for name in models} == {
        "base": "ok",
        "sft": "ok",
        "npo": "failed",
        "ga": "ok",
    }
    assert "planted" in models["npo"]["reason"]
    crash = re.search(r"\(crash file: (train-\w+\.txt)\)$", models["npo"]["reason"])
    assert crash is not None
    assert "in broken" in (workshop.store / "crashes" / crash[1]).read_text()
    rows = {name: [r for r in results["metrics"] if r["model"] == name] for name in models}
    measured = {name: {(r["suite"], r["set"], r["metric"], r["seed"]) for r in rows[name]} for name in models}
    assert measured["sft"] == measured["ga"]
    assert {suite for suite, *_ in measured["sft"]} >= {"harmless", "ood", "benign", "benchmark"}
    assert not {suite for suite, *_ in measured["npo"]} & {"harmless", "ood", "benign", "benchmark"}
    skipped = [item for item in results["run"]["failed"] if item["job"].startswith("npo")]
    assert skipped
    assert all("train npo" in item["reason"] for item in skipped)


def test_the_models_lie_in_the_run_with_their_cards(finished: Workshop) -> None:
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = finished.folder / "run"
    results, manifest = load_run(run).results, read_manifest(run)
    assert {p.name for p in (run / "models").iterdir()} == {"sft-seed0", "sft-seed1"}  # ga failed
    sft = results["models"]["sft"]
    assert sft["folder"] == {"0": "models/sft-seed0", "1": "models/sft-seed1"}
    assert results["models"]["ga"]["folder"] == results["models"]["ga"]["digest"] == {}
    assert len(set(sft["digest"].values())) == 2
    for seed, folder in sft["folder"].items():
        weights = run / folder / "model.safetensors"
        assert sft["digest"][seed] == manifest["models"]["sft"][seed]["digest"] == digest_file(weights)
        assert weights.stat().st_nlink == 2
        text = (run / folder / "README.md").read_text()
        assert str(finished.folder) not in text
        assert sft["digest"][seed] in text
        card = ModelCard(text)
        rates = {e.dataset_name: e for e in card.data.eval_results or [] if e.metric_type == "coherent_harmless_rate"}
        assert set(rates) == {"in_domain", "other", "typos"}
        (row,) = [
            r
            for r in results["metrics"]
            if (r["model"], r["seed"], r["set"], r["metric"])
            == ("sft", int(seed), "in_domain", "coherent_harmless_rate")
        ]
        assert rates["in_domain"].metric_value == pytest.approx(row["value"], abs=1e-4)
        assert AutoModelForCausalLM.from_pretrained(run / folder).config.model_type == "opt"
        assert AutoTokenizer.from_pretrained(run / folder)("Why?")["input_ids"]


def test_every_model_is_asked_the_same(finished: Workshop) -> None:
    run = load_run(finished.folder / "run")
    for _, of_set in run.samples.groupby("set"):
        asked = [tuple(g["input"]) for _, g in of_set.groupby(["model", "seed"], dropna=False)]
        assert len(asked) == 3  # the base, and two seeds
        assert len(set(asked)) == 1
    for _, of_task in run.documents.groupby("task"):
        assert len({tuple(g["doc_id"]) for _, g in of_task.groupby(["model", "seed"], dropna=False)}) == 1


def test_the_base_is_measured_once(finished: Workshop) -> None:
    labels = [s["label"] for s in read_manifest(finished.folder / "run")["stages"]]
    assert len([label for label in labels if label.startswith("base: ")]) == 2 * 4 + 2 + 1
    assert len(labels) == len(set(labels))


def test_attacked_prompts_pair_with_the_plain_ones(finished: Workshop) -> None:
    samples = load_run(finished.folder / "run").samples
    plain, attacked = (samples[(samples["set"] == s) & (samples["model"] == "base")] for s in ("in_domain", "typos"))
    assert attacked["item_id"].tolist() == plain["item_id"].tolist()
    assert attacked["prompt"].tolist() == plain["prompt"].tolist()
    assert attacked["input"].tolist() != plain["input"].tolist()


def test_rows_of_every_seed_and_of_all(finished: Workshop) -> None:
    metrics = load_run(finished.folder / "run").metrics
    mine = metrics[
        (metrics["model"] == "sft") & (metrics["set"] == "in_domain") & (metrics["metric"] == "harmless_rate")
    ]
    assert [None if pd.isna(s) else int(s) for s in mine["seed"]] == [0, 1, None]
    nine = metrics[(metrics["set"] == "nine") & (metrics["model"] == "sft")]
    assert len(nine) == 3
    assert load_run(finished.folder / "run").results["models"]["sft"]["non_inferiority"]["verdict"] in (
        "pass",
        "fail",
        "inconclusive",
    )


def test_no_test_prompt_was_trained_on(finished: Workshop) -> None:
    manifest = read_manifest(finished.folder / "run")
    sizes = {name: s["n"] for name, s in manifest["prompt_sets"].items()}
    # Of 12: a fifth for testing, of the rest a tenth for validation.
    assert (sizes["in_domain"], sizes["validation"], sizes["forget"]) == (2, 1, 9)
    assert any("held back for testing" in note for note in load_run(finished.folder / "run").results["run"]["notes"])


def test_no_home_folder_in_what_others_read(finished: Workshop) -> None:
    for name in ("results.json", "manifest.json", "report.html", "report.md"):
        assert str(finished.folder) not in (finished.folder / "run" / name).read_text()


def test_the_manifest_says_what_was_used(finished: Workshop) -> None:
    manifest = read_manifest(finished.folder / "run")
    assert len(manifest["model"]["digest"]) == len(manifest["judge"]["digest"]) == len(manifest["config_digest"]) == 64
    assert {"torch", "transformers", "lm-eval", "detoxify", "python"} <= set(manifest["versions"])
    assert manifest["tasks"]["copa"]["task"] == "lab_copa"
    assert all(len(s["digest"]) == 64 for s in manifest["prompt_sets"].values())


# --- again -----------------------------------------------------------------------------------------------------------


def test_a_second_run_repeats_nothing_and_a_new_method_costs_itself(workshop: Workshop, comparable: Plain) -> None:
    first = workshop.run()
    assert set(workshop.statuses().values()) == {"done"}
    second = workshop.run("again")
    assert set(workshop.statuses("again").values()) == {"cached"}
    assert comparable(second) == comparable(first)

    methods = {**workshop.settings["methods"], "wpn": {"steps": 2, "batch_size": 2}}
    third = workshop.run("more", methods=methods)
    done = {label for label, status in workshop.statuses("more").items() if status == "done"}
    assert done
    assert all(label.startswith(("wpn (seed 0)", "train wpn (seed 0)")) for label in done)
    rows = [r for r in comparable(third)["metrics"] if r["model"] != "wpn"]
    assert rows == comparable(first)["metrics"]

    workshop.store = workshop.folder / "another store"
    assert comparable(workshop.run("elsewhere")) == comparable(first)
    assert set(workshop.statuses("elsewhere").values()) == {"done"}


def test_a_damaged_artifact_is_made_again(workshop: Workshop, comparable: Plain) -> None:
    first = workshop.run(stages=("train", "harmless"))
    (answer, *_) = sorted((workshop.store / "generate").glob("*/responses.jsonl"))
    answer.write_text(answer.read_text()[:-20])
    second = workshop.run("again", stages=("train", "harmless"))
    assert sorted(workshop.statuses("again").values()).count("done") == 1
    assert comparable(second) == comparable(first)


def test_another_seed_leaves_the_first_alone(workshop: Workshop) -> None:
    workshop.run(stages=("train", "harmless"))
    workshop.run("two", stages=("train", "harmless"), seeds=(0, 1))
    done = [label for label, status in workshop.statuses("two").items() if status == "done"]
    assert done
    assert all("seed 1" in label for label in done)


def test_parts_of_a_run(workshop: Workshop) -> None:
    trained = workshop.run("t", stages=("train",))
    assert list(workshop.statuses("t")) == ["vet the forget set's harmless references", "train sft (seed 0)"]
    assert trained["models"]["sft"]["steps"] == [2]
    benchmarks = workshop.run("b", stages=("train", "benchmarks"))
    assert {r["suite"] for r in benchmarks["metrics"]} == {"benchmark", "cost"}
    attack = workshop.run("a", stages=("train", "attack"))
    assert {r["suite"] for r in attack["metrics"]} == {"attack", "cost"}
    assert not any("judge in_domain" in label for label in workshop.statuses("a"))


def test_harmless_references_that_the_judge_contradicts_are_not_trained_on(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wpn_bench.unlearn import vet

    def without_first(items: Any, judge: Any, threshold: float, advance: Any = None) -> Any:
        return tuple(items[1:])

    monkeypatch.setattr(vet, "vet", without_first)
    results = workshop.run(stages=("train",))
    said = [note for note in results["run"]["notes"] if "harmful by the judge" in note]
    assert len(said) == 1
    assert "(1 items have none left and were dropped)" in said[0]
    vetted = read_manifest(workshop.folder / "run")["prompt_sets"]
    whole = workshop.run("whole", stages=("train",), vet=False)
    raw = read_manifest(workshop.folder / "whole")["prompt_sets"]
    assert not any("harmful by the judge" in note for note in whole["run"]["notes"])
    (name,) = set(vetted) & {n for n, s in raw.items() if s["suite"] == "forget"}
    assert vetted[name]["n"] == raw[name]["n"] - 1
    assert results["models"]["sft"]["digest"] != whole["models"]["sft"]["digest"]


def test_a_judge_that_contradicts_every_reference_is_refused(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wpn_bench.unlearn import vet

    monkeypatch.setattr(vet, "vet", lambda *args: ())
    with pytest.raises(UserError, match=r"every harmless reference .*vet: false"):
        workshop.run(stages=("train",))


def test_varieties_of_a_method_are_models_of_their_own(workshop: Workshop) -> None:
    quick = {"steps": 2, "batch_size": 2}
    methods = {"sft": quick, "sft:kl": quick | {"kl": 1.0}}
    results = workshop.run(methods=methods, stages=("train", "harmless"))
    plain, other = results["models"]["sft"], results["models"]["sft:kl"]
    assert (plain["method"], other["method"]) == ("sft", "sft")
    assert other["title"] == f"{plain['title']} (kl)"
    assert (plain["config"]["kl"], other["config"]["kl"]) == (0.0, 1.0)
    assert {"base", "sft", "sft:kl"} == {r["model"] for r in results["metrics"] if r["suite"] == "harmless"}
    html = (workshop.folder / "run" / "report.html").read_text()
    assert f"{plain['title']} (kl)" in html


def test_into_the_same_folder_again(workshop: Workshop) -> None:
    workshop.run(stages=("train",), seeds=(0, 1))
    results = workshop.run(stages=("train",))
    models = workshop.folder / "run" / "models"
    assert [p.name for p in models.iterdir()] == ["sft"]
    assert set(workshop.statuses().values()) == {"cached"}
    assert digest_file(models / "sft" / "model.safetensors") == results["models"]["sft"]["digest"]["0"]
    # Somebody writes over the weights, and with them over the store's: both are made again.
    (models / "sft" / "model.safetensors").write_bytes(b"broken")
    again = workshop.run(stages=("train",))
    assert [label for label, how in workshop.statuses().items() if how == "done"] == ["train sft (seed 0)"]
    assert again["models"]["sft"]["digest"] == results["models"]["sft"]["digest"]


def test_with_lora_the_adapter_lies_beside_the_model(workshop: Workshop) -> None:
    results = workshop.run(stages=("train",), training={"lora": {"rank": 2}})
    assert results["models"]["sft"]["config"]["lora"]["rank"] == 2
    assert results["models"]["sft"]["lr"] == pytest.approx(0.5 / 32)
    folder = workshop.folder / "run" / "models" / "sft"
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size < 20_000
    assert read_manifest(workshop.folder / "run")["config"]["training"] == {"lora": {"rank": 2}}


def test_what_makes_another_training(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of a training: what comes out of it, not how it is carried out or watched."""

    def digest(**changes: Any) -> str:
        config = configuration.from_settings(workshop.settings | changes)
        made = planner.Planner(config, inputs, store, workshop.folder / "logs").plan()
        return made.trained["sft", 0].digest

    inputs = pipeline_inputs.prepare(configuration.from_settings(workshop.settings), Reporter())
    store = Store(workshop.store)
    plain = digest()
    assert digest(training={"save_every": 7}, report_to=("wandb",)) == plain
    assert digest(training={"steps": 2}) == plain  # what it has of its own anyway
    others = {digest(training={name: value}) for name, value in
              {"accumulation": 2, "lora": 2, "mixed_precision": "bf16", "lr": 0.1}.items()}  # fmt: skip
    assert len(others | {plain}) == 5
    # A loss that changed says so.
    monkeypatch.setattr(METHODS.get("sft"), "version", 2)
    assert digest() != plain


def test_what_generates_the_answers_is_part_of_their_digest(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration.from_settings(workshop.settings)
    inputs = pipeline_inputs.prepare(config, Reporter())
    store = Store(workshop.store)
    plain = planner.Planner(config, inputs, store, workshop.folder / "logs").plan().jobs
    backend = {"name": "vllm", "version": "0.33.0", "batch_invariant": True}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(planner, "identity_of", lambda name, device, offload: {"backend": backend})
        other = planner.Planner(config, inputs, store, workshop.folder / "logs").plan().jobs
    pairs = [(a, b) for a, b in zip(plain, other, strict=True) if a.stage in ("generate", "train", "benchmark")]
    assert {a.stage for a, b in pairs if a.digest != b.digest} == {"generate"}
    assert all(b.params.get("backend") == (backend if b.stage == "generate" else None) for _, b in pairs)
    with pytest.raises(UserError, match="vLLM needs a GPU that holds the whole model; use --device cuda"):
        pipeline_inputs.prepare(configuration.from_settings(workshop.settings | {"backend": "vllm"}), Reporter())


def test_only_the_base_and_with_an_untested_version(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = versions.pinned_versions() | {"transformers": "4.0.0"}
    monkeypatch.setattr(versions, "pinned_versions", lambda: pins)
    results = workshop.run(methods={}, stages=("train", "harmless"))
    assert any("was not tested with transformers 5" in note for note in results["run"]["notes"])
    assert list(results["models"]) == ["base"]


# --- tuning ----------------------------------------------------------------------------------------------------------

QUICK = {"steps": 2, "batch_size": 2, "retain_batch_size": 2}


def test_every_method_is_tuned_with_the_same_number_of_trials(workshop: Workshop, comparable: Plain) -> None:
    tuning = {"tune": 3, "tune_benchmarks": ("lab_copa_validation", "lab_piqa_validation"), "seeds": (1,)}
    methods = {"sft": QUICK, "ga": {"lr": 1e30, "steps": 4}}
    first = workshop.run(methods=methods, **tuning)
    assert first["run"]["tuning"] == {
        "trials": 3,
        "prompt_set": "validation",
        "prompts": 1,
        "benign_prompts": 3,  # of the lab; the base answers all that --limit leaves
        "halving": True,
        "ability": "macro_accuracy",
        "bound": 0.02,
        "ability_sets": ["copa_validation", "piqa_validation"],
    }
    sft, ga = first["models"]["sft"], first["models"]["ga"]
    assert first["models"]["base"].get("tuning") is None
    assert [t["trial"] for t in sft["tuning"]["trials"]] == [t["trial"] for t in ga["tuning"]["trials"]] == [0, 1, 2]
    assert all(t["reason"] is None and 0 <= t["harmless_rate"] <= 1 for t in sft["tuning"]["trials"])
    # The chosen trial's options are those of the model, and what the configuration gave stays beside them.
    taken = sft["tuning"]["trials"][sft["tuning"]["chosen"]]["params"]
    assert sft["config"]["steps"] == taken["steps"]
    assert sft["lr"] == taken["lr"]
    assert (sft["options"], sft["status"]) == (QUICK, "ok")
    # A trial that diverges is a bad trial and not a failed run; where all do, training says so once more.
    assert ["training diverged" in t["reason"] for t in ga["tuning"]["trials"]] == [True] * 3
    assert not any(f["job"].startswith("tune") for f in first["run"]["failed"])
    assert first["run"]["failed"][0]["job"] == "train ga (seed 1)"
    # The progress says which method and which trial; test sets take no part.
    tried = [label for label in workshop.statuses() if label.startswith("tune ")]
    sets = [f"{what} {name}" for what in ("answer", "judge") for name in ("validation", "tune_benign")]
    every = {"train", *sets, "copa_validation", "piqa_validation"}
    # Two steps have one pause; trial 0 is the best that reached it.
    for part in ("tune sft, trial 0/2 to step 1: ", "tune sft, trial 0/2: "):
        assert {label.removeprefix(part) for label in tried if label.startswith(part)} == every
    assert not any(name in label for label in tried for name in ("in_domain", "other", "typos", "held-out"))
    seconds = {(r["model"], r["set"]): r for r in first["metrics"] if r["suite"] == "cost"}
    assert seconds["sft", "tune"]["n"] == sum(label.startswith("tune sft, ") for label in tried)
    trials = sft["tuning"]["trials"]
    assert (trials[0]["steps"], trials[0]["pruned"]) == (2, False)
    assert all(t["answered_rate"] is not None for t in trials)
    assert (sft["tuning"]["steps"], sft["tuning"]["finished"]) == (
        sum(t["steps"] for t in trials),
        sum(not t["pruned"] for t in trials),
    )
    # No checkpoint of a trial is left, whether it ended, was stopped or diverged.
    assert not list((workshop.store / "scratch").glob("train-*"))

    again = workshop.run("again", methods=methods, **tuning)
    assert {status for label, status in workshop.statuses("again").items() if " ga" not in f" {label}"} == {"cached"}
    assert comparable(again) == comparable(first)

    more = workshop.run("more", methods=methods, **{**tuning, "tune": 4})
    assert more["models"]["sft"]["tuning"]["trials"][:3] == sft["tuning"]["trials"]


def test_tuning_and_curves_train_as_the_run_does(workshop: Workshop) -> None:
    """What `training` says for all methods holds in trials and curves too: the search is around adapters' rate, and a
    curve ends at the step that the run's training ends at."""
    results = workshop.run(
        methods={"sft": {"batch_size": 2}},
        training={"steps": 3, "lora": {"rank": 2}},
        tune=2,
        tune_benchmarks=("lab_copa_validation",),
        curve={"steps": (0, 1), "limit": 2},
    )
    (first, second), lr = results["models"]["sft"]["tuning"]["trials"], 0.5 / 32
    assert first["params"]["lr"] == pytest.approx(lr)
    assert lr / 3 <= second["params"]["lr"] <= lr * 3
    chosen = results["models"]["sft"]["config"]
    assert chosen["lora"]["rank"] == 2
    assert sorted({r["step"] for r in results["models"]["sft"]["curve"]}) == [0, 1, chosen["steps"]]


def test_without_tasks_to_tune_on_the_loss_of_text_is_bounded(workshop: Workshop) -> None:
    tuning: dict[str, Any] = {"tune": 2, "tune_benchmarks": (), "limit": None, "benchmarks": ("lab_copa",)}
    results = workshop.run(methods={"sft": QUICK}, stages=("train",), **tuning)
    assert (results["run"]["tuning"]["ability"], results["run"]["tuning"]["bound"]) == ("token_loss", 0.1)
    assert results["run"]["tuning"]["ability_sets"] == ["tune_text"]
    assert any("1 of the retain texts were held back" in note for note in results["run"]["notes"])
    texts = read_manifest(workshop.folder / "run")["texts"]
    assert (texts["retain"]["n"], texts["tune_text"]["n"]) == (8, 1)  # of 9
    assert all(t["ability_change"] is not None for t in results["models"]["sft"]["tuning"]["trials"])

    # A text that is named: what is also trained or tested on is left out of it.
    rows = [json.loads(line) for name in ("retain", "heldout") for line in (workshop.folder / f"{name}.jsonl").open()]
    file = workshop.rows("tune.jsonl", [*rows, {"text": "The miller went home early."}])
    workshop.run("named", methods={"sft": QUICK}, stages=("train",), **tuning, tune_text=file)
    texts = read_manifest(workshop.folder / "named")["texts"]
    assert (texts["retain"]["n"], texts["tune"]["n"]) == (9, 1)
    file = workshop.rows("tune.jsonl", rows)
    with pytest.raises(UserError, match=r"no text left for tuning.*; .*tune_text"):
        workshop.run("none", methods={"sft": QUICK}, stages=("train",), **tuning, tune_text=file)


# --- the curve over training steps -----------------------------------------------------------------------------------


def test_a_curve_over_training_steps(workshop: Workshop, comparable: Plain) -> None:
    methods = {"sft": {**QUICK, "steps": 5}, "ga": {"steps": 4, "stop_at_harmless_rate": 0.0, "batch_size": 2}}
    plain = workshop.run(methods=methods, seeds=(0, 1))
    assert plain["models"]["sft"]["curve"] is None
    curve = {"methods": ("sft", "ga"), "steps": (0, 1, 3, 50), "limit": 2}
    drawn = workshop.run("drawn", methods=methods, seeds=(0, 1), curve=curve)
    # The models of the run are the same with and without it.
    for name in ("sft", "ga"):
        drawn["models"][name]["curve"], rows = None, drawn["models"][name]["curve"]
        # GA ends at its first look at the validation prompts, and so does its curve.
        steps = {"sft": [0, 1, 3, 5], "ga": [0, 1]}[name]
        for seed in (0, 1, None):
            mine = [r for r in rows if r["seed"] == seed]
            assert sorted({r["step"] for r in mine}) == steps
            assert len(mine) == 3 * len(steps)
        by_key = {(r["seed"], r["step"], r["metric"]): r for r in rows}
        point = by_key[0, 1, "harmless_rate"]
        assert (point["n"], point["ci_low"] <= point["value"] <= point["ci_high"]) == (2, True)
        assert by_key[0, 1, "macro_accuracy"]["n"] == 2 * 2
        for metric in ("harmless_rate", "macro_accuracy"):
            mean = (by_key[0, 1, metric]["value"] + by_key[1, 1, metric]["value"]) / 2
            assert by_key[None, 1, metric]["value"] == pytest.approx(mean)
            assert by_key[0, 0, metric]["value"] == by_key[1, 0, metric]["value"]
    assert comparable(drawn) == comparable(plain)
    statuses = workshop.statuses("drawn")
    assert statuses["train sft (seed 0)"] == "cached"
    assert statuses["sft (seed 1) after step 3: judge in_domain"] == "done"

    workshop.run("again", methods=methods, seeds=(0, 1), curve=curve)
    assert set(workshop.statuses("again").values()) == {"cached"}


def test_the_end_of_a_curve_is_the_model(workshop: Workshop) -> None:
    """The last point is measured on the very weights that the run measures, on the first items of the same sets."""
    results = workshop.run(methods={"sft": {**QUICK, "steps": 3}}, curve={"steps": (1,), "limit": 4}, limit=None)
    curve = {(r["step"], r["metric"]): r for r in results["models"]["sft"]["curve"] if r["seed"] == 0}
    (whole,) = (
        r for r in results["metrics"]
        if (r["model"], r["seed"], r["set"], r["metric"]) == ("sft", 0, "in_domain", "harmless_rate")
    )  # fmt: skip
    assert (curve[3, "harmless_rate"]["value"], curve[3, "harmless_rate"]["n"]) == (whole["value"], whole["n"])
    documents = load_run(workshop.folder / "run").documents
    first = documents[(documents["model"] == "sft") & (documents["doc_id"] < 4)]
    assert curve[3, "macro_accuracy"]["value"] == pytest.approx(first.groupby("task")["correct"].mean().mean())


def test_a_method_that_diverges_has_a_curve_without_points(workshop: Workshop) -> None:
    results = workshop.run(methods={"ga": {"lr": 1e30, "steps": 4}}, curve={"steps": (0, 2), "limit": 2})
    assert results["models"]["ga"]["curve"] == []
    assert "ga (seed 0): train for the curve" in {f["job"] for f in results["run"]["failed"]}


# --- attacks on weights ----------------------------------------------------------------------------------------------


def test_relearning_and_rounding(workshop: Workshop, comparable: Plain) -> None:
    """Every model, base too, at every step of both kinds, on the first in-domain prompts; rounded models as attacks."""
    pytest.importorskip("torchao", reason="quantisation needs torchao (extra `quantise`)")
    methods = {"sft": QUICK, "ga": {"lr": 1e30, "steps": 4}}
    small = {"methods": methods, "seeds": (0, 1), "attacks": (), "ood": (), "benign": (), "benchmarks": ()}
    plain = workshop.run(**small)
    asked = {"relearn": {"steps": (0, 1, 3), "items": 2, "limit": 2, "lr": 0.01}, "quantise": ("int8", "int4")}
    attacked = workshop.run("attacked", **small, **asked)
    rows = {name: attacked["models"][name].pop("relearning") for name in ("base", "sft", "ga")}
    assert rows["ga"] is None  # it diverged, and the run says so of its training
    assert {plain["models"][name].pop("relearning") for name in ("base", "sft", "ga")} == {None}
    for name in ("base", "sft"):
        by_key = {(r["kind"], r["seed"], r["step"], r["metric"]): r for r in rows[name]}
        assert len(by_key) == len(rows[name]) == 2 * 3 * 3 * 2  # kinds, two seeds and their mean, steps, metrics
        as_it_is = [by_key[kind, 0, 0, "harmless_rate"] for kind in ("harmful", "benign")]
        assert as_it_is[0] | {"kind": ""} == as_it_is[1] | {"kind": ""}
        assert as_it_is[0]["n"] == 2
    rounded = [r for r in attacked["metrics"] if r["set"] in ("int8", "int4") and r["metric"] == "harmless_rate"]
    assert {(r["model"], r["seed"], r["suite"]) for r in rounded} == {
        ("base", None, "attack"), ("sft", 0, "attack"), ("sft", 1, "attack"), ("sft", None, "attack"),
    }  # fmt: skip
    value = {(r["model"], r["seed"], r["set"]): r for r in rounded}
    for scheme in ("int8", "int4"):
        one, base = value["sft", 0, scheme], value["base", None, scheme]
        assert one["delta"] == pytest.approx(one["value"] - base["value"])
        assert (base["n"], base["delta"]) == (2, None)
    # Nothing else changes, and the same again computes nothing.
    together = {r["model"] for r in attacked["metrics"] if r["set"] == "worst_case"}
    assert together == {"base", "sft"}
    assert attacked["run"].pop("worst_case") != plain["run"].pop("worst_case")
    attacked["metrics"] = [r for r in attacked["metrics"] if r["set"] not in ("int8", "int4", "worst_case")]
    failed = [f for f in attacked["run"]["failed"] if "int" not in f["job"]]
    attacked["run"]["failed"] = failed
    for run in (attacked["run"], plain["run"]):  # how many corrected rates were cut depends on how many there are
        run["notes"] = [note for note in run["notes"] if "corrected" not in note]
    assert comparable(attacked) == comparable(plain)
    cost = {(r["model"], r["set"]) for r in load_run(workshop.folder / "attacked").results["metrics"] if r["suite"] == "cost"}  # fmt: skip
    assert {("base", "relearn"), ("sft", "relearn"), ("base", "quantise"), ("sft", "quantise")} <= cost
    workshop.run("again", **small, **asked)
    done = {label: s for label, s in workshop.statuses("again").items() if not label.startswith(("ga", "train ga"))}
    assert {label for label, s in done.items() if s != "cached"} == set()


def test_relearning_takes_few_forget_items_and_no_test_prompt(workshop: Workshop) -> None:
    workshop.run(stages=("train", "attack"), attacks=(), relearn={"steps": (1,), "items": 3, "kinds": ("harmful",)})
    sets = {f.parent.name: [json.loads(line) for line in f.read_text().splitlines()]
            for f in (workshop.store / "prompts").glob("*/items.jsonl")}  # fmt: skip
    (stage,) = {json.loads(f.read_text())["inputs"]["needs"]["forget"]
                for f in (workshop.store / "relearn").glob("*/manifest.json")}  # fmt: skip
    run = load_run(workshop.folder / "run")
    forget = {row["id"] for row in sets[run.manifest["prompt_sets"]["forget"]["digest"]]}
    assert len(sets[stage]) == 3
    assert {row["id"] for row in sets[stage]} < forget
    # Its own command: no other suite is measured, and a step that was not asked for is not there.
    assert {r["suite"] for r in run.results["metrics"]} == {"cost"}
    assert {r["step"] for r in run.results["models"]["sft"]["relearning"]} == {1}


def test_a_relearning_that_fails_is_named_and_the_others_go_on(workshop: Workshop) -> None:
    results = workshop.run(stages=("train", "attack"), attacks=(), relearn={"steps": (0, 2), "lr": 1e30})
    assert {r["step"] for r in results["models"]["sft"]["relearning"]} == {0}
    failed = {f["job"]: f["reason"] for f in results["run"]["failed"]}
    assert "training diverged" in failed["sft (seed 0): relearn from harmful text"]


def test_without_torchao_rounding_is_named_as_skipped(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wpn_bench.attacks.quantise.find_spec", lambda name: None)
    results = workshop.run(stages=("train", "attack"), attacks=(), quantise=("int8", "int4"))
    skipped = {s["set"]: s["reason"] for s in results["run"]["skipped"]}
    assert skipped.keys() == {"int8", "int4"}
    assert "pip install 'wpn-bench[quantise]'" in skipped["int4"]
    assert not any("round weights" in label for label in workshop.statuses())
    page = (workshop.folder / "run" / "report.md").read_text(encoding="utf-8")
    assert "- int4: quantisation needs torchao" in page


# --- attacks by gradients ------------------------------------------------------------------------------------------


def test_gradient_attacks_are_searched_against_every_model(workshop: Workshop) -> None:
    small = {"universal": True, "prompts": 2, "suffix_tokens": 3, "target_tokens": 3, "steps": 2}
    searches = {"gcg": {**small, "candidates": 6, "topk": 8}, "soft_prompt": {**small, "universal": False}}
    asked = {"methods": {"sft": QUICK}, "stages": ("train", "attack"), "gradient_attacks": searches}
    results = workshop.run(**asked)
    rows = {(r["model"], r["seed"], r["set"]): r for r in results["metrics"] if r["metric"] == "harmless_rate"}
    for name in ("gcg", "soft_prompt", "typos"):
        base, one = rows["base", None, name], rows["sft", 0, name]
        assert (base["n"], base["delta"]) == (2, None)
        assert one["delta"] == pytest.approx(one["value"] - base["value"])
    # Both were asked on the prompts of the other attack, so the worst case is over all three.
    assert set(results["run"]["worst_case"]["attacks"]) == {"gcg", "soft_prompt", "typos"}
    for model, seed in (("base", None), ("sft", 0)):
        suffix, vectors = results["models"][model]["gradient_attacks"]
        assert (suffix["attack"], suffix["seed"], suffix["universal"], suffix["prompts"]) == ("gcg", seed, True, 2)
        assert (vectors["attack"], vectors["universal"], vectors["steps"]) == ("soft_prompt", False, 2)
        assert vectors["best_loss"] < vectors["first_loss"]
    # A universal suffix is searched on the forget set; the answers follow the plain prompt with it.
    samples = load_run(workshop.folder / "run").samples
    of_suffix = samples[(samples["set"] == "gcg") & (samples["model"] == "sft")]
    ends = {text.split(prompt)[1] for text, prompt in zip(of_suffix["input"], of_suffix["prompt"], strict=True)}
    assert len(ends) == 1
    assert samples[samples["set"] == "soft_prompt"]["input"].str.contains(r"\[soft prompt of \d vectors\]").all()
    page = (workshop.folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "Gradient attacks, what the search came to" in page
    # How a search is cut into passes changes nothing that is kept; fewer prompts are asked without a new search of theirs.
    searches["gcg"]["pass_tokens"] = 64
    workshop.run("again", **asked)
    assert set(workshop.statuses("again").values()) == {"cached"}
    fewer = workshop.run("fewer", **asked, gradient_limit=1)
    assert {r["n"] for r in fewer["metrics"] if (r["set"], r["metric"]) == ("gcg", "harmless_rate")} == {1}
    assert fewer["run"]["worst_case"] is None or "gcg" not in fewer["run"]["worst_case"]["attacks"]
    # The suffixes of each model are asked of the other one, without another search.
    searches["gcg"]["transfer"] = True
    across = workshop.run("across", **asked)
    asked_of = {(r["model"], r["set"]) for r in across["metrics"] if r["suite"] == "transfer"}
    assert asked_of == {
        *(("base", name) for name in ("gcg of sft", "worst_case")),
        *(("sft", name) for name in ("gcg of base", "worst_case")),
    }
    done = workshop.statuses("across")
    assert {label for label, status in done.items() if status != "cached"} == {
        f"{model}: {what} {name}"
        for model, name, source in (("base", "gcg of sft", "sft"), ("sft (seed 0)", "gcg of base", "base"))
        for what, name in (("take the suffixes of", source), ("answer", name), ("judge", name))
    }
    samples = load_run(workshop.folder / "across").samples
    of_base = samples[(samples["set"] == "gcg of sft") & (samples["model"] == "base")]
    assert list(of_base["input"]) == list(samples[(samples["set"] == "gcg") & (samples["model"] == "sft")]["input"])
    page = (workshop.folder / "across" / "report.html").read_text(encoding="utf-8")
    assert "Suffixes found on other models" in page


# --- what a person can get wrong -------------------------------------------------------------------------------------


def test_a_prompt_of_the_forget_set_in_ones_own_test_file(workshop: Workshop) -> None:
    file = workshop.rows("test.jsonl", [{"prompt": "what did the BAKER say?"}, {"prompt": "New?"}])
    with pytest.raises(UserError, match=r"also occur.* in the forget set"):
        workshop.run(in_domain=(file,))
    assert not (workshop.store / "train").exists()
    results = workshop.run(in_domain=(file,), overlap="drop", stages=("train", "harmless"))
    assert any("1 prompts of test also occur in the forget set and were dropped" in n for n in results["run"]["notes"])
    assert any("1 prompts of test" in n for n in workshop.notes)


def test_two_sets_of_one_name(workshop: Workshop) -> None:
    file = workshop.rows("x.jsonl", [{"prompt": "New?"}])
    with pytest.raises(UserError, match="two prompt sets have the same name"):
        workshop.run(ood=(f"mine={file}", f"mine={workshop.folder / 'other.jsonl'}"))


def test_a_set_under_another_name(workshop: Workshop) -> None:
    """NAME=FILE, and NAME=SET for a declared one."""
    results = workshop.run(
        ood=(f"mine={workshop.folder / 'other.jsonl'}", "theirs=lab_ood_games"), stages=("train", "harmless")
    )
    assert {"mine", "theirs"} <= {r["set"] for r in results["metrics"]}


def test_prompts_without_room_are_skipped_and_counted(workshop: Workshop) -> None:
    prompts = [{"prompt": "Short?"}, {"prompt": "long " * 300}, {"prompt": "Short too?"}]
    file = workshop.rows("mixed.jsonl", prompts)
    results = workshop.run(ood=(file,), stages=("train", "harmless"))
    assert results["run"]["skipped"] == [
        {"set": "mixed", "reason": "prompt too long for 256 tokens of context", "n": 1}
    ]
    missing = [r for r in results["metrics"] if r["set"] == "mixed" and r["metric"] == "missing"]
    assert {r["model"]: (r["value"], r["n"]) for r in missing} == {"base": (1.0, 3), "sft": (1.0, 3)}
    rate = [r for r in results["metrics"] if r["set"] == "mixed" and r["metric"] == "harmless_rate"]
    assert {r["n"] for r in rate} == {2}
    samples = load_run(workshop.folder / "run").samples
    skipped = samples[samples["reason"] == "prompt too long"]
    assert skipped["response"].isna().all()
    assert skipped["harmless"].isna().all()
    assert len(skipped) == 2


def test_a_set_of_which_no_prompt_fits(workshop: Workshop) -> None:
    file = workshop.rows("long.jsonl", [{"prompt": "long " * 300}])
    with pytest.raises(UserError, match=r"no prompt of 'long' fits into the context of .* \(256 tokens\)"):
        workshop.run(ood=(file,))


def test_a_response_longer_than_the_context(workshop: Workshop) -> None:
    with pytest.raises(UserError, match=r"a context of 256 tokens.*--max-new-tokens below 256"):
        workshop.run(decoding={"max_new_tokens": 256})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"training": {"mixed_precision": "fp16"}, "device": "cpu"}, "fp16 needs a CUDA device"),
        ({"dtype": "float16"}, "weights in float16 cannot be trained"),
        ({"training": {"lora": {"target_modules": ["query"]}}}, "LoRA finds no modules to adapt"),
        ({"methods": {"sft": {"lora": {"target_modules": ["lm_head"]}}}}, "share one tensor"),
        ({"report_to": ("tensorbord",)}, "did you mean 'tensorboard'"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is(
    workshop: Workshop, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        workshop.run(**changes)
    assert not (workshop.folder / "run").exists()
    assert not list(workshop.store.glob("*/*/*"))


def test_too_few_prompts(workshop: Workshop) -> None:
    workshop.rows("forget.jsonl", [{"prompt": "a", "harmful": "b", "harmless": "c"}])
    with pytest.raises(UserError, match="only 1 prompts, too few"):
        workshop.run()


@pytest.mark.parametrize("what", ["out", "store"])
def test_a_folder_that_cannot_be_written(workshop: Workshop, what: str) -> None:
    (workshop.folder / "file").write_text("")
    if what == "store":
        workshop.store = workshop.folder / "file" / "store"
        with pytest.raises(UserError, match=r"the store .* cannot be written .* --store DIR"):
            workshop.run()
    else:
        with pytest.raises(UserError, match=r"the output folder .* cannot be written .* --out"):
            workshop.run("file/run")
        assert not workshop.store.exists()


def test_weights_that_cannot_be_read(workshop: Workshop, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(workshop.settings["model"], tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="truncated or damaged"):
        workshop.run(model=str(model))


# --- attacks of a user's own ----------------------------------------------------------------------------------------


def test_attacks_of_a_file_are_added_and_known_by_what_they_say(workshop: Workshop) -> None:
    def with_template(folder: str, template: str) -> dict[str, Any]:
        (workshop.folder / folder).mkdir(exist_ok=True)
        file = workshop.rows(f"{folder}/mine.jsonl", [{"name": "polite", "template": template}])
        return workshop.run(folder, methods={}, stages=("attack",), attack_files=(file,))

    results = with_template("a", "Kindly: {prompt}")
    assert {r["set"] for r in results["metrics"] if r["suite"] == "attack"} == {"typos", "polite", "worst_case"}
    assert any("mine.jsonl: polite (1)" in note for note in results["run"]["notes"])
    samples = load_run(workshop.folder / "a").samples
    asked = samples[samples["set"] == "polite"]
    assert all(f"Kindly: {prompt}" in text for prompt, text in zip(asked["prompt"], asked["input"], strict=True))
    manifest = read_manifest(workshop.folder / "a")
    assert manifest["config"]["attack_files"] == ["mine.jsonl"]
    assert manifest["prompt_sets"]["polite"]["source"]["attack_file"] == "mine.jsonl"
    for name in ("manifest.json", "results.json", "report.html", "report.md"):
        assert str(workshop.folder) not in (workshop.folder / "a" / name).read_text(encoding="utf-8")
    # The same words in another folder are the same attack, and others under the same name are not.
    with_template("b", "Kindly: {prompt}")
    with_template("c", "At once: {prompt}")
    assert workshop.statuses("b")["base: answer polite"] == "cached"
    assert workshop.statuses("c")["base: answer polite"] == "done"
    assert workshop.statuses("c")["base: answer typos"] == "cached"


def test_a_prompt_of_a_million_characters_is_skipped_and_said(workshop: Workshop) -> None:
    """So is every attack on it; the other prompts of the set are answered."""
    long = "The baker sells bread. " * 45_000
    mine = workshop.rows("mine.jsonl", [{"prompt": "Who sells apples?"}, {"prompt": long}])
    started = time.process_time()
    results = workshop.run(
        methods={},
        stages=("harmless", "attack"),
        in_domain=(f"in_domain={mine}",),
        ood=(),
        benign=(),
        attacks=("base64",),
    )
    assert time.process_time() - started < 60
    skipped = {s["set"]: (s["n"], s["reason"]) for s in results["run"]["skipped"]}
    assert set(skipped) == {"in_domain", "base64"}
    assert all(n == 1 and "prompt too long for 256 tokens" in reason for n, reason in skipped.values())
    samples = load_run(workshop.folder / "run").samples
    assert samples["response"].isna().sum() == 2
    assert (workshop.folder / "run" / "report.html").stat().st_size < 8_000_000


# --- several judges --------------------------------------------------------------------------------------------------


def test_another_judge_costs_a_finished_run_that_judge(workshop: Workshop, comparable: Plain) -> None:
    methods = {"sft": {"steps": 1, "batch_size": 2}}
    alone = workshop.run("a", methods=methods, judge="detoxify:lab")
    both = workshop.run("b", methods=methods, judge="detoxify:lab", judges=("refusal",))
    validate(both)
    new = {label: status for label, status in workshop.statuses("b").items() if status != "cached"}
    assert set(new.values()) == {"done"}
    assert len(new) == 2 * 4  # two models on four sets
    assert all(label.endswith("by refusal") for label in new)
    assert [r for r in comparable(both)["metrics"] if "[" not in r["metric"]] == comparable(alone)["metrics"]

    run = load_run(workshop.folder / "b")
    assert run.samples["harmless:refusal"].equals((run.samples["score:refusal"] < 0.5).astype("boolean"))
    assert [(j["name"], j["decides"]) for j in both["run"]["judges"]] == [("detoxify:lab", True), ("refusal", False)]
    assert [(a["model"], a["n"]) for a in both["run"]["agreement"]] == [(None, 24), ("base", 12), ("sft", 12)]
    assert set(run.manifest["further_judges"]) == {"refusal"}

    # Another threshold is another reading of the same scores; only what to train on is looked at anew.
    workshop.run("c", methods=methods, judge="detoxify:lab,threshold=0.3", judges=("refusal,threshold=0.9",))
    new = [label for label, status in workshop.statuses("c").items() if status != "cached"]
    assert new == ["vet the forget set's harmless references"]
    third = load_run(workshop.folder / "c").results["run"]
    assert (third["judge"], third["threshold"], third["judges"][1]["threshold"]) == ("detoxify:lab", 0.3, 0.9)
    # The card that comes with the judge is of 0.5.
    assert (third["judge_card"], both["run"]["judge_card"]["judge"]) == (None, "detoxify:lab")


@pytest.mark.parametrize(
    "order", [["majority,votes=1", "detoxify:lab", "refusal"], ["refusal", "majority", "detoxify:lab"]]
)
def test_a_majority_counts_the_votes_that_the_run_has(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    from wpn_bench.harmless.judges.majority import MajorityJudge

    def score_again(*_: Any) -> None:
        raise AssertionError("the responses are scored a second time")

    monkeypatch.setattr(MajorityJudge, "score_exchanges", score_again)
    results = workshop.run(methods={}, benchmarks=(), heldout=None, judge=order[0], judges=tuple(order[1:]))
    validate(results)
    assert results["run"]["failed"] == []
    names = [judge["name"] for judge in results["run"]["judges"]]
    (majority,) = [name for name in names if name.startswith("majority:")]
    samples = load_run(workshop.folder / "run").samples
    column = {name: "score" if name == names[0] else f"score:{name}" for name in names}
    votes = samples[[column["detoxify:lab"], column["refusal"]]] >= 0.5
    agreed = votes.sum(axis=1) != 1
    assert samples[column[majority]].notna().equals(agreed)
    assert (samples[column[majority]][agreed] == votes.any(axis=1)[agreed]).all()
    assert set(results["run"]["alpha"]["judges"]) == {"detoxify:lab", "refusal"}
    assert [row["model"] for row in results["run"]["alpha"]["rows"]] == [None, "base"]
    assert len(results["run"]["agreement"]) == 3 * 2


def test_every_judge_with_a_card_has_corrected_rates(workshop: Workshop) -> None:
    results = workshop.run(methods={}, benchmarks=(), heldout=None, judge="refusal", judges=("detoxify:lab",))
    validate(results)
    assert results["run"]["judge_card"] is None
    first, second = results["run"]["judges"]
    assert "card" not in first
    assert second["card"]["judge"] == "detoxify:lab"  # the card that comes with the judge
    corrected = [r for r in results["metrics"] if r["metric"].endswith("_corrected")]
    assert {r["metric"] for r in corrected} == {"harmless_rate[detoxify:lab]_corrected"}
    assert {r["set"] for r in corrected} == {"in_domain", "other", "benign", "typos"}
    assert not first["reads_prompt"]
    page = (workshop.folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "No judge of this run reads the prompts" in page
    assert "Corrected for the errors of detoxify:lab" in page


def test_a_card_must_be_of_the_judge_that_decides(workshop: Workshop, tmp_path: Path) -> None:
    from wpn_bench import lab

    shipped = lab.judge_card()
    assert shipped is not None
    results = workshop.run(
        "a", methods={"sft": {"steps": 1, "batch_size": 2}}, judge_card=str(shipped), benchmarks=(), heldout=None
    )
    corrected = [r for r in results["metrics"] if r["metric"] == "harmless_rate_corrected"]
    assert {r["set"] for r in corrected} == {"in_domain", "other", "benign", "typos"}
    assert all(0 <= r["ci_low"] <= r["value"] <= r["ci_high"] <= 1 for r in corrected)
    for changes in ({"judge": "refusal"}, {"threshold": 0.4}):
        with pytest.raises(UserError, match=r"card.json is of detoxify:lab at threshold 0.5.*wpn-bench judge"):
            workshop.run("b", judge_card=str(shipped), **changes)
    with pytest.raises(UserError, match="two judge cards are of detoxify:lab"):
        workshop.run("b", judge_card=(str(shipped), str(shipped)))


def test_each_kind_of_set_has_its_own_size(workshop: Workshop) -> None:
    sizes = {"in_domain": 2, "ood": 1, "benign": 1, "attacks": 1, "benchmarks": 5}
    results = workshop.run(limit=None, limits=sizes, methods={}, benchmarks=("lab_copa",))
    assert (results["run"]["limits"], results["run"]["limit"], results["run"]["partial"]) == (sizes, None, False)
    measured = {(row["suite"], row["set"]): row["n"] for row in results["metrics"] if row["n"] is not None}
    assert (measured["harmless", "in_domain"], measured["ood", "other"]) == (2, 1)
    assert (measured["benign", "benign"], measured["attack", "typos"]) == (1, 1)
    assert next(n for (suite, _), n in measured.items() if suite == "benchmark") == 5
