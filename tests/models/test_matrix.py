"""Every architecture: trains a step, decodes as `generate`, scores as lm-eval's `hf`, and is estimated, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.architectures import ARCHITECTURES, EOS, PAD, TURN, save
from wpn_bench import config as configuration
from wpn_bench import models
from wpn_bench.engine import decode as decoding
from wpn_bench.engine.decode import Rules, decode
from wpn_bench.engine.likelihood import loglikelihoods
from wpn_bench.errors import UserError
from wpn_bench.models.files import check_causal, check_usable
from wpn_bench.preflight import resources
from wpn_bench.preflight.estimates import ModelSpec, memory_needs
from wpn_bench.prompts import Item, Template
from wpn_bench.unlearn.methods import method_of
from wpn_bench.unlearn.train import train

REFUSED = {"recurrent_gemma"}
PASSED = sorted(set(ARCHITECTURES) - REFUSED)
RAGGED = [[5, 6, 7], list(range(10, 30)), [9], list(range(30, 41)), [20, 21, 22, 23]]
ENDS = [PAD, EOS, TURN]
_SAVED: dict[str, Path] = {}


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of an architecture, made once."""
    name = request.param
    if name not in _SAVED:
        _SAVED[name] = save(name, tmp_path_factory.mktemp(name))
    return _SAVED[name]


def every(names: list[str]) -> Any:
    return pytest.mark.parametrize("folder", names, indirect=True)


@every(PASSED)
def test_it_is_found_with_its_own_context(folder: Path) -> None:
    found = models.resolve(str(folder))
    check_causal(found.path)
    check_usable(found.path, trained=True)
    if folder.name.startswith(("bloom", "falcon0", "falcon_alibi", "mamba")):
        assert models.context_length_of(folder) == 2048  # no size in the configuration
    else:
        assert models.context_length_of(folder) == 128


@every(PASSED)
def test_a_ragged_batch_is_decoded_as_each_prompt_alone_by_transformers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = models.load(folder)
    ours = decode(model, RAGGED, Rules(10, frozenset(ENDS)))
    monkeypatch.setattr(decoding, "_HEAD_TOKENS", 0)
    monkeypatch.setattr("wpn_bench.engine.greedy.fast_bfloat16", lambda: True)
    assert decode(model, RAGGED, Rules(10, frozenset(ENDS)), most_rows=3) == ours
    for prompt, tokens in zip(RAGGED, ours, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False,
            eos_token_id=ENDS, pad_token_id=PAD,
        )  # fmt: skip
        theirs = out[0, len(prompt) :].tolist()
        assert tokens == (theirs[:-1] if theirs[-1] in ENDS else theirs)
    assert len({tuple(tokens) for tokens in ours}) > 1


@every(PASSED)
def test_it_scores_as_lm_eval(folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = models.load(folder)
    pairs = [(prompt, [41, 42, 43][: 1 + k % 3]) for k, prompt in enumerate(RAGGED)]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=64)._loglikelihood_tokens(
        [(("", ""), context, continuation) for context, continuation in pairs], disable_tqdm=True
    )
    ours = loglikelihoods(model, pairs, max_length=64)
    for (score, greedy), (expected, expected_greedy) in zip(ours, theirs, strict=True):
        assert score == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy


@every(PASSED)
def test_its_memory_is_estimated(folder: Path) -> None:
    settings = configuration.build("lab").model_dump() | {"model": str(folder), "methods": {"wpn": {"steps": 1}}}
    spec = ModelSpec.of(configuration.from_settings(settings))
    assert spec is not None
    assert resources.check_context(spec).fits
    needs = memory_needs(spec)
    assert {need.stage for need in needs} >= {"train", "generate"}
    assert all(need.memory > spec.weights() for need in needs)
    training = next(need for need in needs if need.stage == "train")
    assert training.parts["activations"] > 0


@every(PASSED)
def test_it_trains_one_step(folder: Path) -> None:
    wpn = method_of("wpn")
    method = wpn(wpn.Config(steps=1, warmup_steps=0, batch_size=2, n=3, max_length=32, retain_max_length=32))
    model, tokenizer = models.load_fresh(folder), models.load_tokenizer(folder)
    before = [p.detach().clone() for p in model.parameters()]
    items = [Item(id=str(k), prompt=f"Name {k}", harmless=("yes",), harmful=("no", "bad")) for k in range(2)]
    done = train(
        model, tokenizer, method, items, ["The cat sat on a mat in town."] * 3,
        template=Template.parse("### Question: {prompt}\n### Answer:"), seed=0, reference=models.load_fresh(folder),
    )  # fmt: skip
    assert done.steps == 1
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@every(sorted(REFUSED))
def test_what_is_not_supported_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match="is not supported: it keeps its state between calls"):
        check_usable(folder, trained=False)


def test_the_docs_list_every_architecture() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for name in ARCHITECTURES:
        assert f"`{name}`" in text
