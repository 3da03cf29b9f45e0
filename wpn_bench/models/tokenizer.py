"""Load tokenizers, and convert prompts and responses to token ids.

Generation, training, scoring and the gradient attacks follow one rule: a response consists of the tokens that the model
itself would generate after the tokens of its prompt. A prompt begins with the tokens that the tokenizer adds there,
with at most one beginning-of-text token. Tokens that the tokenizer adds at the end of a text are left out.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from wpn_bench.core import consent
from wpn_bench.errors import UserError
from wpn_bench.prompts.templates import adds_special_tokens, same_kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESAVE = "save it again with tokenizer.save_pretrained(folder)"
# Ids of the special tokens without an embedding in the model.
_WITHOUT_EMBEDDING: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()
_ANCHORS = ("\n", ":", "a")  # texts that are put before a response to tokenise it as a continuation


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a folder as transformers does.

    Raises:
        UserError: The files of the tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    silence_transformers()
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=consent.code_allowed())
    except Exception as e:  # the tokenizers library raises plain `Exception`
        missing = [name for name in ("sentencepiece", "protobuf") if not _installed(name)]
        if missing and any(p.suffix == ".model" for p in path.iterdir()):
            # In this case transformers takes the file for one of tiktoken, and its message names that library.
            raise UserError(
                f"the tokenizer in {path} is a SentencePiece model, and {' and '.join(missing)} is not installed",
                "pip install sentencepiece protobuf",
            ) from e
        raise UserError(f"the tokenizer in {path} cannot be read ({' '.join(str(e).split())[:160]})", _RESAVE) from e


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a causal language model and prepare it for generation and training.

    Afterwards, four properties hold:

    - It has an end-of-text token: its own, or the one in generation_config.json or config.json.
    - It has a padding token with an embedding: its own, or the end-of-text token.
    - It adds nothing at the end of a text.
    - `encode_prompts` knows the special tokens without an embedding, such as an added padding or image token.

    Raises:
        UserError: The files cannot be read, the tokenizer belongs to another model, it has no end-of-text token with an
            embedding, or it cannot be stopped from adding tokens at the end.
    """
    tokenizer = read_tokenizer(path)
    size = _embeddings(path)
    if not tokenizer.chat_template and isinstance(
        own := _settings(path, "chat_template.json").get("chat_template"), str
    ):
        tokenizer.chat_template = (
            own  # multimodal models keep it beside their processor, and AutoTokenizer does not read it
        )
    if tokenizer.eos_token_id is None and (end := _configured_end(path, tokenizer)) is not None:
        tokenizer.eos_token = end
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer in {path} has no end-of-text token, and config.json has no eos_token_id",
            "set it: tokenizer.eos_token = TOKEN, then tokenizer.save_pretrained(folder)",
        )
    if beyond := check_embeddings(tokenizer, path, size):
        _WITHOUT_EMBEDDING[tokenizer] = beyond
    if tokenizer.pad_token_id is None or (size is not None and tokenizer.pad_token_id >= size):
        tokenizer.pad_token = tokenizer.eos_token
    _add_nothing_at_the_end(tokenizer, path)
    return tokenizer


def _settings(path: Path, name: str) -> dict[str, Any]:
    """Return the values of a JSON file, those of its `text_config` first. Empty if the file cannot be read."""
    try:
        found = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # check_files reports the error
    if not isinstance(found, dict):
        return {}
    inner = found.get("text_config")
    return found | {k: v for k, v in inner.items() if v is not None} if isinstance(inner, dict) else found


def _embeddings(path: Path) -> int | None:
    """Return the number of tokens with an embedding in the model, or None if its config.json does not give it."""
    size = _settings(path, "config.json").get("vocab_size")
    return size if isinstance(size, int) else None


