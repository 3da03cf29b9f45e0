"""Accumulation, precision, checkpointed activations, going on after a kill: the same training by other means."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wpn_bench import models
from wpn_bench.errors import JobFailed
from wpn_bench.prompts import Item
from wpn_bench.unlearn.batches import Batch, Batches
from wpn_bench.unlearn.loop import Record, UnlearnTrainer
from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, mean_over, predicted, token_logprobs
from wpn_bench.unlearn.train import Curves

from .training import QUICK, TEMPLATE, Done, Weights, equal, method_of

Copy = Callable[[Any], Weights]


@pytest.fixture
def with_dropout(small_lm: Path, tmp_path: Path) -> Path:
    """The model with dropout, as OPT-125M trains: what is drawn at random must be drawn again after a kill."""
    folder = shutil.copytree(small_lm, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    extra = {"dropout": 0.1} if config["model_type"] == "opt" else {"resid_dropout": 0.1, "embed_dropout": 0.1}
    (folder / "config.json").write_text(json.dumps(config | extra))
    return folder


# --- accumulation ----------------------------------------------------------------------------------------------------


def by_hand(folder: Path, method: Method, items: list[Item]) -> tuple[Weights, list[float]]:
    """AdamW on the mean loss of each step's micro-batches, written out."""
    config = method.config
    model = models.load_fresh(folder)
    batches = Batches(
        models.load_tokenizer(folder),
        items,
        [],
        template=TEMPLATE,
        uses=method.uses,
        steps=config.steps * config.accumulation,
        batch_size=config.batch_size,
        retain_batch_size=1,
        negatives=method.negatives,
        max_length=config.max_length,
        retain_max_length=64,
        seed=0,
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, config.beta2), eps=1e-8, weight_decay=0)
    model.train()
    losses = []
    for step in range(config.steps):
        optimiser.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        micro = [batches[step * config.accumulation + k] for k in range(config.accumulation)]
        loss = torch.stack([method.loss(model, Batch.from_tensors(m), None).total for m in micro]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimiser.step()
        losses.append(float(loss.detach()))
    return {name: value.detach() for name, value in model.state_dict().items()}, losses


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("name", ["sft", "ga"])
def test_a_step_is_the_mean_of_its_micro_batches(
    small_opt: Path, items: list[Item], name: str, accumulation: int
) -> None:
    method = method_of(name, steps=4, batch_size=2, accumulation=accumulation, schedule="linear", lr=1e-3)
    done = Done(small_opt, method, items, [])
    weights, losses = by_hand(small_opt, method, items)
    assert [h["loss"] for h in done.said.history] == pytest.approx(losses, rel=1e-5)
    assert [h["step"] for h in done.said.history] == [1, 2, 3, 4]
    for one, value in done.model.state_dict().items():
        # A bias of keys moves all scores alike: its gradient is rounding, which Adam makes as large as any other.
        if "k_proj.bias" not in one:
            torch.testing.assert_close(value, weights[one], rtol=1e-4, atol=1e-6)


def test_accumulated_items_are_other_items(small_opt: Path, items: list[Item]) -> None:
    """Two micro-batches of four of the eight items are all eight: the loss of the first step is that of one batch."""
    whole = Done(small_opt, method_of("ga", steps=1, batch_size=8), items, []).said.history[0]
    parts = Done(small_opt, method_of("ga", steps=1, batch_size=4, accumulation=2), items, []).said.history[0]
    assert parts["loss"] != whole["loss"]  # a mean of means; and the responses are drawn anew
    assert parts["loss"] == pytest.approx(whole["loss"], rel=0.2)
    assert parts["parts"]["harmful_log_likelihood"] == pytest.approx(parts["loss"])


# --- checkpointed activations, precision -----------------------------------------------------------------------------


def test_checkpointed_activations_change_nothing(
    with_dropout: Path, items: list[Item], texts: list[str], weights: Copy
) -> None:
    plain = Done(with_dropout, method_of("wpn", steps=3), items, texts)
    recomputed = Done(with_dropout, method_of("wpn", steps=3, gradient_checkpointing=True), items, texts)
    assert recomputed.said.history == plain.said.history
    assert equal(weights(recomputed.model), weights(plain.model))
    assert not any(getattr(m, "gradient_checkpointing", False) for m in recomputed.model.modules())
    assert recomputed.model.config.use_cache is True


class Probe(Method):
    """Fine-tuning that notes what it is given."""

    name = "probe"
    uses = frozenset({"harmless"})  # type: ignore[assignment]
    needs_reference = True  # type: ignore[assignment]

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.types: set[Any] = set()
        self.apart: list[float] = []

    def loss(self, model: Any, batch: Any, reference: Any) -> Loss:
        rows = batch.harmless
        for way, of in (("whole", model), ("inner", model.base_model), ("reference", reference)):
            layer = next(m for m in of.modules() if isinstance(m, torch.nn.Linear))
            hook = layer.register_forward_hook(lambda m, x, y, way=way: self.types.add((way, y.dtype)))
            with torch.no_grad():
                of(input_ids=rows.input_ids, attention_mask=rows.attention_mask)
            hook.remove()
        mask = predicted(rows, rows.response_mask)
        logp = token_logprobs(model, rows, mask)
        with torch.no_grad():
            self.apart.append(float((token_logprobs(reference, rows, mask) - logp).abs().max()))
        loss = -mean_over(logp, mask)
        self.types |= {("logp", logp.dtype), ("loss", loss.dtype)}
        return Loss(loss, {"x": 0.0})


def test_bf16_computes_in_half_and_keeps_losses_and_weights_whole(small_lm: Path, items: list[Item]) -> None:
    from torch import bfloat16, float32

    probe = Probe(MethodConfig(**{**QUICK, "steps": 4, "mixed_precision": "bf16"}))
    done = Done(small_lm, probe, items, [])
    half, whole = {"whole", "inner", "reference"}, {"logp", "loss"}
    assert probe.types == {(w, bfloat16) for w in half} | {(w, float32) for w in whole}
    assert {p.dtype for p in done.model.parameters()} == {float32}
    # Nothing learnt yet: the reference rounds as the model does. Then they part.
    assert probe.apart[0] == 0
    assert probe.apart[-1] > 0
    # And all is as it was: nothing of half precision is left behind.
    plain = models.load_fresh(small_lm)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(done.reference(input_ids=ids).logits, plain.eval()(input_ids=ids).logits)  # type: ignore[misc]
    assert not torch.is_autocast_enabled("cpu")
    assert "forward" not in {**vars(done.model), **vars(done.model.base_model)}


@pytest.mark.parametrize("more", [{}, {"lora": 2, "gradient_checkpointing": True}])
@pytest.mark.slow
def test_a_look_at_the_answers_is_in_full_precision(
    small_lm: Path, items: list[Item], texts: list[str], more: dict[str, Any]
) -> None:
    """The model is asked as it will be used, and goes on training as before."""
    from wpn_bench.engine.generation import Decoding, generate

    tokenizer = models.load_tokenizer(small_lm)
    seen: list[Any] = []

    def rate(model: Any) -> float:
        answers = generate(model, tokenizer, ["Q: Why? A:"], Decoding(max_new_tokens=3, batch_size=1))
        hook = model.get_output_embeddings().register_forward_hook(lambda m, x, y: seen.append(y.dtype))
        model(input_ids=torch.tensor([[5, 6, 7]]))
        hook.remove()
        return 0.0 if answers[0].text is not None else 1.0

    goal = {"stop_at_harmless_rate": 1.0, "check_every": 2, "steps": 4, "mixed_precision": "bf16", **more}
    looked = Done(small_lm, method_of("wpn", **goal), items, texts, harmless_rate=rate)
    assert [c["harmless_rate"] for c in looked.said.checks] == [0.0, 0.0]
    assert set(seen) == {torch.float32}
    assert looked.said.history == Done(small_lm, method_of("wpn", **goal), items, texts).said.history


def test_precisions_follow_one_another(small_opt: Path, items: list[Item], texts: list[str], weights: Copy) -> None:
    """One process trains in one precision after the other, and each is the same as alone."""
    plain = weights(Done(small_opt, method_of("sft", steps=3), items, texts).model)
    half = weights(Done(small_opt, method_of("sft", steps=3, mixed_precision="bf16"), items, texts).model)
    assert equal(plain, weights(Done(small_opt, method_of("sft", steps=3), items, texts).model))
    assert not equal(plain, half)
    for name, value in plain.items():
        torch.testing.assert_close(half[name], value, atol=0.02, rtol=0.02)


# --- going on after a kill -------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no code of ours catches."""


def killed_at(step: int) -> Callable[[int], None]:
    """A progress handle that ends the process, as it were, once `step` steps are done."""
    seen = [0]

    def advance(n: int) -> None:
        seen[0] += n
        if seen[0] >= step:
            raise Killed

    return advance


@pytest.mark.parametrize(
    "options", [{}, {"accumulation": 2, "schedule": "cosine"}, {"lora": {"rank": 4, "dropout": 0.1}}]
)
@pytest.mark.parametrize("name", ["wpn", "ga", "pdu", "task_vector"])  # PDU keeps something from step to step
@pytest.mark.slow
def test_killed_and_gone_on(
    with_dropout: Path,
    items: list[Item],
    texts: list[str],
    weights: Copy,
    tmp_path: Path,
    name: str,
    options: dict[str, Any],
) -> None:
    """Twice killed, and still every weight and every figure is that of the training nobody disturbed."""
    method = method_of(name, save_every=3, **options)
    whole = Done(with_dropout, method, items, texts)
    scratch = tmp_path / "scratch"
    done: list[int] = []
    for step in (5, 10):
        with pytest.raises(Killed):
            Done(with_dropout, method, items, texts, checkpoints=scratch, advance=killed_at(step))
    last = Done(with_dropout, method, items, texts, checkpoints=scratch, advance=done.append)
    assert done[0] == 9  # the tenth step was after the last checkpoint
    assert sum(done) == 12
    assert last.said.history == whole.said.history
    assert (last.said.steps, last.said.stopped) == (12, "all steps done")
    assert equal(weights(last.model), weights(whole.model))


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 4, "dropout": 0.1}}])
@pytest.mark.parametrize("name", ["wpn", "task_vector"])  # the second changes its weights at the end
def test_paused_and_gone_on(
    with_dropout: Path,
    items: list[Item],
    texts: list[str],
    weights: Copy,
    tmp_path: Path,
    name: str,
    options: dict[str, Any],
) -> None:
    """The model at a pause is that of the same training there, and the end is that of a training without a pause."""
    method = method_of(name, steps=6, save_every=0, **options)
    at: dict[int, Any] = {}
    whole = Done(
        with_dropout, method, items, texts, after_step=lambda step, now: at.setdefault(step, weights(now())),
        checkpoints=tmp_path / "whole",
    )  # fmt: skip
    scratch = tmp_path / "scratch"
    for until in (1, 3):
        paused = Done(with_dropout, method, items, texts, checkpoints=scratch, until=until)
        assert (paused.said.steps, paused.said.paused, paused.said.stopped) == (
            until,
            True,
            f"paused after step {until}",
        )
        assert equal(weights(paused.model), at[until])
    done: list[int] = []
    # Interrupted between its checkpoint and its end: nothing is trained again.
    again = Done(with_dropout, method, items, texts, checkpoints=scratch, until=3, advance=done.append)
    assert (done, again.said.steps, again.said.paused) == ([3], 3, True)
    assert equal(weights(again.model), at[3])
    last = Done(with_dropout, method, items, texts, checkpoints=scratch)
    assert (last.said.steps, last.said.paused, last.said.stopped) == (6, False, "all steps done")
    assert last.said.history == whole.said.history
    assert equal(weights(last.model), weights(whole.model))


