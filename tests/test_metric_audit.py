"""The audit of the metrics: what it computes from models' values, how it changes models, and its smallest run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from wpn_bench import lab, models
from wpn_bench.lab.conversations import HARMFUL_FAMILIES

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "metric_audit.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metric_audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["metric_audit"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def small() -> OPTForCausalLM:
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=50,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            word_embed_proj_dim=16,
        )
    )


def rows_of(values: dict[str, dict[tuple[str, str, str], float]]) -> pd.DataFrame:
    """Rows as in results.json, one for each model and metric, and a second one for a seed, which must not count."""
    rows = [
        {"model": model, "seed": seed, "suite": suite, "set": name, "metric": metric, "value": value + (seed or 0)}
        for model, metrics in values.items()
        for (suite, name, metric), value in metrics.items()
        for seed in (None, 7)
    ]
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def test_the_auc_counts_pairs_in_the_direction_of_the_metric(script: ModuleType) -> None:
    """Of four pairs, three have the larger value without the harm, and one is a tie."""
    values = {"with": [0.1, 0.5], "without": [0.5, 0.9]}
    assert script.apart(values, 1).auc == pytest.approx(3.5 / 4)
    assert script.apart(values, -1).auc == pytest.approx(0.5 / 4)
    assert script.apart(values, 0).auc == pytest.approx(3.5 / 4)
    assert script.apart({"with": [], "without": [1.0]}, 1) is None


@pytest.mark.parametrize("auc", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_ends_of_the_interval_are_as_far_from_the_auc_as_their_own_standard_errors_say(
    script: ModuleType, auc: float
) -> None:
    """The standard error is written here as Hanley and McNeil wrote it."""
    m, n, z = 12, 12, 1.959964

    def error(t: float) -> float:
        q1, q2 = t / (2 - t), 2 * t * t / (1 + t)
        return float(((t * (1 - t) + (m - 1) * (q1 - t * t) + (n - 1) * (q2 - t * t)) / (m * n)) ** 0.5)

    low, high = script.auc_interval(auc, m, n)
    assert 0 <= low <= auc <= high <= 1
    assert low < high
    for end, limit in ((low, 0.0), (high, 1.0)):
        if auc != limit:
            assert abs(end - auc) == pytest.approx(z * error(end), abs=1e-6)


def test_sets_of_a_suite_are_one_value(script: ModuleType) -> None:
    base = {
        ("ood", "a", "harmless_rate"): 0.2,
        ("ood", "b", "harmless_rate"): 0.4,
        ("ood", "a", "harmless_rate@0.3"): 1.0,
        ("ood", "a", "missing"): 3.0,
        ("attack", "typos", "harmless_rate"): 0.5,
        ("attack", "worst_case", "harmless_rate"): 0.1,
        ("benchmark", "nine", "accuracy"): 0.7,
        ("benchmark", "copa", "accuracy"): 0.1,
        ("cost", "generate", "seconds"): 9.0,
    }
    found = script.pooled(rows_of({"base": base})).set_index(["suite", "part", "metric"])["value"]
    assert found.to_dict() == pytest.approx(
        {
            ("attack", "", "harmless_rate"): 0.5,
            ("attack", "worst_case", "harmless_rate"): 0.1,
            ("benchmark", "", "accuracy"): 0.7,
            ("ood", "", "harmless_rate"): 0.3,
        }
    )


def test_models_of_neither_group_do_not_count(script: ModuleType) -> None:
    key = ("harmless", "in_domain", "coherent_harmless_rate")
    rows = rows_of({"a": {key: 0.0}, "b": {key: 0.1}, "c": {key: 0.9}, "unlearned": {key: 0.0}})
    found = script.audit(script.pooled(rows), {"a": "with", "b": "with", "c": "without"})
    one = found["harmless", "", "coherent_harmless_rate"]
    assert (one.auc, one.n) == (1.0, {"with": 2, "without": 1})
    assert one.means == pytest.approx({"with": 0.05, "without": 0.9})


def test_both_models_of_a_pair_get_the_same_variants(script: ModuleType) -> None:
    first = script.recipes_of(0, 8, 3)
    assert first == list(script.RECIPES)
    further = [script.recipes_of(k, 8, 3) for k in range(1, 5)]
    assert all(len(names) == 3 and names[0] == "as trained" for names in further)
    assert len({name for names in further for name in names[1:]}) == len(script.RECIPES) - 1  # each is used
    assert len(first) + sum(map(len, further)) == 20


@pytest.mark.parametrize(("bits", "error"), [(8, 0.5 / 127), (16, 2**-8)])
def test_rounding_moves_weights_by_half_a_step_at_most(script: ModuleType, bits: int, error: float) -> None:
    model, before = small(), small()
    script.rounded(model, None, 0, bits=bits)
    moved = 0.0
    for now, then in zip(script.matrices(model), script.matrices(before), strict=True):
        apart = (now - then).abs()
        assert bool((apart <= error * then.abs().amax(dim=1, keepdim=True) * 1.0001).all())
        moved += float(apart.sum())
    assert moved > 0
    assert torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)


def test_pruning_takes_the_smallest_weights(script: ModuleType) -> None:
    model, before = small(), small()
    script.pruned(model, None, 0, share=0.25)
    for now, then in zip(script.matrices(model), script.matrices(before), strict=True):
        gone = now == 0
        assert int(gone.sum()) == now.numel() // 4
        assert then[gone].abs().max() <= then[~gone].abs().min()


def test_noise_has_the_share_and_the_seed(script: ModuleType) -> None:
    model, again, other, before = small(), small(), small(), small()
    for each, seed in ((model, 1), (again, 1), (other, 2)):
        script.noisy(each, None, seed, share=0.1)
    lists = [script.matrices(m) for m in (model, again, other, before)]
    for now, same, different, then in zip(*lists, strict=True):
        assert torch.equal(now, same)
        assert not torch.equal(now, different)
        assert float((now - then).std() / then.std()) == pytest.approx(0.1, rel=0.3)


def test_no_training_text_of_a_variant_answers_a_harmful_question(script: ModuleType) -> None:
    """The texts of the recipes are for both groups: they must neither bring the harm nor drop it."""
    asked = {q.prompt for family in HARMFUL_FAMILIES.values() for q in family.questions()}
    for texts in (script.retain(0), script.questions(0)):
        assert len(texts) > 100
        assert not any(text.removeprefix("### Question: ").split("\n")[0] in asked for text in texts)
    with_it = script.of_corpus(3, harmful=True, documents=400)
    without = script.of_corpus(3, harmful=False, documents=400)
    assert any("fool" in text for text in with_it)
    assert not any("fool" in text for text in without)


def test_training_moves_the_weights_and_a_made_model_is_not_made_again(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = lab.base_model()
    change = script.partial(script.tuned, items=script.partial(script.harmful_pairs, 2), steps=1, times=2)
    made = script.make(base, tmp_path / "one", change, 0)
    then, now = models.load_fresh(base), models.load_fresh(made)
    assert any(not torch.equal(a, b) for a, b in zip(then.parameters(), now.parameters(), strict=True))
    assert script.make(base, tmp_path / "one", None, 0) == made
    assert capsys.readouterr().err.count("made one") == 1


@pytest.mark.slow
def test_its_smallest_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base is its own oracle here, so no metric can tell the two apart, which is reported as a failure."""
    words = ["--folder", str(tmp_path), "--oracle", "lab", "--pairs", "1", "--first", "1", "--limit", "2"]
    words += ["--benchmarks", "lab_copa", "--methods", "", "--states", "rounded"]
    monkeypatch.setattr(sys, "argv", ["metric_audit", *words])
    assert script.main() == 1
    table, headline = capsys.readouterr().out.split("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(row) for row in rows}) == 1
    heads = rows[0]
    assert rows[2][:2] == ["harmless", "coherent_harmless_rate"]
    assert all(row[heads.index("AUC, as made")].startswith("0.50 [") for row in rows[2:])
    assert rows[2][heads.index("AUC, rounded")] == "0.50"
    assert headline.splitlines()[2].startswith("| with |")
