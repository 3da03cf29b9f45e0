"""Noise and distillation after unlearning."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wpn_bench import models
from wpn_bench.errors import JobFailed
from wpn_bench.jobs.job import Job, StageContext
from wpn_bench.jobs.rates import count_items
from wpn_bench.prompts import Item
from wpn_bench.unlearn import train as training
from wpn_bench.unlearn.batches import Batch, Batches
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.methods.base import NOT_IN_DIGEST, MethodConfig, UndoConfig, digested
from wpn_bench.unlearn.train import TRAINING, UNDO, run_train_stage
from wpn_bench.unlearn.undo import Distilling, corrupt

from .training import QUICK, TEMPLATE, Done, Weights, equal, method_of, put_needs

UNDONE = {"alpha": 0.4, "beta": 0.1, "steps": 30, "lr": 3e-3}


def test_noise_is_a_share_of_a_new_initialisation(small_opt: Path, weights: Callable[[Any], Weights]) -> None:
    model = models.load_fresh(small_opt)
    before = weights(model)
    corrupt(model, 0.3, 0.2, seed=5)
    drawn, matrices = torch.Generator().manual_seed(5), 0
    for name, p in model.named_parameters():
        found = p.detach()
        if p.dim() == 1:
            assert torch.allclose(found, 0.7 * before[name], atol=1e-7), name
            continue
        matrices += 1
        rows, columns = p.shape  # Glorot and Bengio 2010, equation 16
        noise = (2 * torch.rand(rows, columns, generator=drawn) - 1) * math.sqrt(6 / (rows + columns))
        assert torch.allclose(found, 0.7 * before[name] + 0.3 * 0.2 * noise, atol=1e-7), name
    assert matrices > 4


def test_noise_depends_on_the_seed_alone(small_opt: Path, weights: Callable[[Any], Weights]) -> None:
    found = []
    for seed, state in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(state)
        model = models.load_fresh(small_opt)
        corrupt(model, 0.3, 0.1, seed)
        after = torch.random.get_rng_state()
        torch.manual_seed(state)
        assert torch.equal(after, torch.random.get_rng_state())
        found.append(weights(model))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_tied_weights_stay_tied_and_get_one_noise(small_opt: Path) -> None:
    model = models.load_fresh(small_opt)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embedding is head
    before = embedding.detach().clone()
    corrupt(model, 0.5, 0.1, seed=0)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    bound = 0.5 * 0.1 * math.sqrt(6 / sum(embedding.shape))
    change = (embedding - 0.5 * before).abs().max()
    assert 0.9 * bound < float(change.detach()) <= bound + 1e-7


def divergence(teacher: Any, student: Any, folder: Path, items: list[Item], texts: list[str]) -> dict[str, float]:
    """Mean KL(p_teacher || p_student) of the rows of a batch, row by row without padding, from whole distributions."""
    batches = Batches(
        models.load_tokenizer(folder),
        items,
        texts,
        template=TEMPLATE,
        uses=frozenset({"harmless", "retain"}),
        steps=1,
        batch_size=4,
        retain_batch_size=3,
        negatives=1,
        max_length=64,
        retain_max_length=64,
        seed=3,
    )
    batch, found = Batch.from_tensors(batches[0]), {}
    for name in ("harmless", "retain"):
        rows, each = getattr(batch, name), []
        for ids, mask in zip(rows.input_ids, rows.attention_mask, strict=True):
            tokens = ids[mask.bool()].unsqueeze(0)
            with torch.inference_mode():
                p, q = (m(input_ids=tokens).logits[0, :-1].double().log_softmax(-1) for m in (teacher, student))
            each += (p.exp() * (p - q)).sum(-1).tolist()
        found[name] = sum(each) / len(each)
    return found


def test_the_loss_is_the_divergence_from_the_teacher(small_lm: Path, items: list[Item], texts: list[str]) -> None:
    teacher, student = models.load_fresh(small_lm).eval(), models.load_fresh(small_lm).eval()
    corrupt(student, 0.2, 0.1, seed=0)
    expected = divergence(teacher, student, small_lm, items, texts)
    batches = Batches(
        models.load_tokenizer(small_lm),
        items,
        texts,
        template=TEMPLATE,
        uses=Distilling(MethodConfig()).uses,
        steps=1,
        batch_size=4,
        retain_batch_size=3,
        negatives=1,
        max_length=64,
        retain_max_length=64,
        seed=3,
    )
    loss = Distilling(MethodConfig()).loss(student, Batch.from_tensors(batches[0]), teacher)
    assert loss.parts["harmless_kl"] == pytest.approx(expected["harmless"], rel=1e-4)
    assert loss.parts["retain_kl"] == pytest.approx(expected["retain"], rel=1e-4)
    assert float(loss.total.detach()) == pytest.approx(sum(expected.values()) / 2, rel=1e-4)
    assert min(expected.values()) > 1e-3


@pytest.mark.parametrize("name", ["wpn", "ga", "task_vector"])  # with and without a reference, and with a changed end
def test_the_student_comes_near_its_teacher(
    name: str, small_lm: Path, items: list[Item], texts: list[str], weights: Callable[[Any], Weights]
) -> None:
    teacher = Done(small_lm, method_of(name), items, texts)
    done = Done(small_lm, method_of(name, undo=UNDONE), items, texts)
    assert done.said.history == teacher.said.history
    assert teacher.said.distilled is None
    found = done.said.distilled
    assert found is not None
    assert [h["step"] for h in found.history] == list(range(1, 31))
    assert done.said.steps == 12 + 30
    assert found.lr == 3e-3
    # The noise alone, without distillation.
    corrupted = Done(small_lm, method_of(name), items, texts)
    corrupt(corrupted.model, 0.4, 0.1, seed=0)
    corrupted.model.eval()
    far, near = (divergence(teacher.model, one.model, small_lm, items, texts) for one in (corrupted, done))
    for kind in far:
        assert near[kind] < 0.7 * far[kind], kind
    assert not equal(weights(done.model), weights(teacher.model))
    assert not done.model.training
    assert all(p.requires_grad for p in done.model.parameters())


def test_the_same_seed_gives_the_same_model(
    small_opt: Path, items: list[Item], texts: list[str], weights: Callable[[Any], Weights]
) -> None:
    found = []
    for seed, state in ((4, 1), (4, 2), (5, 1)):
        torch.manual_seed(state)
        method = method_of("sft", steps=3, undo={**UNDONE, "steps": 4})
        found.append(weights(Done(small_opt, method, items, texts, seed=seed).model))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def test_without_the_option_nothing_changes(
    small_opt: Path, items: list[Item], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("there is no noise to draw")

    monkeypatch.setattr("wpn_bench.unlearn.undo.corrupt", never)
    assert Done(small_opt, method_of("sft", steps=2), items, texts).said.distilled is None
    with pytest.raises(AssertionError, match="no noise"):
        Done(small_opt, method_of("sft", steps=2, undo=True), items, texts)
    options = MethodConfig()
    assert "undo" not in digested(options)
    assert digested(options) == options.model_dump(mode="json", exclude={*NOT_IN_DIGEST, "sam", "undo"})
    assert digested(MethodConfig(undo=0.5))["undo"] == {"alpha": 0.5, "beta": 0.1, "steps": 200, "lr": None}


def test_the_teacher_is_the_model_of_the_training(
    small_opt: Path,
    items: list[Item],
    texts: list[str],
    weights: Callable[[Any], Weights],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The noise meets the weights that the training without the option ends with, bit for bit."""
    plain = weights(Done(small_opt, method_of("sft", steps=3), items, texts).model)
    met: list[Weights] = []
    monkeypatch.setattr("wpn_bench.unlearn.undo.corrupt", lambda model, *rest: met.append(weights(model)))
    done = Done(small_opt, method_of("sft", steps=3, undo={"steps": 1, "lr": 1e-9}), items, texts)
    assert equal(met[0], plain)
    assert done.said.distilled is not None
    assert done.said.distilled.history[0]["loss"] == pytest.approx(0, abs=1e-3)