def test_a_pause_after_the_end_is_none(small_opt: Path, items: list[Item], texts: list[str], tmp_path: Path) -> None:
    rate = {"stop_at_harmless_rate": 0.5, "check_every": 2}
    method = method_of("ga", steps=6, save_every=0, **rate)
    stopped = Done(small_opt, method, items, texts, harmless_rate=lambda m: 1.0, checkpoints=tmp_path, until=4)
    assert (stopped.said.steps, stopped.said.paused) == (2, False)
    method = method_of("sft", steps=3, save_every=0)
    ended = Done(small_opt, method, items, texts, checkpoints=tmp_path / "sft", until=3)
    assert ended.said.steps == 3


@pytest.mark.parametrize("name", ["wpn", "npo"])  # benign items as items, and as retain texts
def test_training_on_benign_items_goes_on(
    small_opt: Path, items: list[Item], texts: list[str], weights: Copy, tmp_path: Path, name: str
) -> None:
    method = method_of(name, steps=6, save_every=2)
    benign = {"benign": items[5:], "benign_share": 0.5}
    whole = Done(small_opt, method, items[:5], texts, **benign)
    with pytest.raises(Killed):
        Done(small_opt, method, items[:5], texts, checkpoints=tmp_path, advance=killed_at(3), **benign)
    last = Done(small_opt, method, items[:5], texts, checkpoints=tmp_path, **benign)
    assert last.said.history == whole.said.history
    assert equal(weights(last.model), weights(whole.model))
    without = Done(small_opt, method, items[:5], texts)
    assert without.said.history[0]["loss"] != whole.said.history[0]["loss"]


