from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wpn_bench import models
from wpn_bench.errors import UserError
from wpn_bench.models import (
    context_length,
    context_length_of,
    load,
    load_fresh,
    load_tokenizer,
    loading,
    pick_device,
    resolve,
    width_of,
)


@pytest.fixture
def folder(small_opt: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(small_opt, tmp_path / "model"))


def test_a_folder_is_a_model(folder: Path) -> None:
    found = resolve(str(folder))
    assert (found.asked, found.path, found.revision, found.is_lab) == (str(folder), folder, None, False)
    assert len(found.digest) == 64


def test_a_relative_folder_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert resolve("model").digest == resolve(str(folder)).digest


# --- digest ----------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_files_and_not_of_their_place(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "other_name")
    os.utime(copy / "model.safetensors", (0, 0))
    assert resolve(str(copy)).digest == resolve(str(folder)).digest


def test_the_digest_changes_with_weights_configuration_and_tokenizer(folder: Path) -> None:
    seen = {resolve(str(folder)).digest}
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1  # one bit of one weight
    weights.write_bytes(raw)
    seen.add(resolve(str(folder)).digest)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text((folder / name).read_text() + " ")
        seen.add(resolve(str(folder)).digest)
    assert len(seen) == 4


def test_the_digest_ignores_what_decides_nothing(folder: Path) -> None:
    before = resolve(str(folder)).digest
    (folder / "README.md").write_text("A model.")
    (folder / "pytorch_model.bin").write_bytes(b"never read while there are safetensors")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"x")
    assert resolve(str(folder)).digest == before


# --- what is no model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("config.json", r"contains no model \(no config.json\)"),
        ("model.safetensors", "contains no weights"),
        ("tokenizer.json", "contains no tokenizer"),
    ],
)
def test_a_folder_that_lacks_something(folder: Path, missing: str, problem: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(UserError, match=problem):
        resolve(str(folder))


@pytest.mark.parametrize("content", ["{", "[]", "\x00", ""])
def test_a_broken_configuration(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config.json is not"):
        resolve(str(folder))


def test_names_that_are_no_model(folder: Path, tmp_path: Path) -> None:
    for asked, problem in (
        (str(tmp_path), "contains no model"),
        (str(folder / "config.json"), "is a file"),
        (str(tmp_path / "none"), "no model folder at"),
        ("a/b/c", "no model folder at"),
        ("not a name!", "no model folder at"),
        ("../none", "no model folder at"),
    ):
        with pytest.raises(UserError, match=problem):
            resolve(asked)


def test_an_unknown_id_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"nobody/nothing is not in the local cache.*needs no network"):
        resolve("nobody/nothing")


@pytest.mark.parametrize("damage", ["cut", "garbage", "other shape"])
def test_weights_that_cannot_be_read(folder: Path, damage: str) -> None:
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "garbage":
        weights.write_bytes(b"garbage" * 100)
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"ffn_dim": 128}))
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        load_fresh(folder)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)")],
)  # fmt: skip
def test_short_memory_is_not_taken_for_a_broken_model(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fails)
    with pytest.raises(UserError, match=r"does not fit into memory in float32; use --dtype bfloat16, --offload disk"):
        load_fresh(folder)


def test_weights_that_are_not_all_there(folder: Path) -> None:
    """A layer too few in the file: transformers would fill it with random numbers and only warn."""
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if "layers.1." not in k}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks"):
        load_fresh(folder)


def test_weights_of_more_layers_than_the_configuration_says(folder: Path) -> None:
    """transformers would leave the other layers out without a word. Weights of other parts are left out on purpose."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    last = {k.replace("layers.1.", "layers.2."): v.clone() for k, v in weights.items() if "layers.1." in k}
    assert last
    save_file(weights | {"vision.layers.9.weight": weights[min(weights)].clone()}, file, metadata={"format": "pt"})
    load_fresh(folder)
    save_file(weights | last, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights of more layers than its config.json says \(first: .*layers.2\."):
        load_fresh(folder)


def test_another_architecture_is_no_causal_language_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "t5", "architectures": None}))
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        load_fresh(folder)


def test_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(folder)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_loading(small_lm: Path) -> None:
    model, tokenizer = load(small_lm)
    assert not model.training
    assert tokenizer.pad_token_id is not None
    assert load(small_lm)[0] is model
    fresh = load_fresh(small_lm)
    assert fresh is not model
    assert all((a == b).all() for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_only_the_last_two_stay_in_memory(make_lm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_LOADED", type(loading._LOADED)())
    one, two, three = (make_lm("opt", seed=s) for s in (1, 2, 3))
    first, second = load(one)[0], load(two)[0]
    assert load(one)[0] is first  # used again: now the second is the older one
    load(three)
    assert load(one)[0] is first
    assert load(two)[0] is not second


@pytest.mark.parametrize(("room", "stay"), [(1.5, 1), (2.5, 2)])
def test_two_stay_only_where_two_fit(
    room: float, stay: int, make_lm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`room`: for so many models there is memory; where it is short the other goes before the next comes."""
    monkeypatch.setattr(loading, "_LOADED", type(loading._LOADED)())
    monkeypatch.setattr(loading, "working_memory", lambda config, dtype: 0)
    one, two = (make_lm("opt", seed=s) for s in (1, 2))
    size = models.weights_bytes(one, "float32")
    monkeypatch.setattr(
        "wpn_bench.core.device_memory.free_memory",
        lambda device: (room - len(loading._LOADED)) * size / loading.USABLE_FRACTION,
    )
    first = load(one)[0]
    load(two)
    assert len(loading._LOADED) == stay
    assert (load(one)[0] is first) == (stay == 2)


def test_training_makes_room(make_lm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_LOADED", type(loading._LOADED)())
    load(make_lm("opt", seed=1))
    models.make_room(1, "cpu")
    assert len(loading._LOADED) == 1
    monkeypatch.setattr("wpn_bench.core.device_memory.free_memory", lambda device: 1000)
    models.make_room(1001, "cpu")
    assert not loading._LOADED


def test_weights_in_several_files(small_lm: Path, tmp_path: Path) -> None:
    """What is too large for one file is loaded, counted and known as well."""
    model, tokenizer = load_fresh(small_lm), load_tokenizer(small_lm)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path, **({"max_shard_size": "40KB"} if part is model else {}))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert models.weights_bytes(tmp_path, "float32") == models.weights_bytes(small_lm, "float32")
    again = load_fresh(tmp_path)
    assert all((a == b).all() for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert resolve(str(tmp_path)).digest != resolve(str(small_lm)).digest


def test_dtype(small_opt: Path) -> None:
    import torch

    assert load_fresh(small_opt, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ["opt", "neo"])
def test_context_length(make_lm: Callable[..., Path], architecture: str) -> None:
    folder = make_lm(architecture, context=96)
    assert context_length(load_fresh(folder)) == context_length_of(folder) == 96


def test_the_width_without_the_weights(small_lm: Path, folder: Path) -> None:
    assert width_of(small_lm) == load_fresh(small_lm).get_input_embeddings().weight.shape[1] == 32
    (folder / "config.json").write_text('{"model_type": "opt", "hidden_size": 0}')
    with pytest.raises(UserError, match=r"has no hidden size.*leave out --tune"):
        width_of(folder)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match="no CUDA device"):
        pick_device("cuda")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == "cuda"
    assert pick_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="there is no device 'cuda:2'"):
        pick_device("cuda:2")
    with pytest.raises(UserError, match="the device 'meta' cannot run models"):
        pick_device("meta")