def test_progress_counts_the_steps_of_both(small_opt: Path, items: list[Item], texts: list[str]) -> None:
    counted: list[int] = []
    method = method_of("sft", steps=3, undo={"steps": 4})
    Done(small_opt, method, items, texts, advance=counted.append)
    assert sum(counted) == method.config.all_steps == 7


def test_a_pause_comes_before_the_noise(small_opt: Path, items: list[Item], texts: list[str], tmp_path: Path) -> None:
    method = method_of("sft", steps=4, undo={"steps": 2})
    paused = Done(small_opt, method, items, texts, checkpoints=tmp_path, until=2).said
    assert (paused.paused, paused.steps, paused.distilled) == (True, 2, None)
    whole = Done(small_opt, method, items, texts, checkpoints=tmp_path).said
    assert (whole.paused, whole.steps) == (False, 6)


def test_a_killed_distillation_goes_on(
    small_opt: Path,
    items: list[Item],
    texts: list[str],
    tmp_path: Path,
    weights: Callable[[Any], Weights],
) -> None:
    class Killed(Exception):
        pass

    method = method_of("sft", steps=4, save_every=2, undo={"steps": 6})
    expected = Done(small_opt, method, items, texts, checkpoints=tmp_path / "whole")
    steps = 0

    def kill(n: int) -> None:
        nonlocal steps
        steps += n
        if steps == 4 + 5:
            raise Killed

    with pytest.raises(Killed):
        Done(small_opt, method, items, texts, checkpoints=tmp_path / "killed", advance=kill)
    assert (tmp_path / "killed" / UNDO / "checkpoint-4").is_dir()
    again = Done(small_opt, method, items, texts, checkpoints=tmp_path / "killed")
    assert equal(weights(again.model), weights(expected.model))
    assert again.said.distilled is not None
    assert expected.said.distilled is not None
    assert again.said.distilled.history == expected.said.distilled.history
    shutil.rmtree(tmp_path / "killed" / UNDO)  # and from the start, if nothing of the distillation is left
    assert equal(
        weights(Done(small_opt, method, items, texts, checkpoints=tmp_path / "killed").model), weights(again.model)
    )