def test_checks_go_on_too(small_opt: Path, items: list[Item], texts: list[str], weights: Copy, tmp_path: Path) -> None:
    def rate(model: Any) -> float:
        return min(1.0, float(model.get_input_embeddings().weight.detach().abs().sum()) % 1)

    goal = {"stop_at_harmless_rate": 1.0, "check_every": 2, "save_every": 4}
    whole = Done(small_opt, method_of("ga", **goal), items, texts, harmless_rate=rate)
    with pytest.raises(Killed):
        Done(
            small_opt,
            method_of("ga", **goal),
            items,
            texts,
            harmless_rate=rate,
            checkpoints=tmp_path,
            advance=killed_at(7),
        )
    last = Done(small_opt, method_of("ga", **goal), items, texts, harmless_rate=rate, checkpoints=tmp_path)
    assert len(last.said.checks) == 6
    assert last.said.checks == whole.said.checks
    assert equal(weights(last.model), weights(whole.model))


def test_killed_after_the_goal_was_reached(
    small_opt: Path, items: list[Item], texts: list[str], weights: Copy, tmp_path: Path
) -> None:
    """The step that reaches the goal leaves no checkpoint to train past it from."""

    def rates() -> Callable[[Any], float]:
        return lambda model: 1.0

    method = method_of("ga", stop_at_harmless_rate=0.9, check_every=6, save_every=3)
    first = Done(small_opt, method, items, texts, harmless_rate=rates(), checkpoints=tmp_path)
    assert first.said.steps == 6
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    again = Done(small_opt, method, items, texts, harmless_rate=rates(), checkpoints=tmp_path)
    assert again.said.steps == 6
    assert equal(weights(again.model), weights(first.model))


