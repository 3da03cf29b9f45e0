"""The whole run on the embedded lab, by the command line, in processes of its own."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer

from wpn_bench import lab, load_run
from wpn_bench.analysis.adaptive_rows import BUDGET, COUNTS
from wpn_bench.errors import UserError
from wpn_bench.runs.files import read_manifest, schema, validate

from .figures import check_report, recompute

pytestmark = pytest.mark.slow
Cli = Callable[..., Any]
Comparable = Callable[[dict[str, Any]], dict[str, Any]]

# Few steps: what is tested is the way, not how far the methods get. Gradient ascent looks at the judge while training.
CONFIG = """\
methods:
  wpn: {steps: 3, batch_size: 4}
  ga: {steps: 4, batch_size: 4, check_every: 4, stop_at_harmless_rate: 0.9}
"""
SMALL = """\
ood: []
benign: []
attacks: [typos]
tune_benchmarks: [lab_copa_validation, lab_piqa_validation]
"""
SETS = {
    "harmless": {"in_domain"},
    "ood": {"ood_notes", "ood_mistakes", "ood_games", "ood_looks"},
    "benign": {"benign", "benign_lookalike"},
    "attack": {
        "prefix_injection",
        "role_play",
        "refusal_suppression",
        "instruction_override",
        "few_shot",
        "typos",
        "distractor",
    },
}
N_SETS, N_TASKS, N_MODELS = 14, 9, 3
DOCS = Path(__file__).resolve().parents[2] / "docs"


class Lab:
    """A folder in which `wpn-bench full` is typed."""

    def __init__(self, folder: Path, server: ForkServer) -> None:
        self.folder, self.server = folder, server
        (folder / "quick.yaml").write_text(CONFIG)

    def run(self, *more: str, out: str = "run", store: str = "store") -> subprocess.CompletedProcess[str]:
        options = ["--config", "quick.yaml", "--limit", "3", "--out", out, "--store", store]
        return self.server.completed(["wpn-bench", "full", *options, *more], self.folder)

    def results(self, out: str = "run") -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / out / "results.json").read_text())
        return loaded

    def stages(self, out: str = "run") -> dict[str, str]:
        """digest -> status of every job."""
        return {s["digest"]: s["status"] for s in read_manifest(self.folder / out)["stages"]}

    def finished(self, store: str) -> dict[Path, int]:
        """The manifests of finished jobs (not of prompts and texts), and when they were written."""
        found = (self.folder / store).glob("*/*/manifest.json")
        return {m: m.stat().st_mtime_ns for m in found if m.parent.parent.name not in ("prompts", "texts", "tmp")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, offline_commands: ForkServer) -> Lab:
    try:
        lab.base_model()
    except UserError as e:
        pytest.skip(str(e))
    return Lab(tmp_path_factory.mktemp("lab"), offline_commands)


@pytest.fixture(scope="module")
def first(place: Lab) -> subprocess.CompletedProcess[str]:
    return place.run()


def test_it_ends_with_the_report_and_three_lines(place: Lab, first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0] == f"report: {(place.folder / 'run' / 'report.html').resolve()}"
    assert [line.partition("?")[0] for line in lines[1:]] == ["Safer", "Capability loss", "Others"]
    # Not a terminal: no bars, but a line with the time of day for each note and each start and end of a job.
    said = first.stderr.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (note: |job \d+ of \d+, )", line) for line in said)
    assert (place.folder / "run" / "log.txt").read_text().count(": done in ") == first.stderr.count(": done in ") > 0


def test_the_run_folder(place: Lab, first: subprocess.CompletedProcess[str]) -> None:
    run = load_run(place.folder / "run")
    validate(run.results)
    assert set(run.results["models"]) == {"base", "wpn", "ga"}
    assert {m["status"] for m in run.results["models"].values()} == {"ok"}
    assert (run.results["run"]["lab"], run.results["run"]["partial"], run.results["run"]["limit"]) == (True, True, 3)
    assert run.results["run"]["failed"] == run.results["run"]["skipped"] == []
    for suite, names in SETS.items():
        assert set(run.samples[run.samples["suite"] == suite]["set"]) == names
    counts = Counter(zip(run.samples["model"], run.samples["set"], strict=True))
    assert set(counts.values()) == {3}
    assert len(counts) == N_MODELS * N_SETS
    assert len(run.documents) == N_MODELS * N_TASKS * 3
    for name in ("report.html", "report.md"):
        text = (place.folder / "run" / name).read_text()
        assert "WPN" in text
        assert str(place.folder) not in text
    (memory,) = [r["value"] for r in run.results["metrics"] if r["metric"] == "peak_memory_mb"]
    assert memory < 3000


def test_rows_for_every_model(place: Lab, first: subprocess.CompletedProcess[str]) -> None:
    metrics = load_run(place.folder / "run").metrics
    for model in ("base", "wpn", "ga"):
        mine = metrics[(metrics["model"] == model) & metrics["seed"].isna()]
        for suite, names in SETS.items():
            rates = mine[(mine["suite"] == suite) & (mine["metric"] == "coherent_harmless_rate")]
            assert set(rates["set"]) == names | ({"worst_case"} if suite == "attack" else set())
            assert rates["value"].between(0, 1).all()
            assert (rates["ci_low"] <= rates["value"]).all()
            assert (rates["value"] <= rates["ci_high"]).all()
            assert rates["delta"].isna().all() == (model == "base")
        accuracies = mine[(mine["suite"] == "benchmark") & (mine["metric"] == "accuracy")]
        assert len(accuracies) == 10
        assert accuracies[accuracies["set"] == "nine"]["value"].item() == pytest.approx(
            accuracies[accuracies["set"] != "nine"]["value"].mean()
        )
        assert set(mine[mine["set"] == "heldout_text"]["metric"]) == {"token_loss", "perplexity"}


def test_every_column_and_key_is_described(place: Lab, first: subprocess.CompletedProcess[str]) -> None:
    run = load_run(place.folder / "run")
    described = _described(DOCS / "results.md")
    assert [*run.metrics.columns] == described["metrics"]["column"]
    # There is one judge in this run, and refusals are detected by their wording.
    absent = {"score:JUDGE", "harmless:JUDGE", "refusal_kind", "history"}
    assert [*run.samples.columns] == [c for c in described["samples.parquet"]["column"] if c not in absent]
    # Only for tasks that generate text, and for scores that are no accuracy.
    absent = {"score", "response", "metric", "higher_is_better", "scale", "weight"}
    assert [*run.documents.columns] == [c for c in described["documents.parquet"]["column"] if c not in absent]
    # Only with several judges, with the refusal classifier, and with adaptive attacks.
    several = {"alpha", "refusals", "attacker"}
    assert set(run.results["run"]) | several == set(described["run"]["key"])
    for part, keys in (("run", run.results["run"]), ("models", run.results["models"]["wpn"])):
        known = schema()["properties"][part]
        known = known["additionalProperties"] if part == "models" else known
        only_with_undo = {"undo_history"} if part == "models" else set()
        assert set(keys) | set(known["properties"]) | only_with_undo == set(described[part]["key"])
    metrics = {re.sub(r"@0\.\d$", "@T", m) for m in run.metrics["metric"]}
    others = {"harmless_rate[JUDGE]", "relevant_rate", "relevant_coherent_harmless_rate"}  # of runs that ask for them
    others |= {"leak@K", "samples", "temperature", "top_p"}
    others |= {"attack_success_rate@N", "predicted_attack_success_rate@N", "prediction_error@N", "distinct_versions"}
    others |= {"power_law_a", "power_law_b", "power_law_fitted_up_to", "sigma"}
    others |= {"harmless_after_queries@N", "queries_to_success", "queries", BUDGET, *COUNTS}
    others |= {"lens_loss", "patched_loss", "hidden_gap", "depth_score", "lost_share", "weight_change", "stable_rank"}
    others |= {"harmless_with_prefix_rate", "short_references", "without_reference"}
    others |= {"harmless_rate_minus_oracle", "coherent_harmless_rate_minus_oracle"}
    others |= {"same_verdict_as_oracle_rate", "same_text_as_oracle_rate"}
    others |= {"relearning_steps", "relearning_rows", "relearning_tokens", "survival_rate", "share_of_oracle"}
    others |= {"worst_transferred_rate", "empty_suffixes", "unfit_suffixes", "changed_suffixes"}
    others |= {"lower_is_better[METRIC]", "higher_is_better[METRIC]"}
    assert metrics | others == set(described["metrics"]["metric"])


def test_the_python_in_the_docs_runs(place: Lab, first: subprocess.CompletedProcess[str]) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", (DOCS / "results.md").read_text(), re.M | re.S))
    told = 'wpn_bench.load_run("runs/20260101-120000-lab")'
    assert told in code
    names: dict[str, Any] = {}
    exec(code.replace(told, f"wpn_bench.load_run({str(place.folder / 'run')!r})"), names)
    assert set(names["flips"]["change"]) <= {"became harmless", "became harmful"}
    assert 0 <= names["rate"] <= 1


def test_lm_eval_reads_the_exported_files(place: Lab, first: subprocess.CompletedProcess[str], cli: Cli) -> None:
    """The same keys and numbers as lm-eval's own files for the same model and documents."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    run = place.folder / "run"
    said = cli("export", run, "--format", "lm-eval", "--out", place.folder / "ours")
    assert said.code == 0, said.err
    assert len(said.out.splitlines()) == N_MODELS * (1 + N_TASKS)
    tasks = ["lab_lambada", "lab_winogrande", "lab_arc_easy"]
    tracker = EvaluationTracker(output_path=str(place.folder / "theirs"))
    asked = {"pretrained": str(run / "models" / "wpn"), "dtype": "float32"}
    manager = TaskManager(include_path=str(DOCS.parent / "tasks" / "lab"), include_defaults=False)
    real = lm_eval.simple_evaluate(
        "hf", asked, tasks, limit=3, task_manager=manager, evaluation_tracker=tracker, device="cpu", bootstrap_iters=100
    )
    samples = real.pop("samples")
    tracker.save_results_aggregated(results=real, samples=samples)
    for task in tasks:
        tracker.save_results_samples(task_name=task, samples=samples[task])

    def read(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        (results,) = folder.rglob("results_*.json")
        lines = {t: next(folder.rglob(f"samples_{t}_*.jsonl")).read_text().splitlines() for t in tasks}
        return json.loads(results.read_text()), {t: [json.loads(line) for line in some] for t, some in lines.items()}

    theirs, their_samples = read(place.folder / "theirs")
    ours, our_samples = read(place.folder / "ours" / "wpn")
    of_the_tokenizer = {
        "tokenizer_pad_token",
        "tokenizer_eos_token",
        "tokenizer_bos_token",
        "eot_token_id",
        "max_length",
    }
    assert set(theirs) - set(ours) <= of_the_tokenizer
    for task in tasks:
        assert set(ours["results"][task]) == set(theirs["results"][task])
        for name, number in theirs["results"][task].items():
            near = number if isinstance(number, str) else pytest.approx(number, rel=1e-3)
            assert ours["results"][task][name] == near, (task, name)
        for part in ("versions", "n-shot", "higher_is_better", "n-samples", "task_hashes"):
            assert ours[part][task] == theirs[part][task], (task, part)
        for mine, other in zip(our_samples[task], their_samples[task], strict=True):
            assert list(mine) == list(other)
            same = set(mine) - {"resps", "filtered_resps", "perplexity"}
            assert {key: mine[key] for key in same} == {key: other[key] for key in same}
            for (a, _), (b, _) in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
                assert float(a) == pytest.approx(float(b), abs=1e-3)
    assert "lab_lambada" in make_table(ours)


def _described(file: Path) -> dict[str, dict[str, list[str]]]:
    """Section -> head of a table's first column -> what that column names."""
    found: dict[str, dict[str, list[str]]] = {}
    section = head = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section, head = line.lstrip("# "), ""
        elif line.startswith("|") and not line.startswith("|-"):
            first = line.split("|")[1].strip()
            if head:
                found[section][head] += first.strip("`").split("`, `")
            else:
                head = first
                found.setdefault(section, {})[head] = []
        elif not line.startswith("|"):
            head = ""
    return found


def test_every_row_follows_from_the_stored_items(place: Lab, first: subprocess.CompletedProcess[str]) -> None:
    rows = load_run(place.folder / "run").metrics
    assert recompute(place.folder / "run", place.folder / "store") == (rows["suite"] != "cost").sum() > 1000


def test_every_figure_of_the_reports_is_in_the_results(
    place: Lab, first: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    run = place.folder / "run"
    assert check_report(run) > 500
    assert (run / "report.html").stat().st_size <= 6 * 1024 * 1024
    results = place.results()
    for row in results["metrics"]:
        if (row["set"], row["metric"]) == (
            "nine",
            "accuracy",
        ):  # of all models: after three steps WPN may be as base is
            row["value"] += 0.0137
    shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("models"))
    (tmp_path / "other" / "results.json").write_text(json.dumps(results))
    with pytest.raises(AssertionError, match="Models and headline metrics"):
        check_report(tmp_path / "other")


def test_the_base_is_measured_once_for_both_methods(place: Lab, first: subprocess.CompletedProcess[str]) -> None:
    stages = Counter(s["stage"] for s in read_manifest(place.folder / "run")["stages"])
    assert stages == {
        "vet": 1,
        "train": N_MODELS - 1,
        "calibrate": 1,
        "generate": N_MODELS * N_SETS,
        "judge": N_MODELS * N_SETS,
        "benchmark": N_MODELS * N_TASKS,
        "perplexity": N_MODELS,
    }
    in_store = Counter(m.parent.parent.name for m in place.finished("store"))
    assert in_store == stages


def test_a_second_run_computes_nothing_and_says_the_same(
    place: Lab, first: subprocess.CompletedProcess[str], comparable: Comparable
) -> None:
    before = place.finished("store")
    second = place.run(out="again")
    assert second.returncode == 0, second.stderr
    assert set(place.stages("again").values()) == {"cached"}
    assert place.finished("store") == before
    assert comparable(place.results("again")) == comparable(place.results())
    assert second.stdout.splitlines()[1:] == first.stdout.splitlines()[1:]


def test_a_second_judge_beside_the_first(place: Lab, first: subprocess.CompletedProcess[str]) -> None:
    checkpoint = lab.judge_checkpoint()
    second = f"classifier:{_as_classifier(checkpoint, place.folder / 'judge')},label=insult"
    judges = ("--judge", f"detoxify:lab,{second}", "--judge", "refusal")
    done = place.run(*judges, out="judges")
    assert done.returncode == 0, done.stderr
    stages = read_manifest(place.folder / "judges")["stages"]
    assert {s["stage"] for s in stages if s["status"] != "cached"} == {"further_judge"}
    run = load_run(place.folder / "judges")
    validate(run.results)
    name = "classifier:judge,label=insult"
    assert [j["name"] for j in run.results["run"]["judges"]] == ["detoxify:lab", name, "refusal"]
    # The same weights, read by another label.
    assert run.samples["score"].corr(run.samples[f"score:{name}"]) > 0.9
    (kappa,) = [a["kappa"] for a in run.results["run"]["agreement"] if a["judges"][1] == name and a["model"] is None]
    assert kappa > 0.8
    rows = run.metrics[run.metrics["set"] == "in_domain"]
    assert {f"harmless_rate[{name}]", "harmless_rate[refusal]", "harmless_rate_corrected"} <= set(rows["metric"])
    for file in ("report.html", "report.md", "results.json", "manifest.json"):
        text = (place.folder / "judges" / file).read_text()
        assert str(place.folder) not in text
        assert name in text
    recompute(place.folder / "judges", place.folder / "store")
    check_report(place.folder / "judges")
    assert '<section id="judges">' in (place.folder / "judges" / "report.html").read_text()


def _as_classifier(checkpoint: Path, folder: Path) -> Path:
    """A Detoxify checkpoint as a classifier of transformers'."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    loaded = torch.load(checkpoint, weights_only=True)
    labels = dict(enumerate(loaded["config"]["dataset"]["args"]["classes"]))
    settings = BertConfig.from_pretrained(
        checkpoint.parent, id2label=labels, label2id={v: k for k, v in labels.items()},
        problem_type="multi_label_classification",
    )  # fmt: skip
    model = BertForSequenceClassification(settings).float()
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in loaded["state_dict"].items()})
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint.parent / name, folder / name)
    return folder


def test_killed_half_way_and_started_again(
    place: Lab, first: subprocess.CompletedProcess[str], comparable: Comparable
) -> None:
    total = len(place.stages())
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(place.run, out="killed", store="other_store")
        try:
            deadline = time.monotonic() + 300
            while len(place.finished("other_store")) < total // 2:
                assert not killed.done(), "ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            for process in place.server.running():
                process.kill()
        assert killed.result().returncode == -signal.SIGKILL
    survived = place.finished("other_store")
    assert total // 2 <= len(survived) < total
    assert not (place.folder / "killed" / "results.json").exists()
    assert not (place.folder / "killed" / "manifest.json").exists()

    again = place.run(out="killed", store="other_store")
    assert again.returncode == 0, again.stderr
    after = place.finished("other_store")
    assert {m: t for m, t in after.items() if m in survived} == survived
    statuses = place.stages("killed")
    assert all(statuses[m.parent.name] == "cached" for m in survived)
    assert Counter(statuses.values()) == {"cached": len(survived), "done": total - len(survived)}
    assert comparable(place.results("killed")) == comparable(place.results())
    assert again.stdout.splitlines()[1:] == first.stdout.splitlines()[1:]


def test_tuned_and_with_a_curve(place: Lab, comparable: Comparable) -> None:
    (place.folder / "tuned.yaml").write_text(CONFIG + SMALL + "curve: {steps: [0, 2], limit: 2}\n")
    more = (
        "--config",
        "tuned.yaml",
        "--tune",
        "2",
        "--curve",
        "--benchmarks",
        "lab_copa,lab_piqa",
        "--candidate",
        "oracle=lab",
    )
    first = place.run(*more, out="tuned", store="tuned_store")
    assert first.returncode == 0, first.stderr
    results = place.results("tuned")
    validate(results)
    assert (results["run"]["tuning"]["trials"], results["run"]["tuning"]["prompts"]) == (2, 3)
    assert len(results["run"]["tuning"]["ability_sets"]) == 2
    for name in ("wpn", "ga"):
        model = results["models"][name]
        chosen = model["tuning"]["trials"][model["tuning"]["chosen"]]
        assert [t["trial"] for t in model["tuning"]["trials"]] == [0, 1]
        assert {option: model["config"][option] for option in chosen["params"] if option != "lr"} == {
            option: value for option, value in chosen["params"].items() if option != "lr"
        }
        assert model["lr"] == chosen["params"]["lr"]
        assert {row["metric"] for row in model["curve"]} == {
            "harmless_rate",
            "coherent_harmless_rate",
            "macro_accuracy",
        }
        last = model["steps"][0]
        assert {row["step"] for row in model["curve"]} == {0, last} | ({2} if last > 2 else set())
    # Gradient ascent keeps its stop rule in every trial.
    assert results["models"]["ga"]["config"]["stop_at_harmless_rate"] == 0.9
    html = (place.folder / "tuned" / "report.html").read_text()
    for section in ("tuning", "curves", "oracle"):
        assert f'<section id="{section}">' in html
    # The oracle (here the base itself) is measured, and is no method of the verdict.
    assert [*results["models"]] == ["base", "wpn", "ga", "oracle"]
    assert results["models"]["oracle"]["candidate"]["source"] == "lab"
    assert {r["suite"] for r in results["metrics"] if r["metric"] == "same_verdict_as_oracle_rate"} == {
        "oracle_harmless",
        "oracle_attack",
    }
    assert "oracle" not in "".join(first.stdout.splitlines()[1:])

    again = place.run(*more, out="tuned again", store="tuned_store")
    assert again.returncode == 0, again.stderr
    assert set(place.stages("tuned again").values()) == {"cached"}
    assert comparable(place.results("tuned again")) == comparable(results)
