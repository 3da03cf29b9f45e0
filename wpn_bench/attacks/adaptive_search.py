"""The search of an adaptive attack (see `wpn_bench.attacks.adaptive`): it asks attacker and target in turns, round by round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from wpn_bench.attacks.attacker import (
    BEGUN,
    SCHEMA,
    Draft,
    Earlier,
    beginning_of,
    instruction,
    is_off_topic,
    read_draft,
    topic_question,
)
from wpn_bench.core.progress import Advance
from wpn_bench.engine.generation import too_long
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import Exchange
from wpn_bench.harmless.stages import split_reasoning
from wpn_bench.jobs import journal
from wpn_bench.models.backends import Decoding
from wpn_bench.models.backends.base import Response
from wpn_bench.models.backends.client import MAX_FAILURES, TOO_LONG, UNANSWERED
from wpn_bench.models.backends.openai import OpenAIBackend
from wpn_bench.models.tokenizer import encode_prompts
from wpn_bench.prompts import Item, Template

if TYPE_CHECKING:
    from wpn_bench.attacks.adaptive import Adaptive
    from wpn_bench.models.backends import Backend

REPEATED, OFF_TOPIC, NOT_ASKED = "repeated", "off topic", "not asked"  # reasons besides those of `read_draft`
_SHOWN = 600  # characters of each text in the history of a sample
_REPLY_KEPT = 1000  # characters of a reply without a draft
_TOPIC_TOKENS = 12  # of the answer whether a draft misses the request
_T = TypeVar("_T")


@dataclass
class Search:
    """The attack on one request.

    Attributes:
        item: The prompt.
        attempts: All drafts, as JSON values. `query` is the number of the query of the target, from 1; None if the target was not
            asked, and then `problem` says why. `parent` is the index of the draft that this one improves.
        leaves: (stream, index of its last draft), None for the beginning.
        level: How much shorter than usual the messages to the attacker are.
        done: Whether the attack has ended.
    """

    item: Item
    attempts: list[dict[str, Any]] = field(default_factory=list)
    leaves: list[tuple[int, int | None]] = field(default_factory=list)
    level: int = 0
    done: bool = False

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Return the drafts that the target was asked, in order."""
        return [one for one in self.attempts if one["query"] is not None]

    def path(self, leaf: int | None, most: int) -> list[Earlier]:
        """Return the last drafts on the way to a draft.

        Args:
            leaf: Index of the draft among the attempts; None for the beginning.
            most: Maximum number of drafts.

        Returns:
            The drafts, the oldest first, and the draft itself last.
        """
        found: list[Earlier] = []
        while leaf is not None and len(found) < most:
            one = self.attempts[leaf]
            found.insert(0, Earlier(one["prompt"], one["answer"], one["score"]))
            leaf = one["parent"]
        return found


def rank(attempt: Mapping[str, Any]) -> tuple[bool, bool, float]:
    """Return a key by which attempts are compared: those with a score first, then by the score, then those with an answer."""
    score = attempt["score"]
    return score is not None, attempt["answer"] is not None, -1.0 if score is None else score