def _configured_end(path: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the first end token in the model's settings that the tokenizer knows."""
    known = {k: token for token, k in tokenizer.get_vocab().items()}
    for name in ("generation_config.json", "config.json"):
        named = _settings(path, name).get("eos_token_id")
        for end in named if isinstance(named, list) else [named]:
            if end in known:
                return known[end]
    return None


def check_embeddings(tokenizer: PreTrainedTokenizerBase, path: Path, size: int | None) -> frozenset[int]:
    """Find the tokens without an embedding in the model, and check that only special tokens are among them.

    Libraries add special tokens for padding or images, and do not always resize the embeddings.

    Args:
        tokenizer: The tokenizer.
        path: Folder of the tokenizer, for the message.
        size: Number of tokens with an embedding; None if unknown.

    Returns:
        The ids of the tokens without an embedding.

    Raises:
        UserError: One of them is an ordinary token, ends a text, or is added to every text.
    """
    if size is None:
        return frozenset()
    beyond = {k: token for token, k in tokenizer.get_vocab().items() if k >= size}
    needed = {tokenizer.eos_token_id, tokenizer.bos_token_id, *itertools.chain(*_added_around(tokenizer))}
    for k, token in sorted(beyond.items()):
        added = tokenizer.added_tokens_decoder.get(k)
        if k in needed or added is None or not added.special:
            raise UserError(
                f"the tokenizer in {path} does not belong to this model: token {json.dumps(token[:40])} has id {k}, but the"
                f" model has {size} embeddings",
                "save the model's own tokenizer next to its weights with tokenizer.save_pretrained(folder)",
            )
    return frozenset(beyond)


def _added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids of the tokens that the tokenizer adds before and after a text."""
    text = "One, two."
    inner, whole = (tokenizer(text, add_special_tokens=special)["input_ids"] for special in (False, True))
    for at in range(len(whole) - len(inner) + 1):
        if inner and whole[at : at + len(inner)] == inner:
            return whole[:at], whole[at + len(inner) :]
    return [], []


def _add_nothing_at_the_end(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Stop a tokenizer from adding tokens at the end of a text. The model would take such a prompt for finished."""
    if not _added_around(tokenizer)[1]:
        return
    if getattr(tokenizer, "add_eos_token", False):
        tokenizer.add_eos_token = False
    if _added_around(tokenizer)[1] and tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.post_processor = _without_end(backend.post_processor)
    if added := _added_around(tokenizer)[1]:
        raise UserError(
            f"the tokenizer in {path} adds {tokenizer.decode(added)!r} at the end of every text and prompt",
            "turn this off (add_eos_token=False) and save the tokenizer again with tokenizer.save_pretrained(folder)",
        )


def _without_end(processor: Any) -> Any:
    """Return a post-processor of the tokenizers library that adds the same tokens before a text and none after it."""
    from tokenizers import Tokenizer

    def cut(state: Any) -> Any:
        if state["type"] == "Sequence":
            return state | {"processors": [cut(one) for one in state["processors"]]}
        if state["type"] in ("BertProcessing", "RobertaProcessing"):
            token, k = state["cls"]
            special = {token: {"id": token, "ids": [k], "tokens": [token]}}
            piece = {"SpecialToken": {"id": token, "type_id": 0}}
            single = [piece, {"Sequence": {"id": "A", "type_id": 0}}]
            pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
            return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
        if state["type"] != "TemplateProcessing":
            return state
        last = max(k for k, piece in enumerate(state["single"]) if "Sequence" in piece)
        return state | {"single": state["single"][: last + 1]}

    rest: dict[str, Any] = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "decoder"))
    model = {"type": "BPE", "vocab": {}, "merges": []}
    changed = cut(json.loads(processor.__getstate__()))
    made = {"version": "1.0", "added_tokens": [], "model": model, "post_processor": changed, **rest}
    return Tokenizer.from_str(json.dumps(made)).post_processor


def start_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the beginning-of-text token, or else of the end-of-text token, or None if there is neither."""
    start: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return start


def encode_prompts(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[str]) -> list[list[int]]:
    """Convert rendered prompts, or plain texts, to token ids.

    The tokenizer adds its special tokens, except to prompts that already contain them (see `Rendered`). A prompt
    without tokens becomes the start token.

    Args:
        tokenizer: The tokenizer, from `load_tokenizer`.
        rendered: The rendered prompts.

    Returns:
        The token ids of each prompt, in order.

    Raises:
        UserError: A prompt contains a token without an embedding in the model.
    """
    found: list[list[int]] = [[]] * len(rendered)
    start = start_token(tokenizer)
    for special in (True, False):
        places = [k for k, text in enumerate(rendered) if adds_special_tokens(text) is special]
        if places:
            texts = [str(rendered[k]) for k in places]
            encoded = tokenizer(texts, add_special_tokens=special)["input_ids"]
            for k, ids in zip(places, encoded, strict=True):
                if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
                    ids = ids[1:]  # the text already begins with the token that the tokenizer adds
                found[k] = ids or ([] if start is None else [start])
    _check_fed(tokenizer, found)
    return found


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, before: Sequence[str], after: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """Convert rendered prompts and the texts after them to token ids, as the model sees and generates them.

    The ids of a prompt are those from which generation starts. The ids of the text after it are taken from the tokens
    of the joined text, so that no space is added before a response that has one. If one token of the joined text spans
    the boundary, the model cannot generate it after this prompt. In this case the second text is tokenised as if it
    followed a line break.

    Args:
        tokenizer: The tokenizer, from `load_tokenizer`.
        before: The rendered prompts.
        after: The text after each prompt, from `Template.pair` or `joined`.

    Returns:
        For each pair the token ids of the prompt and of the text after it.

    Raises:
        UserError: A text contains a token without an embedding in the model.
    """
    heads = encode_prompts(tokenizer, before)
    wholes = encode_prompts(tokenizer, [same_kind(str(b) + a, b) for b, a in zip(before, after, strict=True)])
    pairs = []
    for head, whole, b, a in zip(heads, wholes, before, after, strict=True):
        if whole[: len(head)] == head:
            pairs.append((head, whole[len(head) :]))
        else:  # an empty prompt becomes the start token, which the joined text may lack
            pairs.append((head, _after_anchor(tokenizer, a) if b else whole))
    return pairs


def _after_anchor(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text as it is tokenised after another text, where no token spans the boundary."""
    for anchor in _ANCHORS:
        head, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (anchor, anchor + text))
        if whole[: len(head)] == head:
            return list(whole[len(head) :])
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _check_fed(tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Sequence[int]]) -> None:
    """Raise `UserError` if token ids contain a token that the model has no embedding for."""
    beyond = _WITHOUT_EMBEDDING.get(tokenizer)
    if not beyond:
        return
    for ids in encoded:
        if found := beyond.intersection(ids):
            token = tokenizer.convert_ids_to_tokens(min(found))
            raise UserError(
                f"a text contains the token {token!r}, for which the model has no embedding",
                "remove it from the prompts, responses and texts",
            )


def silence_transformers() -> None:
    """Let transformers print only errors and no progress bars, because a run shows its own progress."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