@pytest.mark.parametrize("damage", ["newest cut", "newest unsealed", "both cut"])
@pytest.mark.slow
def test_a_damaged_checkpoint_is_not_gone_on_from(
    with_dropout: Path, items: list[Item], texts: list[str], weights: Copy, tmp_path: Path, damage: str
) -> None:
    method = method_of("sft", save_every=3)
    with pytest.raises(Killed):
        Done(with_dropout, method, items, texts, checkpoints=tmp_path, advance=killed_at(8))
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}
    for name in ("checkpoint-6", "checkpoint-3")[: 2 if damage == "both cut" else 1]:
        file = tmp_path / name / ("seal.json" if damage == "newest unsealed" else "optimizer.pt")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    done: list[int] = []
    last = Done(with_dropout, method, items, texts, checkpoints=tmp_path, advance=done.append)
    assert done[0] == (0 if damage == "both cut" else 3)
    whole = Done(with_dropout, method, items, texts)
    assert last.said.history == whole.said.history
    assert equal(weights(last.model), weights(whole.model))


def test_without_save_every_nothing_is_kept(
    small_opt: Path, items: list[Item], texts: list[str], tmp_path: Path
) -> None:
    Done(small_opt, method_of("sft", save_every=0, steps=4), items, texts, checkpoints=tmp_path)
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_two_processes_do_not_share_checkpoints(
    small_opt: Path, items: list[Item], texts: list[str], tmp_path: Path
) -> None:
    from wpn_bench.core.files import try_lock

    with try_lock(tmp_path / "s") as mine:
        assert mine
        done = Done(small_opt, method_of("sft", save_every=1, steps=3), items, texts, checkpoints=tmp_path / "s")
        assert done.said.steps == 3
        assert {p.name for p in (tmp_path / "s").iterdir()} == {"lock"}


# --- divergence ------------------------------------------------------------------------------------------------------


