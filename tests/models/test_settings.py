"""What a model brings with it: end tokens, generation settings, quantised weights, other files in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.architectures import EOS, PAD, TURN, save
from wpn_bench import models
from wpn_bench.core.model_files import model_signature
from wpn_bench.engine.decode import Rules, decode
from wpn_bench.engine.generation import generate
from wpn_bench.engine.support import settings_note
from wpn_bench.errors import UserError
from wpn_bench.models.backends import Decoding
from wpn_bench.models.ends import ends_of_model
from wpn_bench.models.files import check_usable
from wpn_bench.models.locate import folder_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save("llama", tmp_path / "m")


@pytest.mark.parametrize("named", [None, EOS, TURN, [EOS, TURN], [TURN]])
def test_a_response_ends_at_any_end(folder: Path, named: Any) -> None:
    model, tokenizer = models.load_fresh(folder), models.load_tokenizer(folder)
    model.generation_config.eos_token_id = named
    listed = named if isinstance(named, list) else [named]
    assert ends_of_model(model, tokenizer) == {PAD, EOS} | {e for e in listed if e is not None}


def test_the_text_after_the_end_of_a_turn_is_not_written(folder: Path) -> None:
    model, tokenizer = models.load_fresh(folder), models.load_tokenizer(folder)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.zero_()
        head[TURN] = 0.0
    model.lm_head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(TURN), len(head)).float())
    decoding = Decoding(max_new_tokens=4, stop=())
    assert generate(model, tokenizer, ["Hello"], decoding)[0].n_tokens == 4
    model.generation_config.eos_token_id = [EOS, TURN]
    assert generate(model, tokenizer, ["Hello"], decoding)[0].n_tokens == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_length": 12},
        {"min_new_tokens": 5},
        {"suppress_tokens": [40, 41, 42]},
        {"encoder_repetition_penalty": 1.5},
        # Ignored: sampling, search, cache and length are the run's own.
        {"do_sample": True, "temperature": 0.3, "top_k": 5},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"max_length": 3},
        {"return_dict_in_generate": True, "output_scores": True, "repetition_penalty": 1.5},
        {"stop_strings": ["a"], "no_repeat_ngram_size": 2},
        {"num_beams": 3, "repetition_penalty": 1.5},
    ],
)
def test_an_answer_does_not_depend_on_the_batch(folder: Path, settings: dict[str, Any]) -> None:
    model = models.load_fresh(folder).eval()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    prompts = [[7, 8], [9] * 30, [7, 8, 9], [10, 11], [12]]
    rules = Rules(8, frozenset([EOS]))
    together = decode(model, prompts, rules)
    assert together == [decode(model, [prompt], rules)[0] for prompt in prompts]
    assert decode(model, prompts, rules, most_rows=1) == together
    for name, value in settings.items():
        assert getattr(model.generation_config, name) == value  # the model keeps its settings


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "unheard of"])
def test_quantised_weights_are_refused_in_one_line(folder: Path, method: str) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": method, "bits": 4, "load_in_4bit": True, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"are quantised .*cannot be trained"):
        check_usable(folder, trained=True)
    with pytest.raises(UserError, match="this installation cannot read them"):
        check_usable(folder, trained=False)


@pytest.mark.parametrize(
    "name", ["README.md", "log.txt", "run.log", "trainer_state.json", "training_args.bin", "o.parquet"]
)
def test_other_files_are_no_part_of_a_model(folder: Path, name: str) -> None:
    before = folder_digest(folder), model_signature(folder)
    (folder / name).write_text("hi")
    assert (folder_digest(folder), model_signature(folder)) == before


@pytest.mark.parametrize(
    "name",
    [
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "vocab.txt",
        "tokenizer.model",
        "x.safetensors",
    ],
)
def test_every_part_of_a_model_counts(folder: Path, name: str) -> None:
    before = folder_digest(folder), model_signature(folder)
    (folder / name).write_text("hi")
    digest, seen = folder_digest(folder), model_signature(folder)
    assert digest != before[0]
    assert seen != before[1]


def test_honoured_settings_are_named(folder: Path) -> None:
    assert settings_note("m", folder) == []
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.3, "temperature": 0.6}))
    assert settings_note("m", folder) == [
        "the generation_config.json of m changes its answers with these settings: repetition_penalty 1.3"
    ]
    file.write_text("{")
    assert settings_note("m", folder) == []
