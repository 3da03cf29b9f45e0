"""The process in which vLLM computes a model. It needs vLLM and no other package of wpn-bench.

`vllm_backend` starts this file with the Python of an environment that has vLLM. The two exchange lines of JSON over the
standard input and output. The first request opens the model, and each later one asks questions:

    {"open": {...arguments of vllm.LLM...}}               {"ok": true}
    {"ask": [{"ids": [5, 9], "scored": 1, "sampling": {...}}]}    {"ok": [{"prompt": ..., "new": ..., "scores": ...}]}

Where a request fails, the answer is {"error": "..."}. The process ends when its input closes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import IO, Any


def serve(requests: IO[str], results: IO[str]) -> None:
    """Answer requests until there are no more.

    Args:
        requests: Lines of JSON.
        results: Gets a line of JSON for each request.
    """
    llm: Any = None
    for line in requests:
        request = json.loads(line)
        try:
            if "open" in request:
                from vllm import LLM

                llm = LLM(**request["open"])
                told: dict[str, Any] = {"ok": True}
            else:
                told = {"ok": answers(llm, request["ask"])}
        except Exception as e:
            told = {"error": f"{type(e).__name__}: {' '.join(str(e).split())}"[:1000]}
        results.write(json.dumps(told) + "\n")
        results.flush()


def answers(llm: Any, questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Let vLLM compute some prompts.

    Args:
        llm: A `vllm.LLM`.
        questions: Token ids `ids`, arguments `sampling` of `SamplingParams`, and how many of the last tokens are
            `scored`, for each prompt.

    Returns:
        For each prompt the token ids that vLLM computed (`prompt`), the `new` ones, and the `scores` of the scored
        tokens: log-probability in nats, and whether the token is the most likely one.

    Raises:
        ValueError: vLLM left out a log-probability.
    """
    from vllm import SamplingParams

    outputs = llm.generate(
        [{"prompt_token_ids": question["ids"]} for question in questions],  # as text, a second start token is added
        [SamplingParams(**question["sampling"]) for question in questions],
        use_tqdm=False,
    )
    return [
        {
            "prompt": list(output.prompt_token_ids),
            "new": list(output.outputs[0].token_ids),
            "scores": scores(output.prompt_logprobs, question["ids"], question["scored"]),
        }
        for question, output in zip(questions, outputs, strict=True)
    ]


def scores(listed: Any, ids: Sequence[int], scored: int) -> list[tuple[float, bool]]:
    """Read the log-probabilities of the last tokens of a prompt.

    Args:
        listed: For each token of the prompt, the log-probabilities of the most likely token and of this token, by id.
        ids: The tokens.
        scored: Number of tokens to read.

    Returns:
        The log-probability of each token, and whether it is the most likely one. Of equally likely tokens that vLLM
        lists, the one with the lowest id counts.

    Raises:
        ValueError: vLLM left out a log-probability.
    """
    if not scored:
        return []
    if listed is None or len(listed) != len(ids):
        raise ValueError("vLLM gave no log-probabilities for the tokens of a prompt")
    found = []
    for position, token in zip(listed[-scored:], ids[-scored:], strict=True):
        if position is None or token not in position:
            raise ValueError("vLLM left out the log-probability of a token of a prompt")
        values = {int(one): float(entry.logprob) for one, entry in position.items()}
        found.append((values[token], min(values, key=lambda one: (-values[one], one)) == token))
    return found


if __name__ == "__main__":
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    serve(sys.stdin, told)
