from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from wpn_bench import models
from wpn_bench.core import consent
from wpn_bench.errors import UserError
from wpn_bench.models.files import INDEX, check_causal, check_files


@pytest.fixture
def folder(small_opt: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_opt, tmp_path / "model"))


def settle(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_whole_model_is_let_through(small_lm: Path) -> None:
    check_files(small_lm)
    check_causal(small_lm)


def test_shards_by_their_index(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    placed = {name: f"part-{k % 2}.safetensors" for k, name in enumerate(names)}
    for part in set(placed.values()):
        kept = {name: weights[name] for name in names if placed[name] == part}
        save_file(kept, folder / part, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"weight_map": placed}))
    check_files(folder)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks part-1.safetensors, one of the 2 files"):
        check_files(folder)


@pytest.mark.parametrize("start", ["module.", "_orig_mod.", "base_model.model."])
@pytest.mark.parametrize("pickled", [False, True])
def test_weights_that_were_saved_with_a_wrapper(folder: Path, start: str, pickled: bool) -> None:
    """transformers would find none of them, and only when the first job loads the model."""
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = {start + name: weight for name, weight in load_file(file).items()}
    if pickled:
        file.unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"begin with '{start}'") as caught:
        check_files(folder)
    assert "save_pretrained(folder)" in caught.value.hint


def test_a_pickle_of_tensors_is_read(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    check_files(folder)
    with consent.granted(pickles=True):
        assert models.resolve(str(folder)).path == folder


@pytest.mark.parametrize(("is_decoder", "fits"), [(True, True), (False, False)])
def test_an_encoder_that_was_told_to_be_a_decoder(folder: Path, is_decoder: bool, fits: bool) -> None:
    settle(folder, model_type="bert", is_decoder=is_decoder)
    if fits:
        check_causal(folder)
        return
    with pytest.raises(UserError, match="attends in both directions"):
        check_causal(folder)


def test_more_tokens_than_the_tokenizer_has_are_no_fault(folder: Path) -> None:
    """Embeddings are padded to a round number; the reverse has no row for a token."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"]["zzz"] = size
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=f'token "zzz" has id {size}, but the model has {size} embeddings'):
        check_files(folder)
    del tokenizer["model"]["vocab"]["zzz"]
    dropped = next(t for t, i in tokenizer["model"]["vocab"].items() if i == size - 1)
    tokenizer["model"]["merges"] = [m for m in tokenizer["model"]["merges"] if "".join(m) != dropped]
    del tokenizer["model"]["vocab"][dropped]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    check_files(folder)


def test_a_folder_of_checkpoints_names_them(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-6").mkdir()
    with pytest.raises(UserError) as error:
        models.resolve(str(tmp_path))
    assert "checkpoint-6" in str(error.value.hint)


@pytest.mark.parametrize("shards", ["pytorch_model_fsdp_0", "global_step6"])
def test_sharded_weights_of_a_training_name_the_tool_that_joins_them(tmp_path: Path, shards: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    (tmp_path / shards).mkdir()
    with pytest.raises(UserError) as error:
        models.resolve(str(tmp_path))
    assert "join them" in str(error.value.hint)
