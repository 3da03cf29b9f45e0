"""The training loop: what every method must do in it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wpn_bench import models
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs.job import StageContext
from wpn_bench.models import loading
from wpn_bench.prompts import Item
from wpn_bench.prompts.items import read_items
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.methods.base import NOT_IN_DIGEST, Loss, Method, MethodConfig, digested
from wpn_bench.unlearn.train import TRAINING, run_train_stage, train

from .training import NOT_FALLING, QUICK, TEMPLATE, Done, Weights, equal, method_of, put_needs, stop_of

# --- every method ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
class TestEveryMethod:
    def test_it_says_what_it_is(self, name: str) -> None:
        kind = METHODS.get(name)
        assert kind.name == name
        assert kind.title
        assert kind.paper
        assert kind.__doc__ is not None
        assert "L = " in kind.__doc__
        method = kind(kind.Config())
        assert method.uses <= {"harmless", "harmful", "random", "retain"}
        assert method.uses
        assert method.negatives >= 1

    def test_its_configuration_is_whole(self, name: str) -> None:
        config = METHODS.get(name).Config
        assert issubclass(config, MethodConfig)
        assert config.model_config.get("extra") == "forbid"
        assert config(**config().model_dump()) == config()
        json.dumps(config().model_dump(mode="json"), allow_nan=False)

    @pytest.mark.slow
    def test_it_trains(
        self, name: str, small_lm: Path, items: list[Item], texts: list[str], weights: Callable[[Any], Weights]
    ) -> None:
        before = weights(models.load(small_lm)[0])
        done = Done(small_lm, method_of(name), items, texts)
        losses = [h["loss"] for h in done.said.history]
        assert [h["step"] for h in done.said.history] == list(range(1, 13))
        assert all(math.isfinite(loss) for loss in losses)
        assert sum(losses[-3:]) < sum(losses[:3]) or name in NOT_FALLING
        assert all(h["parts"] for h in done.said.history)
        assert (done.said.steps, done.said.lr, done.said.stopped) == (12, 3e-3, "all steps done")
        assert done.said.seconds > 0
        assert not done.model.training
        after = weights(done.model)
        assert not equal(after, before)
        assert all(bool(torch.isfinite(v).all()) for v in after.values())
        # The reference, and whatever else was loaded from that folder, is as it was.
        assert equal(weights(models.load(small_lm)[0]), before)
        if done.reference is not None:
            assert all(p.grad is None for p in done.reference.parameters())

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_model(
        self, name: str, small_lm: Path, items: list[Item], texts: list[str], weights: Callable[[Any], Weights]
    ) -> None:
        torch.manual_seed(1)  # whatever the state of the generator
        one = Done(small_lm, method_of(name, steps=5), items, texts, seed=4)
        torch.manual_seed(2)
        other = Done(small_lm, method_of(name, steps=5), items, texts, seed=4)
        assert equal(weights(one.model), weights(other.model))
        assert [h["loss"] for h in one.said.history] == [h["loss"] for h in other.said.history]
        third = Done(small_lm, method_of(name, steps=5), items, texts, seed=5)
        assert not equal(weights(one.model), weights(third.model))

    def test_it_says_nothing_on_the_terminal(
        self, name: str, small_opt: Path, items: list[Item], texts: list[str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        Done(small_opt, method_of(name, steps=2), items, texts)
        captured = capfd.readouterr()
        assert (captured.out, captured.err) == ("", "")

    def test_training_that_diverges_fails(
        self, name: str, small_opt: Path, items: list[Item], texts: list[str]
    ) -> None:
        with pytest.raises(JobFailed, match=rf"training diverged: the loss of {name} is \S+ at step \d+ .*; lower lr"):
            Done(small_opt, method_of(name, lr=1e30), items, texts)


# --- what each is for ------------------------------------------------------------------------------------------------


def likelihood(model: Any, tokenizer: Any, items: list[Item], side: str) -> float:
    """Mean log-likelihood of the responses after their prompts, in nats per token."""
    each = []
    for item in items:
        for response in getattr(item, side):
            prompt = tokenizer(TEMPLATE.render(item.prompt))["input_ids"]
            ids = prompt + tokenizer(" " + response, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            each += [float(logp[t - 1, ids[t]]) for t in range(len(prompt), len(ids))]
    return sum(each) / len(each)


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 4}, "lr": 3e-2}], ids=["all weights", "lora"])
def test_the_change_of_the_weights_is_negated(
    small_opt: Path,
    items: list[Item],
    texts: list[str],
    weights: Callable[[Any], Weights],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    """Whoever sees the model during the training sees the one that would be saved, and the training goes on as it was."""
    seen: list[Weights] = []

    def rate(model: Any) -> float:
        seen.append(weights(model))
        return 0.0

    def after_step(step: int, current: Callable[[], Any]) -> None:
        if step == 12:
            seen.append(weights(current()))

    goal = {"stop_at_harmless_rate": 1.0, "check_every": 6}
    method = method_of("task_vector", scale=0.5, **goal, **options)
    found = Done(small_opt, method, items, texts, harmless_rate=rate, after_step=after_step)
    monkeypatch.setattr(type(method), "change", 1.0)
    learnt = Done(small_opt, method_of("task_vector", **options), items, texts)
    assert found.said.history == learnt.said.history
    base, after, saved = (weights(m) for m in (models.load(small_opt)[0], learnt.model, found.model))
    assert not equal(base, after)
    for name, value in base.items():
        torch.testing.assert_close(saved[name], value - 0.5 * (after[name] - value))
    assert len(seen) == 3
    assert not equal(seen[0], seen[1])
    for one in seen[1:]:
        assert equal(one, saved)


@pytest.mark.parametrize(
    "name", ["task_vector", "log1mp", "undial", "ceu", "max_entropy", "pdu", "wga", "satimp", "flat", "altpo"]
)
@pytest.mark.slow
def test_a_model_forgets_what_it_has_learnt(
    small_opt: Path, items: list[Item], texts: list[str], tmp_path: Path, name: str
) -> None:
    """First the harmful responses are learnt, because random weights have nothing to forget."""
    swapped = [replace(item, harmless=item.harmful, harmful=item.harmless) for item in items]
    tokenizer = models.load_tokenizer(small_opt)
    learnt = Done(small_opt, method_of("sft", steps=40), swapped, texts).model
    learnt.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weight = {"gamma": 1.0} if "gamma" in METHODS.get(name).Config.model_fields else {}
    forgot = Done(tmp_path, method_of(name, **weight), items, texts).model
    before, after = (likelihood(model, tokenizer, items, "harmful") for model in (learnt, forgot))
    assert before > -2.0
    assert after < before - 0.3


@pytest.mark.parametrize(
    ("name", "harmful", "harmless"), [("ga", -1, 0), ("ga_answer", -1, 0), ("sft", 0, 1), ("wpn", 0, 1)]
)
@pytest.mark.slow
def test_likelihoods_move_where_they_should(
    small_lm: Path, items: list[Item], texts: list[str], name: str, harmful: int, harmless: int
) -> None:
    """-1 down, 1 up, 0 not said. WPN moreover opens the gap between the two sides."""
    base, tokenizer = models.load(small_lm)
    done = Done(small_lm, method_of(name, steps=30), items, texts)
    change = {
        side: likelihood(done.model, tokenizer, items, side) - likelihood(base, tokenizer, items, side)
        for side in ("harmful", "harmless")
    }
    for side, sign in (("harmful", harmful), ("harmless", harmless)):
        if sign:
            assert sign * change[side] > 0.05
    if name == "wpn":
        assert change["harmless"] - change["harmful"] > 0.3


def test_kl_keeps_the_model_near_the_reference(small_opt: Path, items: list[Item], texts: list[str]) -> None:
    def distance(kl: float) -> float:
        done = Done(small_opt, method_of("sft", kl=kl, steps=25), items, texts)
        base, tokenizer = models.load(small_opt)
        total = 0.0
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                p, q = (m(input_ids=ids).logits.log_softmax(-1) for m in (base, done.model))
            total += float((p.exp() * (p - q)).sum(-1).mean())
        return total

    assert distance(5.0) < 0.5 * distance(0.0)


def test_a_learning_rate_of_its_own_width(small_opt: Path, items: list[Item], texts: list[str]) -> None:
    done = Done(small_opt, method_of("sft", lr=None, steps=1), items, texts)
    assert done.said.lr == pytest.approx(0.05 / 32)


def test_dropout_follows_the_seed_too(
    small_opt: Path, items: list[Item], texts: list[str], tmp_path: Path, weights: Callable[[Any], Weights]
) -> None:
    """OPT-125M trains with a dropout of 0.1."""
    folder = shutil.copytree(small_opt, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dropout": 0.1}))

    def trained(state: int) -> Weights:
        torch.manual_seed(state)
        return weights(Done(folder, method_of("sft", steps=3), items, texts, seed=4).model)

    one = trained(1)
    assert equal(one, trained(2))
    assert not equal(one, weights(Done(small_opt, method_of("sft", steps=3), items, texts, seed=4).model))


def test_rows_fit_the_context(make_lm: Callable[..., Path], texts: list[str]) -> None:
    folder = make_lm("opt", context=24)
    long = [Item("1", "word " * 60, harmful=("bad " * 60,), harmless=("good " * 60,))]
    done = Done(folder, method_of("wpn", steps=2, max_length=256), long, [" ".join(texts) * 5])
    assert done.said.steps == 2


# --- stopping --------------------------------------------------------------------------------------------------------


def test_stop_at_harmless_rate(small_opt: Path, items: list[Item], texts: list[str]) -> None:
    rates = iter([0.1, 0.5, 0.92, 1.0])
    modes: list[bool] = []

    def rate(model: Any) -> float:
        modes.append(model.training)
        return next(rates)

    method = method_of("ga", stop_at_harmless_rate=0.9, check_every=2)
    done = Done(small_opt, method, items, texts, harmless_rate=rate)
    assert done.said.steps == 6
    assert [asdict(done.said)["checks"][k] for k in range(3)] == [
        {"step": 2, "harmless_rate": 0.1},
        {"step": 4, "harmless_rate": 0.5},
        {"step": 6, "harmless_rate": 0.92},
    ]
    assert len(done.said.checks) == 3
    assert done.said.stopped == "validation harmless rate 0.920 reached 0.9"
    assert modes == [False] * 3  # measured as it will be used


def test_a_rate_that_is_never_reached(small_opt: Path, items: list[Item], texts: list[str]) -> None:
    done = Done(
        small_opt, method_of("ga", stop_at_harmless_rate=0.9, steps=4), items, texts, harmless_rate=lambda m: 0.5
    )
    assert (done.said.steps, len(done.said.checks), done.said.stopped) == (4, 4, "all steps done")


def test_without_a_rate_to_reach_nothing_is_measured(small_opt: Path, items: list[Item], texts: list[str]) -> None:
    def rate(model: Any) -> float:
        pytest.fail("not asked for")

    assert Done(small_opt, method_of("ga", steps=2), items, texts, harmless_rate=rate).said.checks == []


def test_looking_does_not_change_what_is_learnt(
    small_opt: Path, items: list[Item], texts: list[str], weights: Callable[[Any], Weights]
) -> None:
    def rate(model: Any) -> float:
        torch.rand(100)
        return 0.0

    method = method_of("wpn", stop_at_harmless_rate=1.0, steps=4)
    watched = Done(small_opt, method, items, texts, harmless_rate=rate)
    assert equal(weights(watched.model), weights(Done(small_opt, method_of("wpn", steps=4), items, texts).model))


def test_loss_that_becomes_no_number_half_way(small_opt: Path, items: list[Item], texts: list[str]) -> None:
    class Breaking(Method):
        name = "breaking"
        uses = frozenset({"harmless"})  # type: ignore[assignment]
        steps_left = 3

        def loss(self, model: Any, batch: Any, reference: Any) -> Loss:
            self.steps_left -= 1
            logits = model(input_ids=batch.harmless.input_ids).logits.sum()
            return Loss(logits * (math.nan if self.steps_left == 0 else 0.0), {"x": 0.0})

    with pytest.raises(JobFailed, match="the loss of breaking is nan at step 3"):
        Done(small_opt, Breaking(MethodConfig(**QUICK)), items, texts)


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path: Path, small_opt: Path, items: list[Item], texts: list[str]) -> Callable[..., StageContext]:
    def make(name: str, **options: Any) -> StageContext:
        folders = put_needs(tmp_path, items, texts, items[:3])
        (out := tmp_path / "out").mkdir()
        config = METHODS.get(name).Config(**{**QUICK, **options}).model_dump(mode="json")
        params = {
            "method": name,
            "config": config,
            "seed": 1,
            "template": TEMPLATE.value,
            "dtype": "float32",
            "stop": stop_of(),
        }
        return StageContext(
            params, {"model": small_opt, **folders}, out, {"device": "cpu"}, lambda n, u: lambda k: None
        )

    return make


def test_the_stage_leaves_a_model_and_its_history(stage: Callable[..., StageContext], small_opt: Path) -> None:
    ctx = stage("wpn", steps=3)
    run_train_stage(ctx)
    model, tokenizer = models.load(ctx.out)
    assert (ctx.out / "model.safetensors").is_file()
    assert tokenizer("Why?")["input_ids"] == models.load_tokenizer(small_opt)("Why?")["input_ids"]
    assert not torch.equal(model.get_input_embeddings().weight, models.load(small_opt)[0].get_input_embeddings().weight)
    models.resolve(str(ctx.out))
    said = json.loads((ctx.out / TRAINING).read_text())
    assert (said["method"], said["seed"], said["steps"], said["lr"]) == ("wpn", 1, 3, 3e-3)
    assert len(said["history"]) == 3
    assert said["config"]["steps"] == 3


def test_the_stage_leaves_the_model_as_it_was_after_some_steps(
    stage: Callable[..., StageContext], small_opt: Path, weights: Callable[[Any], Weights]
) -> None:
    ctx = stage("sft", steps=4, schedule="constant")
    ctx.params["snapshots"] = [1, 3]  # type: ignore[index]
    run_train_stage(ctx)
    found = {p.name: weights(models.load(p)[0]) for p in sorted(ctx.out.glob("step-*"))}
    assert list(found) == ["step-1", "step-3"]
    seen = [weights(models.load(small_opt)[0]), *found.values(), weights(models.load(ctx.out)[0])]
    assert not any(equal(one, other) for k, one in enumerate(seen) for other in seen[:k])
    # What is kept after step 3 is what a training of 3 such steps leaves, and keeping it changes nothing.
    kind = METHODS.get("sft")
    for steps, kept in ((3, found["step-3"]), (4, seen[-1])):
        model = models.load_fresh(small_opt)
        train(
            model,
            models.load_tokenizer(small_opt),
            kind(kind.Config(**{**ctx.params["config"], "steps": steps})),
            read_items(ctx.needs["forget"]),
            [],
            template=TEMPLATE,
            seed=1,
        )
        assert equal(weights(model), kept)


def test_the_stage_stops_by_the_judge(stage: Callable[..., StageContext]) -> None:
    """A random model says nothing abusive: the first look ends the training."""
    ctx = stage("ga", stop_at_harmless_rate=0.5, check_every=2)
    run_train_stage(ctx)
    said = json.loads((ctx.out / TRAINING).read_text())
    assert said["steps"] == 2
    assert said["checks"][0]["harmless_rate"] >= 0.5
    assert "reached 0.5" in said["stopped"]


def test_the_stage_takes_no_method_for_another(stage: Callable[..., StageContext]) -> None:
    """A plug-in whose source differs on another machine."""
    ctx = stage("sft", steps=1)
    ctx.params["code"] = {"version": METHODS.get("sft").version, "source": "of another version"}  # type: ignore[index]
    with pytest.raises(UserError, match="the method sft is not the one that this run began with"):
        run_train_stage(ctx)
    ctx.params["code"] = {"version": METHODS.get("sft").version, "source": None}  # type: ignore[index]
    run_train_stage(ctx)


def test_the_stage_keeps_the_adapter_beside_the_model(stage: Callable[..., StageContext], small_opt: Path) -> None:
    ctx = stage("sft", steps=2, lora={"rank": 2})
    run_train_stage(ctx)
    assert {p.name for p in (ctx.out / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    merged, base = models.load_fresh(ctx.out).state_dict(), models.load_fresh(small_opt).state_dict()
    assert merged.keys() == base.keys()
    assert not torch.equal(merged["model.decoder.layers.0.fc1.weight"], base["model.decoder.layers.0.fc1.weight"])
    # Settings of training leave no trace in what is saved.
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (ctx.out, small_opt))
    assert ours == theirs


@pytest.mark.parametrize(("options", "copies"), [({}, 2), ({"lora": {"rank": 2}}, 1)])
def test_adapters_need_no_second_copy_of_the_model(
    options: dict[str, Any], copies: int, stage: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    load_fresh = models.load_fresh
    monkeypatch.setattr(loading, "_LOADED", type(loading._LOADED)())
    for module in (models, loading):  # training calls one, `models.load` the other
        monkeypatch.setattr(module, "load_fresh", lambda path, *rest: loads.append(path) or load_fresh(path, *rest))
    run_train_stage(stage("npo", steps=1, **options))
    assert len(loads) == copies


def test_mixed_precision_trains_whole_weights_and_saves_what_was_asked_for(
    stage: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    asked: list[str] = []
    load_fresh = models.load_fresh

    def noting(path: Path, device: str = "cpu", dtype: str = "float32") -> Any:
        asked.append(dtype)
        return load_fresh(path, device, dtype)

    monkeypatch.setattr(models, "load_fresh", noting)
    ctx = stage("sft", steps=2, mixed_precision="bf16")
    run_train_stage(replace(ctx, params={**ctx.params, "dtype": "bfloat16"}))
    assert asked == ["float32"]
    assert {v.dtype for v in load_file(ctx.out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((ctx.out / "config.json").read_text())["dtype"] == "bfloat16"


def test_sam_changes_the_model_and_no_other_digest(small_opt: Path, items: list[Item], texts: list[str]) -> None:
    plain, moved = (Done(small_opt, method_of("sft", steps=2, sam=rho), items, texts) for rho in (None, 0.5))
    assert [set(h["parts"]) - set(p["parts"]) for h, p in zip(moved.said.history, plain.said.history, strict=True)] == [
        {"loss_at_the_weights"}
    ] * 2
    first = moved.said.history[0]
    assert first["parts"]["loss_at_the_weights"] == pytest.approx(plain.said.history[0]["loss"], rel=1e-5)
    assert first["loss"] > first["parts"]["loss_at_the_weights"]  # the move goes uphill
    assert moved.said.history[1]["loss"] != plain.said.history[1]["loss"]
    options = MethodConfig()
    assert digested(options) == options.model_dump(mode="json", exclude={*NOT_IN_DIGEST, "sam", "undo"})
    assert digested(MethodConfig(sam=0.1))["sam"] == 0.1
