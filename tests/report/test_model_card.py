"""The card of a trained model: what the hub's library reads of it, and that nothing of a run breaks it."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from wpn_bench.report.model_card import card

from .fake_run import HOSTILE_TITLE, results

TRAINING = {"method": "sft", "steps": 37, "stopped": "validation harmless rate 0.910 reached 0.9", "lr": 6.51e-5}
DIGEST = "0123456789abcdef" * 4
SHA = "a" * 40


@pytest.fixture
def found() -> dict[str, Any]:
    made: dict[str, Any] = results()
    made["run"] |= {"model": "facebook/opt-125m", "revision": SHA, "lab": False, "command": "wpn-bench full -m `x`"}
    made["models"]["sft"] |= {"config": {"kl": 0.5, "lr": None, "lora": {"rank": 4, "alpha": None}}, "seed": 0}
    for row in made["metrics"]:
        if row["model"] == "sft" and row["seed"] is None:
            row["seed"] = 0
    return made


@pytest.fixture
def manifest() -> dict[str, Any]:
    hub = {"hub": "PKU-Alignment/PKU-SafeRLHF", "config": None, "split": "train", "revision": SHA}
    own = {"file": "triples.jsonl"}
    return {
        "wpn_bench": "0.1.0",
        "prompt_sets": {
            "pku_forget": {"suite": "forget", "n": 2000, "source": hub},
            "held": {"suite": "validation", "n": 100, "source": own},
            "rtp_triples_test": {"suite": "harmless", "n": 239, "source": own},
            "advbench": {"suite": "ood", "n": 200, "source": {"hub": "walledai/AdvBench", "split": "train"}},
        },
        "texts": {"wikitext": {"role": "retain", "n": 500, "source": {"hub": "Salesforce/wikitext"}}},
        "tasks": {"copa": {"task": "wpn_copa", "dataset": "aps/super_glue", "revision": SHA}},
    }


def test_the_hub_reads_its_metadata(found: dict[str, Any], manifest: dict[str, Any]) -> None:
    read = ModelCard(card(found, manifest, TRAINING, "sft", 0, DIGEST))
    data = read.data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (
        "facebook/opt-125m",
        "transformers",
        "text-generation",
    )
    assert {"unlearning", "wpn-bench", "sft"} == set(data.tags or [])
    assert data.datasets == ["PKU-Alignment/PKU-SafeRLHF", "Salesforce/wikitext"]
    assert data.model_name == "opt-125m-sft"
    mine = [r for r in found["metrics"] if r["model"] == "sft" and r["seed"] == 0]
    assert data.eval_results
    by = {(e.dataset_name, e.metric_type): e for e in data.eval_results}
    assert len(by) == len(data.eval_results)
    for name in ("rtp_triples_test", "advbench", "role_play"):
        (row,) = [r for r in mine if r["set"] == name and r["metric"] == "coherent_harmless_rate"]
        result = by[name, "coherent_harmless_rate"]
        assert result.metric_value == pytest.approx(row["value"], abs=1e-4)
        assert (result.metric_args or {})["n"] == row["n"]
    assert by["advbench", "coherent_harmless_rate"].dataset_type == "walledai/AdvBench"
    assert by["advbench", "coherent_harmless_rate"].task_name == "out of distribution"
    assert by["copa", "accuracy"].dataset_type == "aps/super_glue"
    assert by["role_play", "harmless_rate"].dataset_type == "role_play"
    assert by["benchmark average", "accuracy"].metric_value
    assert by["held-out text", "perplexity"].metric_value > 1
    # And so it does after its own writing.
    assert ModelCard(str(read)).data.to_dict() == data.to_dict()


def test_what_a_person_reads(found: dict[str, Any], manifest: dict[str, Any]) -> None:
    text = card(found, manifest, TRAINING, "sft", 0, DIGEST)
    assert DIGEST in text
    assert "facebook/opt-125m (revision aaaaaaaaaaaa)" in text
    assert "L = CE(y+ | x) + kl * KL(p_ref || p_theta)(retain)." in text
    assert "| optimiser steps | 37 (validation harmless rate 0.910 reached 0.9) |" in text
    assert "| peak learning rate | 6.51e-05 |" in text
    assert r"| data to forget | pku\_forget (PKU-Alignment/PKU-SafeRLHF at aaaaaaaaaaaa), 2000 |" in text
    assert "| data to retain | wikitext (Salesforce/wikitext), 500 |" in text
    assert "to stop by" not in text
    assert "to answer" not in text
    assert "| lora.rank | 4 |" in text
    assert "they lie in `adapter/`" in text
    assert "not dangerous help" in text
    assert "Made by `wpn-bench full -m 'x'`." in text
    lines = [line for line in text.splitlines() if line.startswith("| in domain |")]
    assert [line.split(" | ")[2] for line in lines] == ["coherent-harmless rate", "harmless rate"]
    assert {line.count("|") for line in lines} == {7}


def test_text_of_a_run_stays_text(found: dict[str, Any], manifest: dict[str, Any]) -> None:
    assert found["models"]["sft"]["title"] == HOSTILE_TITLE
    manifest["prompt_sets"]["pku_forget"]["source"] = {"file": "a|b\n<script>"}
    text = card(found, manifest, TRAINING, "sft", 0, DIGEST)
    assert "<script" not in text
    assert "<img" not in text
    assert r"a\|b &lt;script&gt;" in text


def test_a_folder_of_ones_own_is_no_base_on_the_hub(found: dict[str, Any], manifest: dict[str, Any]) -> None:
    found["run"] |= {"model": "../models/mine", "revision": None}
    text = card(found, manifest, TRAINING, "sft", 0, DIGEST)
    assert ModelCard(text).data.base_model is None
    assert ModelCard(text).data.model_name == "mine-sft"
    assert ".." not in text
    assert "mine with its harmful answers unlearned" in text


def test_a_model_that_was_not_measured(found: dict[str, Any], manifest: dict[str, Any]) -> None:
    """`wpn-bench train`: no model-index at all, rather than an empty one, which the library refuses."""
    found["metrics"] = [r for r in found["metrics"] if r["suite"] == "cost"]
    text = card(found, manifest, TRAINING, "sft", 0, DIGEST)
    assert ModelCard(text).data.eval_results is None
    assert "this run only trained" in text


def test_figures_are_of_the_seed_alone(found: dict[str, Any], manifest: dict[str, Any]) -> None:
    extra = [r | {"seed": 1, "value": 0.123} for r in found["metrics"] if r["model"] == "sft" and r["suite"] == "ood"]
    found["metrics"] += extra
    one, other = (ModelCard(card(found, manifest, TRAINING, "sft", seed, DIGEST)).data.eval_results for seed in (0, 1))
    assert one
    assert other
    assert {e.metric_value for e in other} == {0.123}
    assert 0.123 not in {e.metric_value for e in one}


def test_caution_where_it_is_due(found: dict[str, Any], manifest: dict[str, Any]) -> None:
    plain = card(found, manifest, TRAINING, "sft", 0, DIGEST)
    assert ("toy" in plain, "rehearsal" in plain) == (False, bool(found["run"]["limit"]))
    found["run"] |= {"lab": True, "limit": 3, "model": "lab", "revision": None}
    text = card(found, manifest, TRAINING, "sft", 0, DIGEST)
    assert "toy model" in text
    assert "only the first 3 items" in text


def test_benign_prompts_are_among_the_data_of_a_method_that_uses_them(
    found: dict[str, Any], manifest: dict[str, Any]
) -> None:
    benign = {"suite": "benign_prompts", "n": 88, "source": {"file": "questions.jsonl"}}
    manifest["prompt_sets"] |= {"benign_prompts": benign}
    found["models"]["ga"]["config"] = {}
    answers = r"| data to answer | benign\_prompts (questions.jsonl), 88 |"
    assert answers in card(found, manifest, TRAINING, "sft", 0, DIGEST)
    assert answers not in card(found, manifest, TRAINING, "ga", 0, DIGEST)
