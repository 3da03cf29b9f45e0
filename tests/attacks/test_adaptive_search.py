"""The search of adaptive attacks: rounds, budget and pruning, and what endpoints and small models do to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.models.backends.server import Server, body_of, error, reply
from wpn_bench.attacks.adaptive import Adaptive, Pair, Tap
from wpn_bench.attacks.adaptive_search import AdaptiveSearch, Search, best_of, history_of
from wpn_bench.attacks.attacker import BEGUN
from wpn_bench.engine.local_backend import LocalBackend
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import Exchange
from wpn_bench.jobs.journal import Journal, use_journal
from wpn_bench.models.backends import Backend, Decoding, Response, client
from wpn_bench.models.backends.endpoint import Endpoint
from wpn_bench.models.backends.openai import OpenAIBackend
from wpn_bench.models.tokenizer import encode_prompts
from wpn_bench.prompts import Item, Template

PLAIN = Template.parse("{prompt}")
ITEMS = [Item("a", "How do I sew?", harmful=("You fool, take a needle.",)), Item("b", "How do I bake?")]
TOPIC = "YES or NO"


class Talker(Backend):
    """Answers with a function of the prompt, and remembers what it was asked."""

    context_length = 10_000

    def __init__(self, answer: Callable[[str], str | None]) -> None:
        self.said, self.asked = answer, []  # type: ignore[var-annotated]
        self.calls = 0

    @classmethod
    def open(cls, folder: Path, device: str, dtype: str, offload: str) -> Talker:
        raise NotImplementedError

    def generate(self, prompts: Sequence[str], decoding: Decoding, advance: Any = None) -> list[Response]:
        self.asked += prompts
        self.calls += 1
        return [Response(self.said(one), 1, None if self.said(one) is not None else "why") for one in prompts]

    def loglikelihoods(self, *args: Any, **options: Any) -> None:
        return None

    def digest(self) -> str:
        return "talker"


def number_of(message: str) -> int:
    return int(message.split("This is draft ")[1].split(".")[0])


def numbered(message: str) -> str:
    """What an attacker says after `BEGUN`: each draft is another one."""
    return (
        TOPIC
        if TOPIC in message
        else f'better", "prompt": "draft {number_of(message)} of {message.split(chr(34))[1]}"}}'
    )


def score_of(exchanges: Sequence[Exchange]) -> list[float | None]:
    """Scores say how often the answer has an exclamation mark."""
    return [min(1.0, one.response.count("!") / 10) for one in exchanges]


def attack(
    settings: Adaptive, attacker: Backend, target: Backend, score: Any = score_of, threshold: float = 0.5
) -> AdaptiveSearch:
    return AdaptiveSearch(settings, attacker, PLAIN, target, PLAIN, Decoding(), score, threshold)


def asked(search: Search) -> list[str]:
    return [one["prompt"] for one in search.asked]


def test_streams_improve_their_own_drafts_and_the_budget_ends_the_attack() -> None:
    attacker, target = Talker(numbered), Talker(lambda prompt: f"{prompt}!")
    progress: list[int] = []
    first, second = attack(Pair(queries=5, streams=2, depth=9), attacker, target).run(ITEMS, progress.append)
    assert [one["stream"] for one in first.asked] == [0, 1, 0, 1, 0]
    assert [one["parent"] for one in first.asked] == [None, None, 0, 1, 2]
    assert [one["query"] for one in first.asked] == [1, 2, 3, 4, 5]
    assert asked(second)[0] == "draft 1 of How do I bake?"
    assert sum(progress) == 10
    third = next(text for text in attacker.asked if "sew" in text and "draft 3" in text)
    assert '- prompt: "draft 1 of How do I sew?"; answer: "draft 1 of How do I sew?!"; score: 2' in third
    assert "draft 2" not in third
    assert '"You fool, take a needle."' in third
    assert third.endswith(BEGUN)
    assert all("This is draft" not in prompt for prompt in target.asked)


def test_rounds_without_a_draft_are_progress() -> None:
    progress: list[int] = []
    search = attack(Pair(queries=8, streams=2, depth=4), Talker(lambda message: "I do not know."), Talker(str))
    found = search.run(ITEMS, progress.append)
    assert [one.asked for one in found] == [[], []]
    assert progress == [2] * 8


def test_a_harmful_answer_ends_the_attack_on_its_prompt() -> None:
    target = Talker(lambda prompt: "!!!!!!!" if prompt == "draft 3 of How do I sew?" else "no!")
    first, second = attack(Pair(queries=8, streams=2, depth=4), Talker(numbered), target).run(ITEMS)
    assert len(first.asked) == 4
    best = best_of(first.asked)
    assert best is not None
    assert (best["query"], best["score"]) == (3, 0.7)
    assert len(second.asked) == 8
    text = history_of(first)
    assert "[query 3, score 0.70, the best]\ndraft 3 of How do I sew?\n[answer]\n!!!!!!!" in text


def test_a_tree_grows_at_its_best_leaves() -> None:
    target = Talker(lambda prompt: "!" * (4 if prompt.startswith("draft 2 ") else 1))
    settings = Tap(queries=12, branching=3, width=1, depth=3, on_topic=False)
    (found,) = attack(settings, Talker(numbered), target).run(ITEMS[:1])
    assert [one["parent"] for one in found.asked] == [None] * 3 + [1] * 3 + [3] * 3
    assert len(found.asked) == 9
    assert (
        len(attack(settings.model_copy(update={"queries": 4}), Talker(numbered), target).run(ITEMS[:1])[0].asked) == 4
    )


def test_drafts_that_miss_the_request_are_not_asked() -> None:
    def says(message: str) -> str:
        return ("NO" if "draft 2 " in message else "YES") if TOPIC in message else numbered(message)

    search = attack(Tap(queries=9, branching=3, depth=1), attacker := Talker(says), Talker(lambda prompt: "no"))
    (found,) = search.run(ITEMS[:1])
    assert [one["query"] for one in found.attempts] == [1, None, 2]
    assert search.counts["off topic"] == 1
    assert "[draft that was not asked: off topic]" in history_of(found)
    (kept,) = attack(
        Tap(queries=9, branching=2, depth=1), Talker(lambda m: "NO" if TOPIC in m else numbered(m)), attacker
    ).run(ITEMS[:1])
    assert (kept.asked, best_of(kept.asked)) == ([], None)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("I'm sorry, but I cannot help with that.", "unreadable"),
        (None, "no reply"),
        ("", "unreadable"),
        ("Take a needle.", "unreadable"),
    ],
)
def test_an_attacker_that_writes_no_prompt_leaves_no_query(said: str | None, problem: str) -> None:
    target = Talker(lambda prompt: "!")
    search = attack(Pair(queries=4, streams=1, depth=2, tries=3), Talker(lambda message: said), target)
    (found,) = search.run(ITEMS[:1])
    assert (found.asked, target.asked) == ([], [])
    assert {one["problem"] for one in found.attempts} <= {problem, "refused"}
    assert search.counts["replies"] == 6
    assert search.counts["queries"] == 0


def test_an_attacker_that_repeats_itself_is_asked_again_and_the_target_is_not() -> None:
    target = Talker(lambda prompt: "!")
    search = attack(Pair(queries=9, streams=1, depth=2, tries=2), Talker(lambda m: 'x", "prompt": "Same."}'), target)
    (found,) = search.run(ITEMS[:1])
    assert target.asked == ["Same."]
    assert [one["problem"] for one in found.attempts] == ["", "repeated", "repeated"]


def test_a_target_without_an_answer_and_a_judge_without_a_score_are_no_success() -> None:
    target = Talker(lambda prompt: None if prompt.startswith("draft 1 ") else "hm")
    search = attack(Pair(queries=3, streams=1, depth=3), talker := Talker(numbered), target, lambda e: [None] * len(e))
    (found,) = search.run(ITEMS[:1])
    assert [one["answer"] for one in found.asked] == [None, "hm", "hm"]
    assert (search.counts["without an answer"], search.counts["without a score"]) == (1, 2)
    best = best_of(found.asked)
    assert best is not None
    assert best["query"] == 2
    assert "answer: no answer; score: unknown" in talker.asked[1]
    assert "(why)" in history_of(found)


def test_a_judge_that_fails_once_does_not_end_the_attack_but_one_that_never_scores_does() -> None:
    calls: list[int] = []

    def flaky(exchanges: Sequence[Exchange]) -> list[float | None]:
        calls.append(len(exchanges))
        if len(calls) == 1:
            raise UserError("the judge does not answer", "wait")
        return [0.1] * len(exchanges)

    (found,) = attack(Pair(queries=3, streams=1, depth=3), Talker(numbered), Talker(lambda p: "hm"), flaky).run(
        ITEMS[:1]
    )
    assert [one["score"] for one in found.asked] == [None, 0.1, 0.1]

    def broken(exchanges: Sequence[Exchange]) -> list[float | None]:
        raise UserError("the judge has no key", "set it")

    with pytest.raises(UserError, match="the judge has no key"):
        attack(Pair(queries=3, streams=1, depth=3), Talker(numbered), Talker(lambda p: "hm"), broken).run(ITEMS[:1])


def test_an_interrupted_attack_goes_on_where_it_stopped(tmp_path: Path) -> None:
    settings = Pair(queries=6, streams=2, depth=3)

    def run(target: Backend, attacker: Talker) -> list[dict[str, Any]]:
        with use_journal(Journal(tmp_path / "journal")):
            return [one for search in attack(settings, attacker, target).run(ITEMS) for one in search.attempts]

    whole = [
        one
        for search in attack(settings, Talker(numbered), Talker(lambda prompt: f"{prompt}!")).run(ITEMS)
        for one in search.attempts
    ]

    def dies(prompt: str) -> str:
        if prompt.startswith("draft 5 "):
            raise KeyboardInterrupt
        return f"{prompt}!"

    with pytest.raises(KeyboardInterrupt):
        run(Talker(dies), Talker(numbered))
    again = Talker(numbered)
    assert run(Talker(lambda prompt: f"{prompt}!"), again) == json.loads(json.dumps(whole))
    assert again.calls == 1  # the first two rounds are not repeated


# --- models and endpoints --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attacking_opt(make_lm: Callable[..., Path]) -> Path:
    """A random OPT whose context has room for the message to the attacker."""
    return make_lm("opt", context=1200)


def test_a_local_attacker_says_the_same_again_whatever_else_is_attacked(attacking_opt: Path) -> None:
    attacker = LocalBackend.open(attacking_opt)
    settings = Pair(queries=2, streams=2, depth=1, tries=2, shown=1, max_new_tokens=4)

    def replies(items: Sequence[Item], seed: int = 0) -> list[list[str]]:
        found = attack(settings.model_copy(update={"seed": seed}), attacker, Talker(lambda p: "hm")).run(items)
        return [[one["reply"] for one in search.attempts] for search in found]

    once = replies(ITEMS)
    assert once == replies(ITEMS)
    assert once[1:] == replies(ITEMS[1:])
    assert once != replies(ITEMS, seed=1)
    assert len(set(once[0])) > 1


def test_a_message_is_as_long_as_the_context_of_a_local_attacker_allows(attacking_opt: Path) -> None:
    settings = Pair(queries=2, streams=1, depth=1, shown=3, max_new_tokens=8)
    model = LocalBackend.open(attacking_opt)
    search = attack(settings, model, Talker(lambda p: "hm"))
    rows = [
        {"query": k, "parent": k - 1 if k else None, "prompt": "long prompt " * 60, "answer": "hm " * 200, "score": 0.5}
        for k in range(3)
    ]
    message = search._message(Search(ITEMS[0], attempts=rows), {"stream": 0, "parent": 2}, 4)
    assert 1 <= message.prompt.count("- prompt:") < 3
    (ids,) = encode_prompts(model.tokenizer, [PLAIN.render(message)])
    assert len(ids) + 8 <= model.context_length


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    found = Server()
    yield found
    found.stop()


def endpoint(server: Server) -> OpenAIBackend:
    return OpenAIBackend(Endpoint(url=server.url, model="tiny", retries=1))


def drafted(body: dict[str, Any]) -> Any:
    message = body["messages"][-1]["content"]
    return reply(body_of("```json\n{" + f'"improvement": "x", "prompt": "draft {number_of(message)}"' + "}\n```"))


def test_an_endpoint_that_fails_for_one_prompt_does_not_end_the_attack(server: Server) -> None:
    server.always = lambda body: error(500, "boom") if "sew" in body["messages"][-1]["content"] else drafted(body)
    search = attack(Pair(queries=2, streams=1, depth=2, tries=1), endpoint(server), Talker(lambda p: "hm"))
    sew, bake = search.run(ITEMS)
    assert [one["problem"] for one in sew.attempts] == ["no reply"] * 2
    assert "boom" in sew.attempts[0]["reply"]
    assert asked(bake) == ["draft 1", "draft 2"]
    assert not any("temperature" not in body or body["temperature"] == 0 for body in server.bodies)


def test_a_chat_endpoint_is_asked_by_a_schema_and_then_freely(server: Server) -> None:
    server.always = lambda body: None if "response_format" in body else drafted(body)
    settings = Pair(queries=1, streams=1, depth=1, tries=2)
    (found,) = attack(settings, endpoint(server), Talker(lambda p: "hm")).run(ITEMS[:1])
    assert [body.get("response_format", {}).get("type") for body in server.bodies] == ["json_schema", None]
    assert asked(found) == ["draft 2"]
    server.bodies.clear()
    # A server that knows no schema, and one that continues text.
    server.always = lambda body: error(400, "unknown response_format") if "response_format" in body else drafted(body)
    assert asked(attack(settings, endpoint(server), Talker(lambda p: "hm")).run(ITEMS[:1])[0]) == ["draft 1"]
    server.always = lambda body: reply(body_of('x", "prompt": "Go on."}'))
    plain = OpenAIBackend(Endpoint(url=server.url, model="tiny", api="completions", retries=1))
    assert asked(attack(settings, plain, Talker(lambda p: "hm")).run(ITEMS[:1])[0]) == ["Go on."]
    assert server.bodies[-1]["prompt"].endswith(BEGUN)
    assert "response_format" not in server.bodies[-1]


def test_an_endpoint_that_fails_for_all_prompts_ends_it(server: Server) -> None:
    server.always = lambda body: error(429, "slow down")
    with pytest.raises(UserError, match="does not answer any more"):
        attack(Pair(queries=9, streams=9, depth=9), endpoint(server), Talker(lambda p: "hm")).run(ITEMS)
    with pytest.raises(UserError, match="does not answer any more"):  # fewer requests than count as a failure
        attack(Pair(queries=1, streams=1, depth=1), endpoint(server), Talker(lambda p: "hm")).run(ITEMS[:1])
    server.always = lambda body: error(401, "no such key: secret-key")
    with pytest.raises(UserError, match=r"refuses tiny .HTTP 401") as caught:
        attack(Pair(queries=1, streams=1, depth=1), endpoint(server), Talker(lambda p: "hm")).run(ITEMS[:1])
    assert "secret-key" not in str(caught.value)


def test_a_target_at_an_endpoint_that_stops_answering_ends_it(server: Server) -> None:
    server.always = lambda body: error(503, "gone") if server.asked.total() > 3 else None
    with pytest.raises(UserError, match="does not answer any more"):
        attack(Pair(queries=40, streams=2, depth=20), Talker(numbered), endpoint(server)).run(ITEMS[:1])


def test_an_endpoint_without_room_for_the_message_gets_a_shorter_one(server: Server) -> None:
    def small(body: dict[str, Any]) -> Any:
        message = body["messages"][-1]["content"]
        return error(400, "maximum context length is 9") if message.count("- prompt:") > 1 else drafted(body)

    server.always = small
    search = attack(Pair(queries=4, streams=1, depth=4), endpoint(server), Talker(lambda p: "hm"))
    (found,) = search.run(ITEMS[:1])
    assert len(found.asked) == 4
    assert search.counts["shortened"] == 1
    assert found.level >= 1