def test_one_teacher_is_copied(
    small_opt: Path, items: list[Item], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import copy

    copied: list[Any] = []
    deepcopy = copy.deepcopy

    def noting(one: Any, *rest: Any) -> Any:
        if not rest and isinstance(one, torch.nn.Module):
            copied.append(one)
        return deepcopy(one, *rest)

    monkeypatch.setattr("copy.deepcopy", noting)
    Done(small_opt, method_of("sft", steps=1, undo={"steps": 1}), items, texts)
    assert len(copied) == 1


def test_a_distillation_that_diverges_fails(small_opt: Path, items: list[Item], texts: list[str]) -> None:
    with pytest.raises(JobFailed, match=r"training diverged: the loss of undo is \S+ at step \d+ .*; lower lr"):
        Done(small_opt, method_of("sft", steps=1, undo={"steps": 8, "lr": 1e30}), items, texts)


def test_the_stage_records_the_distillation(
    small_opt: Path, items: list[Item], texts: list[str], tmp_path: Path
) -> None:
    config = {**QUICK, "steps": 3, "undo": {"alpha": 0.5, "steps": 4}}
    counted: list[tuple[int, str]] = []
    params = {"method": "sft", "config": config, "seed": 1, "template": TEMPLATE.value, "dtype": "float32"}
    ctx = StageContext(
        params,
        {"model": small_opt, **put_needs(tmp_path, items, texts)},
        tmp_path / "out",
        {"device": "cpu"},
        lambda total, unit="items": counted.append((total, unit)) or (lambda n: None),
    )
    ctx.out.mkdir()
    run_train_stage(ctx)
    said = json.loads((ctx.out / TRAINING).read_text(encoding="utf-8"))
    assert counted == [(7, "steps")]
    assert (said["steps"], len(said["history"])) == (7, 3)
    assert said["config"]["undo"]["alpha"] == 0.5
    assert said["undo"]["steps"] == len(said["undo"]["history"]) == 4
    assert said["undo"]["lr"] == pytest.approx(0.25 / training.width_of(models.load(small_opt)[0]))
    assert said["seconds"] >= said["undo"]["seconds"]


def test_every_method_takes_the_option() -> None:
    for name in METHODS:
        kind = METHODS.get(name)
        assert kind.Config(undo=True).undo == UndoConfig()
        assert kind.Config(undo=False).undo is None


@pytest.mark.parametrize(("options", "items"), [({}, 100), ({"undo": {"steps": 30}}, 130)])
def test_the_forecast_counts_the_steps_of_both(options: dict[str, Any], items: int) -> None:
    job = Job("train", {"method": "sft", "config": digested(MethodConfig(**options))}, {}, "train")
    assert count_items(job) == items
    assert count_items(replace(job, params={**job.params, "until": 40})) == 40
