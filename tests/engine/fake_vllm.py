"""A package that looks like vLLM from outside, computed by transformers. It is installed into a folder of its own.

`vllm/__init__.py` is this file. It mimics what the backend uses of vLLM 0.33: `LLM(...)`, `LLM.generate` of token ids, and
`SamplingParams`. As vLLM, it knows no argument by another name, refuses a prompt that leaves no room for one more token, gives no
log-probability for the first token of a prompt, and appends the token that ended a response.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_tokens: int = 16
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    seed: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True


class LLM:
    def __init__(self, **arguments: Any) -> None:
        print("vLLM prints to the standard output")
        self.context = arguments["max_model_len"]
        if "FAKE_VLLM_LOG" in os.environ:
            seen = {name: os.environ.get(name) for name in ("VLLM_BATCH_INVARIANT", "CUDA_VISIBLE_DEVICES")}
            with open(os.environ["FAKE_VLLM_LOG"], "a") as log:
                log.write(json.dumps({"pid": os.getpid(), "arguments": arguments, "environment": seen}) + "\n")
        if "FAKE_VLLM_EMPTY" not in os.environ:  # to import transformers takes long
            from transformers import AutoModelForCausalLM, AutoTokenizer

            self.model = AutoModelForCausalLM.from_pretrained(arguments["model"]).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(arguments["tokenizer"])

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling: list[SamplingParams], use_tqdm: bool
    ) -> list[Any]:
        return [self._one(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling, strict=True)]

    def _one(self, ids: list[int], sampling: SamplingParams) -> Any:
        if len(ids) >= self.context:
            raise ValueError(f"The decoder prompt (length {len(ids)}) is longer than the maximum model length")
        new: list[int] = []
        while len(new) < sampling.max_tokens and not (new and new[-1] in sampling.stop_token_ids):
            new.append(int(self._logprobs([*ids, *new])[-1].argmax()))
            if any(mark in self.tokenizer.decode(new, skip_special_tokens=True) for mark in sampling.stop):
                break
        listed = None if sampling.prompt_logprobs is None else self._listed(ids)
        told = [7, *ids] if os.environ.get("FAKE_VLLM_FAULT") == "adds a token" else ids
        return SimpleNamespace(
            prompt_token_ids=told, prompt_logprobs=listed, outputs=[SimpleNamespace(token_ids=tuple(new))]
        )

    def _logprobs(self, ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    def _listed(self, ids: list[int]) -> list[Any]:
        """For each token, the log-probabilities of the most likely token and of this one; None for the first token."""
        values = self._logprobs(ids)
        listed: list[Any] = [None]
        for row, token in zip(values, ids[1:], strict=False):
            shown = {int(row.argmax()), token}
            if os.environ.get("FAKE_VLLM_FAULT") == "leaves out":
                shown.discard(token)
            listed.append({one: SimpleNamespace(logprob=float(row[one])) for one in shown})
        return listed
