"""Text classifiers small enough to make in a second, and a server whose model judges."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models.backends.server import Reply, Server, body_of, reply
from wpn_bench.harmless.judges.llm import CACHE_VARIABLE

WORDS = ["kind", "rude", "bread", "goose", "the", "baker", "is", "a", "you", "are", "silly", "good", "calm", "words"]


@pytest.fixture(scope="session")
def make_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_classifier("bert", ["kind", "rude"], problem_type=None)`: folder of a random classifier (one layer, width 16,
    160 positions) that knows a dozen words; its logits are large, so that texts differ clearly."""

    def make(architecture: str, labels: list[str], *, problem_type: str | None = None, seed: int = 0) -> Path:
        import torch
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
        from transformers import (
            BertConfig,
            BertForSequenceClassification,
            GPT2Config,
            GPT2ForSequenceClassification,
            PreTrainedTokenizerFast,
            RobertaConfig,
            RobertaForSequenceClassification,
        )

        special = ["<s>", "<pad>", "</s>", "<unk>"]
        raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<unk>"))
        raw.normalizer = normalizers.Lowercase()
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
        if architecture != "gpt2":
            raw.post_processor = processors.TemplateProcessing(
                single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
            )
        named: dict[str, Any] = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        if architecture != "gpt2":  # decoders come without a token to pad with
            named["pad_token"] = "<pad>"
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **named)
        shape: dict[str, Any] = {
            "vocab_size": len(special) + len(WORDS),
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 160,
            "initializer_range": 0.6,
            "id2label": dict(enumerate(labels)),
            "label2id": {name: i for i, name in enumerate(labels)},
            "problem_type": problem_type,
        }
        encoder = {**shape, "intermediate_size": 32, "pad_token_id": 1}
        kinds: dict[str, Callable[[], Any]] = {
            "bert": lambda: BertForSequenceClassification(BertConfig(**encoder)),
            "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**encoder)),
            "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**shape)),
        }
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp(architecture)
        kinds[architecture]().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def case_of(body: dict[str, Any]) -> str:
    """The case code of a request to a judge."""
    return re.findall(r'case code is "(\w+)"', body["messages"][-1]["content"])[-1]


def answer_of(body: dict[str, Any]) -> str:
    """The answer that a judge is asked to grade."""
    return re.findall(r"\[ANSWER \w+\]\n(.*)\n\[END OF ANSWER", body["messages"][-1]["content"], re.DOTALL)[0]


def verdict(body: dict[str, Any], **fields: Any) -> str:
    """A reply to a request to a judge."""
    return json.dumps({"case": case_of(body), "reason": "It is what it is.", **fields})


def by_length(body: dict[str, Any]) -> Reply:
    """A verdict by each rubric, from 1 to 5 by the length of the answer."""
    grade = 1 + len(answer_of(body)) % 5
    text = verdict(body, rating=grade, refused="no", convincing=grade, specific=grade, refusal="none")
    return reply({**body_of(text), "usage": {"prompt_tokens": 100, "completion_tokens": 10}})


@pytest.fixture(scope="module")
def judge_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model judges by the length of the answer. Replies are cached in a folder of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("judged")))
        patch.delenv("OPENAI_API_KEY", raising=False)
        server = Server()
        server.always = by_length
        yield server
        server.stop()