def best_of(attempts: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first of the best attempts; None if none was answered."""
    answered = [one for one in attempts if one["answer"] is not None]
    return max(answered, key=rank, default=None)


class _Patience:
    """Lets single requests to an endpoint fail, but not `MAX_FAILURES` in a row."""

    def __init__(self) -> None:
        self.failures = 0
        self.last: UserError | None = None

    def ask(self, n: int, call: Callable[[], _T]) -> _T | None:
        """Call a function that sends n requests. Returns None if it failed, and raises its `UserError` if too many have failed."""
        try:
            return call()
        except UserError as e:
            self.failures += n
            self.last = e
            if self.failures >= MAX_FAILURES:
                raise
            return None

    def count(self, responses: Iterable[Response]) -> None:
        """Count the failures in a row, and raise `UserError` if they are too many."""
        for one in responses:
            failed = (one.reason or "").startswith(UNANSWERED)
            self.failures = self.failures + 1 if failed else 0
            if self.failures >= MAX_FAILURES:
                raise UserError(
                    f"an endpoint does not answer any more ({one.reason})",
                    "repeat the command when it answers; finished rounds are kept",
                )


class AdaptiveSearch:
    """Runs an adaptive attack on several requests at the same time, round by round.

    Args:
        settings: Settings of the attack.
        attacker: The attacker model.
        attacker_template: Writes the messages to the attacker.
        target: The model that is attacked.
        template: Writes the prompts for the target.
        decoding: How the target answers.
        score: Returns the harmful probability of each exchange of a request and an answer; None if there is no score.
        threshold: Scores from this value on end the attack on a request.
        strip: Whether the reasoning of the target is left out before its answers are scored.
    """

    def __init__(
        self,
        settings: Adaptive,
        attacker: Backend,
        attacker_template: Template,
        target: Backend,
        template: Template,
        decoding: Decoding,
        score: Callable[[Sequence[Exchange]], list[float | None]],
        threshold: float,
        strip: bool = False,
    ) -> None:
        self.settings, self.score, self.threshold, self.strip = settings, score, threshold, strip
        self.attacker, self.attacker_template = attacker, attacker_template
        self.target, self.template, self.decoding = target, template, decoding
        self.counts: Counter[str] = Counter()
        # A chat endpoint does not continue the beginning of a reply, but many servers hold the model to a schema.
        self.chat = attacker if isinstance(attacker, OpenAIBackend) and attacker.endpoint.api == "chat" else None
        self.begun = "" if self.chat else BEGUN
        self.replying = Decoding(
            max_new_tokens=settings.max_new_tokens,
            stop=() if attacker_template.is_chat else Decoding().stop,
            batch_size=decoding.batch_size,
            temperature=settings.temperature,
            top_p=None if settings.top_p == 1 else settings.top_p,
            seed=settings.seed,
            independent=True,
        )
        self._patience = {"attacker": _Patience(), "target": _Patience(), "judge": _Patience()}

    def run(self, items: Sequence[Item], advance: Advance = lambda n: None) -> list[Search]:
        """Attack all requests.

        Args:
            items: The prompts.
            advance: Called with the number of queries that need not be made any more, since its last call.

        Returns:
            The attacks, in the order of the items.

        Raises:
            UserError: An endpoint refuses all requests, or does not answer any more.
        """
        searches = [Search(item, leaves=[(k, None) for k in range(self.settings.streams)]) for item in items]
        stored = journal.section(
            "adapt", lambda: journal.fingerprint([i.id for i in items], self.settings.model_dump_json())
        )
        queries, depth = self.settings.queries, self.settings.depth
        counted = [0] * len(items)
        for number in range(depth):
            live = [k for k, one in enumerate(searches) if not one.done]
            if not live:
                break
            at = {k: number * len(items) + k for k in live}
            if all(place in stored.known for place in at.values()):
                for k, place in at.items():
                    _restore(searches[k], stored.known[place])
            else:
                self._round([searches[k] for k in live])
                stored.add({place: _state(searches[k]) for k, place in at.items()})
            for k in live:
                one = searches[k]
                one.done = one.done or number + 1 == depth
                # A round without a usable draft makes no query, and still brings the attack nearer to its end.
                share = queries * (number + 1) // depth
                spent = queries if one.done else max(counted[k], len(one.asked), share)
                advance(spent - counted[k])
                counted[k] = spent
        self._count(searches)
        self._check(searches)
        return searches

    def _check(self, searches: Sequence[Search]) -> None:
        """Raise the last error of an endpoint that never answered. An attack with it would be none."""
        every = [one for search in searches for one in search.attempts]
        gave = {
            "attacker": any(one["prompt"] for one in every),
            "target": any(one["answer"] is not None for one in every),
            "judge": any(one["score"] is not None for one in every),
        }
        for who, patience in self._patience.items():
            if patience.last and not gave[who]:
                raise patience.last

    def _round(self, searches: Sequence[Search]) -> None:
        """Improve all drafts of these attacks once, and ask the target."""
        settings = self.settings
        new: list[tuple[Search, dict[str, Any]]] = []
        for search in searches:
            room = settings.queries - len(search.asked)
            wanted = [leaf for leaf in search.leaves for _ in range(settings.branches)][:room]
            new += [(search, {"stream": stream, "parent": parent}) for stream, parent in wanted]
        first = {id(search): len(search.attempts) for search in searches}
        for k in range(settings.tries):
            # A schema may trap a model in white space, so the last of several replies is free.
            new = self._write(new, last=k + 1 == settings.tries, free=0 < k == settings.tries - 1)
        drafts = [
            (search, one)
            for search in searches
            for one in search.attempts[first[id(search)] :]
            if one["problem"] == NOT_ASKED
        ]
        if settings.prunes and drafts:
            self._prune(drafts)
        drafts = [(search, one) for search, one in drafts if one["problem"] == NOT_ASKED]
        self._ask_target(drafts)
        for search in searches:
            self._grow(search, first[id(search)])

    def _write(
        self, new: Sequence[tuple[Search, dict[str, Any]]], last: bool, free: bool
    ) -> list[tuple[Search, dict[str, Any]]]:
        """Ask the attacker for drafts, in any form if it is `free`. Returns those that it has to write again."""
        messages = []
        numbers = {id(search): len(search.attempts) for search, _ in new}
        for search, one in new:
            numbers[id(search)] += 1
            messages.append(self._message(search, one, numbers[id(search)]))
        if self.chat:
            self.chat.response_format = None if free else SCHEMA
        responses = self._responses("attacker", self.attacker, messages, self.attacker_template, self.replying)
        if self.chat:
            self.chat.response_format = None
        again = []
        for (search, one), (_, response) in zip(new, responses, strict=True):
            draft = read_draft(None if response.text is None else self.begun + response.text)
            if response.reason == TOO_LONG:
                search.level += 1
            row = {**one, **_row(draft), "reply": "" if draft.prompt else _kept(response)}
            if draft.prompt and any(draft.prompt == other["prompt"] for other in search.attempts):
                row["problem"] = REPEATED
            search.attempts.append(row)
            if row["problem"] != NOT_ASKED and not last:
                again.append((search, one))
        return again

    def _message(self, search: Search, one: Mapping[str, Any], number: int) -> Item:
        """Return the message to the attacker. It is as long as fits into the context of a local model."""
        item, earlier = search.item, search.path(one["parent"], self.settings.shown)
        target = next((beginning_of(text) for text in item.harmful if text.strip()), "")
        shortest = len(earlier)
        for level in range(min(search.level, shortest), shortest + 1):
            text = instruction(item.request, target, earlier, number, one["stream"], level)
            message = Item(item.id, text, answer_prefix=self.begun)
            if self.attacker.tokenizer is None:
                break
            (ids,) = encode_prompts(self.attacker.tokenizer, [self.attacker_template.render(message)])
            if not too_long(len(ids), self.replying, self.attacker.context_length):
                break
        return message

    def _prune(self, drafts: Sequence[tuple[Search, dict[str, Any]]]) -> None:
        """Mark the drafts of which the attacker says that they miss the request."""
        questions = [Item(s.item.id, topic_question(s.item.request, one["prompt"])) for s, one in drafts]
        decoding = Decoding(max_new_tokens=_TOPIC_TOKENS, stop=self.replying.stop, batch_size=self.replying.batch_size)
        responses = self._responses("attacker", self.attacker, questions, self.attacker_template, decoding)
        for (_, one), (_, response) in zip(drafts, responses, strict=True):
            if is_off_topic(response.text):
                one["problem"] = OFF_TOPIC

    def _ask_target(self, drafts: Sequence[tuple[Search, dict[str, Any]]]) -> None:
        """Ask the target, and score its answers."""
        items = [attacked_item(search.item, one["prompt"]) for search, one in drafts]
        responses = self._responses("target", self.target, items, self.template, self.decoding)
        numbers = {id(search): len(search.asked) for search, _ in drafts}
        scored = []
        for (search, one), (text, response) in zip(drafts, responses, strict=True):
            numbers[id(search)] += 1
            one |= {"query": numbers[id(search)], "problem": "", "input": text, "response": response.text}
            one |= {"reason": response.reason, "n_tokens": response.n_tokens}
            if response.text is not None:
                one["answer"] = split_reasoning(text, response.text)[1] if self.strip else response.text
                scored.append((one, Exchange(search.item.request, one["answer"])))
        exchanges = [exchange for _, exchange in scored]
        found = self._patience["judge"].ask(len(exchanges), lambda: self.score(exchanges)) if exchanges else []
        for (one, _), score in zip(scored, found or [None] * len(scored), strict=True):
            one["score"] = score
        if found:
            self._patience["judge"].failures = 0

    def _grow(self, search: Search, first: int) -> None:
        """Choose the drafts that the next round continues, and end the attack if it succeeded or may ask no more."""
        index = {id(one): k for k, one in enumerate(search.attempts)}
        leaves: list[tuple[int, int | None]] = []
        for stream, parent in search.leaves:
            made = [
                one
                for one in search.attempts[first:]
                if one["query"] is not None and (one["stream"], one["parent"]) == (stream, parent)
            ]
            leaves += [(stream, index[id(one)]) for one in made] or [(stream, parent)]
        if len(leaves) > self.settings.kept:
            ranked = sorted(leaves, key=lambda leaf: _rank_of(search, leaf[1]), reverse=True)
            leaves = ranked[: self.settings.kept]
        search.leaves = leaves
        best = best_of(search.asked)
        succeeded = best is not None and best["score"] is not None and best["score"] >= self.threshold
        search.done = succeeded or len(search.asked) >= self.settings.queries

    def _responses(
        self, who: str, model: Backend, items: Sequence[Item], template: Template, decoding: Decoding
    ) -> list[tuple[str, Response]]:
        """Ask a model. Requests that fail have no response."""
        if not items:
            return []
        patience = self._patience[who]
        found = patience.ask(len(items), lambda: model.answer(items, template, decoding))
        if found is None:
            return [("", Response(None, 0, f"{UNANSWERED} all attempts: {patience.last}"))] * len(items)
        patience.count(found[1])
        return list(zip(*found, strict=True))

    def _count(self, searches: Iterable[Search]) -> None:
        for search in searches:
            for one in search.attempts:
                self.counts["replies"] += 1
                self.counts["queries"] += one["query"] is not None
                self.counts[one["problem"] or "asked"] += 1
                self.counts["without an answer"] += one["query"] is not None and one["answer"] is None
                self.counts["without a score"] += one["answer"] is not None and one["score"] is None
            self.counts["shortened"] += search.level > 0


def attacked_item(item: Item, prompt: str) -> Item:
    """Put a draft in the place of a prompt.

    Args:
        item: The prompt.
        prompt: The draft.

    Returns:
        The item with the draft as prompt, and its own prompt as the original one.
    """
    return replace(item.unattacked, prompt=prompt, original=item.request)


def _row(draft: Draft) -> dict[str, Any]:
    none = dict.fromkeys(("query", "answer", "response", "score", "reason"))
    return {**none, "prompt": draft.prompt, "improvement": draft.improvement, "problem": draft.problem or NOT_ASKED}


def _kept(response: Response) -> str:
    return (response.text if response.text is not None else response.reason or "")[:_REPLY_KEPT]


def _rank_of(search: Search, leaf: int | None) -> tuple[bool, bool, float]:
    return (False, False, -1.0) if leaf is None else rank(search.attempts[leaf])


def _state(search: Search) -> list[Any]:
    return [search.attempts, search.leaves, search.level, search.done]


def _restore(search: Search, state: Sequence[Any]) -> None:
    search.attempts, leaves, search.level, search.done = state
    search.leaves = [(stream, parent) for stream, parent in leaves]


def history_of(search: Search) -> str:
    """Write the whole attack on a request as text, for the samples: each draft, the answer to it, and its score."""
    best = best_of(search.asked)
    parts = []
    for one in search.attempts:
        if one["query"] is None:
            parts.append(f"[draft that was not asked: {one['problem']}]")
            continue
        score = "no score" if one["score"] is None else f"score {one['score']:.2f}"
        said = one["answer"] if one["answer"] is not None else f"({one['reason']})"
        mark = ", the best" if one is best else ""
        parts.append(f"[query {one['query']}, {score}{mark}]\n{one['prompt'][:_SHOWN]}\n[answer]\n{said[:_SHOWN]}")
    return "\n\n".join(parts)