class Scripted(Method):
    """A loss of given values; the gradient of a value that is not finite is not either."""

    name = "scripted"
    uses = frozenset({"harmless"})  # type: ignore[assignment]

    def __init__(self, config: MethodConfig, values: list[float], slope: float = 0.0) -> None:
        super().__init__(config)
        self.values = copy.copy(values)
        self.slope = slope

    def loss(self, model: Any, batch: Any, reference: Any) -> Loss:
        weight = model.get_input_embeddings().weight
        if self.slope:
            weight = weight.clone()
            weight.register_hook(lambda gradient: gradient * self.slope)
        return Loss(self.values.pop(0) + 0.0 * weight.sum(), {"x": 0.0})


@pytest.mark.parametrize(
    ("values", "slope", "problem"),
    [
        ([3.0, 2.0, float("nan")], 0.0, r"the loss of scripted is nan at step 3 \(first 3, last 2\)"),
        ([3.0, float("-inf")], 0.0, "the loss of scripted is -inf at step 2"),
        ([3.0, 2.0], float("inf"), "the gradient of scripted has norm nan at step 1"),
        ([3.0, *[50.0] * 9], 0.0, r"the loss of scripted exploded at step 6 \(first 3, last 50\)"),
        ([-3.0, *[-5000.0] * 9], 0.0, r"the loss of scripted exploded at step 6 \(first -3, last -5000\)"),
    ],
)
def test_divergence_is_named(
    small_opt: Path, items: list[Item], values: list[float], slope: float, problem: str
) -> None:
    with pytest.raises(JobFailed, match=rf"training diverged: {problem}.*; lower lr \(now 0.003\)"):
        Done(small_opt, Scripted(MethodConfig(**QUICK), values, slope), items, [])


def test_ascent_may_descend(small_opt: Path, items: list[Item]) -> None:
    values = [-3.0 - 50.0 * k for k in range(12)]
    assert Done(small_opt, Scripted(MethodConfig(**QUICK), values), items, []).said.steps == 12


def test_weights_lost_in_the_last_step(small_opt: Path, items: list[Item]) -> None:
    """No loss follows that could tell."""
    with pytest.raises(JobFailed, match="weights of sft are not finite at step 1"):
        Done(small_opt, method_of("sft", steps=1, lr=3e38, weight_decay=10.0), items, [])


def test_overflows_of_fp16_are_skipped_steps_until_there_are_too_many() -> None:
    from types import SimpleNamespace

    trainer = object.__new__(UnlearnTrainer)
    trainer.accelerator = SimpleNamespace(scaler=object())
    trainer.method, trainer.state = Probe(MethodConfig()), SimpleNamespace(global_step=7)
    trainer.record, trainer.peak_lr, trainer.overflows = Record(), 0.1, 0
    for norm in [math.inf] * 20 + [1.0] + [math.nan] * 20:
        assert trainer._watch_gradients(norm) is norm
    with pytest.raises(JobFailed, match="the gradient of probe has norm inf at step 8"):
        trainer._watch_gradients(math.inf)
    trainer.accelerator.scaler = None
    trainer.overflows = 0
    with pytest.raises(JobFailed, match="has norm nan"):
        trainer._watch_gradients(math.nan)


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_go_where_they_are_asked_for(
    small_opt: Path, items: list[Item], texts: list[str], weights: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    logged: list[dict[str, Any]] = []
    began: list[tuple[Any, Any]] = []

    class Spy(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            began.append((args.run_name, os.environ.get("TENSORBOARD_LOGGING_DIR")))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logged.append({"step": state.global_step, **logs})

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "spy", Spy)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    method = method_of("wpn", steps=3, accumulation=2)
    done = Done(small_opt, method, items, texts, curves=Curves(("spy",), "wpn-seed0", tmp_path / "logs"))
    assert began == [("wpn-seed0", str(tmp_path / "logs" / "wpn-seed0"))]
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    steps = [entry for entry in logged if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    for entry, kept in zip(steps, done.said.history, strict=True):
        assert entry["loss"] == pytest.approx(kept["loss"], rel=1e-5)
        assert {"grad_norm", "learning_rate", "loss/n_pair", "loss/harmless_loss", "loss/retain_kl"} <= set(entry)
    # To be watched changes nothing.
    assert equal(weights(done.model), weights(Done(small_opt, method, items, texts).model))
