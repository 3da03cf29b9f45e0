"""A judge that asks a language model at an endpoint (OpenAI's API) by a rubric: `openai:URL#MODEL,rubric=NAME`."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import platformdirs
from pydantic import Field

from wpn_bench.core.files import digest_of
from wpn_bench.core.progress import Advance
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import Exchange, Judge, JudgeConfig
from wpn_bench.harmless.judges.rubrics import Rubric, declines, find_rubric
from wpn_bench.jobs.journal import Journal, fingerprint
from wpn_bench.models.backends import client
from wpn_bench.models.backends.client import ONLY_REASONING, REFUSED, TOO_LONG, EndpointClient, Reply
from wpn_bench.models.backends.endpoint import KEY_VARIABLE, PREFIX, Endpoint, parse_source
from wpn_bench.models.backends.openai import identified
from wpn_bench.redact import one_line

CACHE_VARIABLE = "WPN_BENCH_JUDGED"
# Reasoning models may use up the tokens before they reply, a schema may trap a model in white space or turn the verdict into
# reasoning, and a server may refuse it without naming it. Such a request is repeated once, with more tokens and without the schema.
MORE_TOKENS = 4
MOST_REASONS = 12  # that are told apart
NO_REPLY = "without a reply"
_OPTIONAL = {
    **client.OPTIONAL,
    "temperature": r"\btemperature\b",
    client.RESPONSE_FORMAT: client.STRUCTURED,
    client.SYSTEM: r"system.{0,3}(role|message|prompt)|conversation roles must alternate",
}


class LLMConfig(JudgeConfig):
    """Options of `LLMJudge`. Those in `unscored` do not affect scores."""

    unscored: ClassVar[frozenset[str]] = JudgeConfig.unscored | {
        "key_env",
        "concurrency",
        "timeout",
        "retries",
        "price_in",
        "price_out",
    }
    rubric: str = Field("harm", description="harm, strongreject, refusal, or a YAML file")
    max_tokens: int = Field(1024, ge=16, le=1_000_000, description="most tokens of a reply")
    structured: bool = Field(True, description="ask for JSON by a schema where the server can")
    key_env: str = Field(KEY_VARIABLE, description="environment variable of the key")
    concurrency: int = Field(8, ge=1, le=256, description="requests at a time")
    timeout: float = Field(120.0, gt=0, description="seconds for one reply")
    retries: int = Field(7, ge=0, le=50, description="repetitions of a failed request")
    price_in: float | None = Field(None, ge=0, description="price of a million tokens of requests")
    price_out: float | None = Field(None, ge=0, description="price of a million tokens of replies")

    def with_cost(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        prices = {"asked_prompt_tokens": self.price_in, "asked_completion_tokens": self.price_out}
        if all(price is None for price in prices.values()):
            return dict(usage)
        return {**usage, "cost": sum(usage.get(name, 0) * (price or 0) for name, price in prices.items()) / 1e6}


class LLMJudge(Judge):
    """Asks a language model about each exchange. Replies are cached on disk, across runs; the key is in no file."""

    name = "openai"
    title = "LLM judge"
    measures = (
        "A language model read the request and the answer, and graded the answer by a rubric. It errs as language models do: measure"
        " it on labelled exchanges."
    )
    source = "https://arxiv.org/abs/2402.10260"
    usage = "openai:URL#MODEL,rubric=harm"
    needs_prompt = True
    remote = True
    Config = LLMConfig
    config: LLMConfig

    def __init__(self, variant: str, device: str, config: JudgeConfig | None = None) -> None:
        super().__init__(variant, device, config)
        self.rubric: Rubric = find_rubric(self.config.rubric)
        self.measures = f"{type(self).measures} {self.rubric.measures}".strip()
        self._usage: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()

    @classmethod
    def check(cls, variant: str) -> None:
        if not variant:
            raise UserError("the judge openai has no URL", f"write {cls.usage}")
        if parse_source(PREFIX + variant).api != "chat":
            raise UserError(f"the judge {PREFIX}{variant} is no chat endpoint", "a judge needs one (/chat/completions)")

    @cached_property
    def endpoint(self) -> Endpoint:
        """The endpoint, with what the server says of its model. Raises `UserError` if the server does not have it."""
        speed = self.config.model_dump(include={"key_env", "concurrency", "timeout", "retries"})
        return identified(parse_source(PREFIX + self.variant).model_copy(update=speed))

    def digest(self) -> str:
        asked = self.config.model_dump(include={"max_tokens", "structured"})
        return digest_of({"endpoint": self.endpoint.digest(), "rubric": self.rubric.digest(), **asked})

    def score_exchanges(self, exchanges: Sequence[Exchange], advance: Advance = lambda n: None) -> list[float | None]:
        scores: list[float | None] = [None] * len(exchanges)
        bodies: dict[int, dict[str, Any]] = {}
        for k, exchange in enumerate(exchanges):
            if re.search(r"\w", exchange.response):
                bodies[k] = self._body(exchange)
            else:
                scores[k] = 0.0
        advance(len(exchanges) - len(bodies))
        cache = Journal(self._cache_folder())
        try:
            again: dict[int, dict[str, Any]] = {}
            for k, reply in self._replies(bodies, cache, len(exchanges)):
                scores[k] = self._read(reply, exchanges[k])
                other = self._repetition(bodies[k], reply) if scores[k] is None else None
                if other is not None:
                    again[k] = other
                else:
                    self._count_missing(scores[k], reply)
                    advance(1)
            for k, reply in self._replies(again, cache, len(exchanges)):
                scores[k] = self._read(reply, exchanges[k])
                self._count_missing(scores[k], reply)
                advance(1)
        finally:
            cache.close()
        return scores

    def take_usage(self) -> dict[str, Any]:
        usage = dict(self._usage) | ({"missing": dict(self._missing)} if self._missing else {})
        self._usage, self._missing = Counter(), Counter()
        return usage

    def _body(self, exchange: Exchange) -> dict[str, Any]:
        body = {
            "model": self.endpoint.model,
            "messages": self.rubric.messages(exchange),
            "max_tokens": self.config.max_tokens,
            "temperature": 0,
        }
        return body | ({"response_format": self.rubric.response_format()} if self.config.structured else {})

    def _repetition(self, body: Mapping[str, Any], reply: Reply) -> dict[str, Any] | None:
        """Return another request for a reply without a verdict; None if the reply tells that no other request helps."""
        refused = (reply.reason or "").startswith(REFUSED)
        by_schema = "response_format" in body and (refused or reply.text == "" or reply.reason == ONLY_REASONING)
        if _is_blocked(reply) or not (by_schema or reply.finish == "length"):
            return None
        plain = {name: value for name, value in body.items() if name != "response_format"}
        return plain if refused else plain | {"max_tokens": MORE_TOKENS * self.config.max_tokens}

    def _cache_folder(self) -> Path:
        root = os.environ.get(CACHE_VARIABLE)
        folder = Path(root) if root else Path(platformdirs.user_cache_dir("wpn-bench")) / "judged"
        return folder / self.endpoint.digest()[:32]

    def _replies(self, bodies: Mapping[int, dict[str, Any]], cache: Journal, total: int) -> Iterator[tuple[int, Reply]]:
        """Yield the replies to requests: those in the cache first, then those of the server, as they come."""
        keys = {k: fingerprint([json.dumps(body, sort_keys=True)]) for k, body in bodies.items()}
        asked = {}
        for k, body in bodies.items():
            known = cache.sections.get(keys[k], {}).get(0)
            if known is None:
                asked[k] = body
            else:
                reply = Reply(*known)
                self._count_tokens("cached", reply)
                yield k, reply
        if not asked:
            return
        for k, reply, final in EndpointClient(self.endpoint, _OPTIONAL).ask_all(asked, total):
            self._count_tokens("asked", reply)
            # What the server refuses, it may accept once it is set up in another way, so another run asks again.
            if final and not (reply.reason or "").startswith((REFUSED, TOO_LONG)):
                value = [reply.text, reply.n_tokens, reply.reason, reply.n_prompt_tokens, reply.finish, reply.refused]
                try:
                    cache.write(keys[k], {0: value})
                except OSError as e:
                    raise UserError(
                        f"the replies of judges cannot be kept in {cache.folder.parent} ({e.strerror})",
                        f"set {CACHE_VARIABLE} to another folder",
                    ) from e
            yield k, reply

    def _read(self, reply: Reply, exchange: Exchange) -> float | None:
        if reply.text is None or reply.refused or reply.finish == "content_filter":
            return None
        return self.rubric.read(reply.text, exchange)

    def _count_tokens(self, how: str, reply: Reply) -> None:
        self._usage[how] += 1
        self._usage[f"{how}_prompt_tokens"] += reply.n_prompt_tokens
        self._usage[f"{how}_completion_tokens"] += reply.n_tokens

    def _count_missing(self, score: float | None, reply: Reply) -> None:
        if score is None:
            why = _why_missing(reply)
            # Some servers put the number of the request into each message.
            self._missing[why if len(self._missing) < MOST_REASONS else NO_REPLY] += 1


def _is_blocked(reply: Reply) -> bool:
    return reply.finish == "content_filter" or "content filter" in (reply.reason or "")


def _why_missing(reply: Reply) -> str:
    if _is_blocked(reply):
        return "blocked by a content filter"
    if reply.refused or (reply.text and declines(reply.text)):
        return "refused by the judge"
    if reply.finish == "length":
        return "cut off"
    if reply.text is None:
        return "too long for the judge" if reply.reason == TOO_LONG else one_line(reply.reason or NO_REPLY, 100)
    return "without a valid verdict"
