from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from jinja2 import Environment
from jinja2.sandbox import SandboxedEnvironment

from wpn_bench import models
from wpn_bench.benchmarks import loading
from wpn_bench.benchmarks.run import describe, evaluate_task, run_benchmark_stage
from wpn_bench.errors import UserError
from wpn_bench.jobs.job import StageContext


@pytest.fixture
def loaded(tiny_model: Path):
    return models.load(tiny_model)


def test_a_task_is_measured(loaded, task_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []

    def progress(total: int | None, unit: str):
        assert (total, unit) == (6, "requests")
        return told.append

    result = evaluate_task(*loaded, "wpn_colours", batch_size=2, include_paths=(task_folder,), progress=progress)
    assert (result.task, result.short, result.n) == ("wpn_colours", "colours", 3)
    assert sum(told) == 6
    assert [d.doc_id for d in result.documents] == [0, 1, 2]
    assert [d.target for d in result.documents] == ["blue", "green", "white"]
    for document in result.documents:
        assert document.correct == (document.prediction == document.target)
        assert len(document.loglikelihoods) == 2
        assert all(ll < 0 for ll in document.loglikelihoods)
    assert result.accuracy == sum(d.correct for d in result.documents) / 3
    assert set(result.metrics) == {"acc", "acc_norm"}
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_loglikelihoods_are_the_models_own(loaded, task_folder: Path) -> None:
    """One document by hand: the summed log-probability of the choice's tokens after the prompt."""
    model, tokenizer = loaded
    result = evaluate_task(model, tokenizer, "wpn_colours", limit=1, include_paths=(task_folder,))
    for choice, reported in zip(("blue", "green"), result.documents[0].loglikelihoods, strict=True):
        prompt = tokenizer.encode("Q: Sky? A:", add_special_tokens=False)
        whole = tokenizer.encode(f"Q: Sky? A: {choice}", add_special_tokens=False)
        with torch.inference_mode():
            logp = model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)
        by_hand = sum(logp[i - 1, whole[i]].item() for i in range(len(prompt), len(whole)))
        assert reported == pytest.approx(by_hand, abs=1e-4)


def test_the_callers_state_is_left_alone(loaded, task_folder: Path) -> None:
    model, tokenizer = loaded
    logger = logging.getLogger("lm_eval")
    level, pad = logger.level, tokenizer.pad_token
    before = torch.get_rng_state()
    evaluate_task(model, tokenizer, "wpn_colours", limit=1, include_paths=(task_folder,))
    assert torch.equal(torch.get_rng_state(), before)
    assert (logger.level, tokenizer.pad_token) == (level, pad)


def test_every_template_is_rendered_in_the_sandbox_and_compiled_once(
    loaded, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two models, three documents each: lm-eval asks for the template before and after the model answers."""
    compiled: list[object] = []
    compile_template = Environment.compile

    def counted(self: Environment, source: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append((isinstance(self, SandboxedEnvironment), str(source)))
        return compile_template(self, source, *args, **kwargs)

    monkeypatch.setattr(Environment, "compile", counted)
    loading._sandbox.cache_clear()
    first = evaluate_task(*loaded, "wpn_colours", include_paths=(task_folder,))
    second = evaluate_task(*loaded, "wpn_colours", include_paths=(task_folder,))
    assert compiled == [(True, "Q: {{q}} A:")]
    assert first == second


def test_batch_size_moves_nothing_but_last_digits(loaded, task_folder: Path) -> None:
    one = evaluate_task(*loaded, "wpn_colours", batch_size=1, include_paths=(task_folder,))
    many = evaluate_task(*loaded, "wpn_colours", batch_size=64, include_paths=(task_folder,))
    for a, b in zip(one.documents, many.documents, strict=True):
        assert a.loglikelihoods == pytest.approx(b.loglikelihoods, abs=1e-4)


def test_a_broken_model_is_measured_too(loaded, task_folder: Path, tiny_model: Path) -> None:
    """Unlearning may leave a model that answers NaN: lm-eval takes the first choice; none is claimed here."""
    broken = models.load_fresh(tiny_model)
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(float("nan"))
    result = evaluate_task(broken, loaded[1], "wpn_colours", include_paths=(task_folder,))
    assert result.n == 3
    assert {d.prediction for d in result.documents} == {None}


def test_a_task_with_one_other_metric_is_scored_by_it(loaded, task_folder: Path) -> None:
    text = (task_folder / "colours.yaml").read_text().replace("wpn_colours", "wpn_norm_only")
    text = text.replace("  - {metric: acc, aggregation: mean, higher_is_better: true}\n", "")
    (task_folder / "norm.yaml").write_text(text)
    assert describe("wpn_norm_only", (task_folder,)).score == "acc_norm,none"
    result = evaluate_task(*loaded, "wpn_norm_only", include_paths=(task_folder,))
    assert result.accuracy == result.metrics["acc_norm"]
    with pytest.raises(UserError, match="'wpn_norm_only' reports no f1,none"):
        evaluate_task(*loaded, "wpn_norm_only", include_paths=(task_folder,), score="f1,none")


def test_missing_local_data_is_named(loaded, task_folder: Path) -> None:
    (task_folder.parent / "colours.jsonl").unlink()
    with pytest.raises(UserError, match="the data of task 'wpn_colours' cannot be read"):
        evaluate_task(*loaded, "wpn_colours", include_paths=(task_folder,))


def test_local_data_has_no_revision(task_folder: Path) -> None:
    info = describe("wpn_colours", (task_folder,))
    assert (info.revision, info.title, info.chance) == (None, "Colours", 0.5)


def test_the_stage_writes_result_and_documents(tiny_model: Path, task_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ctx = StageContext(
        params={"task": "wpn_colours", "limit": 2, "batch_size": 2, "revision": None, "dtype": "float32"},
        needs={"model": tiny_model},
        out=out,
        local={"include_paths": [str(task_folder)], "device": "cpu"},
        progress=lambda total, unit: lambda n: None,
    )
    run_benchmark_stage(ctx)
    result = json.loads((out / "result.json").read_text())
    frame = pd.read_parquet(out / "documents.parquet")
    assert result["n"] == len(frame) == 2
    assert result["accuracy"] == frame["correct"].mean()
    again = evaluate_task(*models.load(tiny_model), "wpn_colours", limit=2, batch_size=2, include_paths=(task_folder,))
    assert [asdict(d)["doc_hash"] for d in again.documents] == frame["doc_hash"].tolist()
