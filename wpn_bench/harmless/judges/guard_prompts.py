"""Put exchanges into a guard's prompt, as token ids.

The judged text is data. A special token that is written in it must not end its place in the prompt, so such a text is
tokenised in parts from which the token cannot be formed. A long exchange is shortened; the template never is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import Exchange
from wpn_bench.prompts.templates import own_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPT, _RESPONSE = "wpnbenchmarkprompt", "wpnbenchmarkresponse"
_MARKS = re.compile(f"({_PROMPT}|{_RESPONSE})")
# Names of the places in published prompts, which are Python format strings.
_PUBLISHED = {
    _PROMPT: ("prompt", "behavior", "forbidden_prompt", "user_prompt", "question"),
    _RESPONSE: ("response", "generation", "model_response", "answer"),
}


@dataclass(frozen=True)
class Encoded:
    """The prompt of one exchange.

    Attributes:
        ids: Its token ids.
        cut: Whether the exchange was shortened.
    """

    ids: list[int]
    cut: bool


@dataclass(frozen=True)
class GuardPrompt:
    """A guard's prompt with places for an exchange.

    Attributes:
        pieces: Its text, with the marks of the places as pieces of their own.
        special: Whether the tokenizer adds its special tokens.
        trims: Whether blanks around the texts of an exchange are removed.
    """

    pieces: tuple[str, ...]
    special: bool
    trims: bool

    @classmethod
    def of_chat(cls, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any], name: str) -> GuardPrompt:
        """Make the prompt from the chat template of a tokenizer.

        Args:
            tokenizer: The tokenizer.
            variables: Further arguments of the chat template.
            name: Name of the guard, for errors.

        Returns:
            The prompt.

        Raises:
            UserError: The tokenizer has no chat template, or it cannot be rendered, or it leaves out the response.
        """
        if own_chat_template(tokenizer) is None:
            raise UserError(
                f"the tokenizer of {name} has no chat template, by which this format is asked",
                "take the tokenizer_config.json (and chat_template.jinja) of the original model, or give ,template=FILE",
            )
        error: Exception | None = None
        for parts in (False, True):  # newer templates expect a list of parts as content
            try:
                text, loose = (_chat(tokenizer, variables, parts, blank) for blank in ("", " "))
            except Exception as e:  # Jinja, and whatever a template does to its arguments
                error = error or e
                continue
            if _RESPONSE in text:
                return cls._of(text, f" {_RESPONSE} " not in loose, False)
        reason = f" ({type(error).__name__}: {' '.join(str(error).split())[:160]})" if error else ""
        raise UserError(
            f"the chat template of {name} does not show the response to the guard{reason}",
            "name another ,format=, or give ,template=FILE",
        )

    @classmethod
    def of_template(cls, source: str, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> GuardPrompt:
        """Make the prompt from a Jinja template with `{{ prompt }}` and `{{ response }}`.

        A published prompt in Python's format syntax, with places such as `{behavior}` and `{generation}`, will do, too.

        Args:
            source: The template.
            tokenizer: The tokenizer. The template may use `bos_token`, `eos_token` and its other special tokens.
            variables: Further variables of the template.

        Returns:
            The prompt.

        Raises:
            UserError: The template cannot be rendered, or leaves out the response.
        """
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        tokens = {
            name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)
        }
        if "{{" not in source:
            for mark, names in _PUBLISHED.items():
                source = re.sub(r"\{(?:" + "|".join(names) + r")\}", mark, source)
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        try:
            text = environment.from_string(source).render(**tokens, **variables, prompt=_PROMPT, response=_RESPONSE)
        except (jinja2.TemplateError, TypeError, ValueError) as e:
            raise UserError(
                f"the guard's template cannot be rendered ({' '.join(str(e).split())[:160]})",
                "it is Jinja with {{ prompt }} and {{ response }}",
            ) from e
        if _RESPONSE not in text:
            raise UserError("the guard's template does not show the response", "write {{ response }} where it belongs")
        own = [token for token in {*tokens.values(), *map(str, tokenizer.added_tokens_decoder.values())} if token]
        return cls._of(text, False, not text.startswith(tuple(own)))

    @classmethod
    def _of(cls, text: str, trims: bool, special: bool) -> GuardPrompt:
        return cls(tuple(_MARKS.split(text)), special, trims)

    @property
    def tail(self) -> str:
        """The text before the guard's answer."""
        return self.pieces[-1]

    def filled(self, prompt: str, response: str) -> list[tuple[str, bool]]:
        """Put an exchange into the prompt.

        Args:
            prompt: The prompt of the exchange.
            response: Its response.

        Returns:
            The parts of the text, and whether each is text of the exchange.
        """
        texts = {_PROMPT: prompt, _RESPONSE: response}
        return [
            ((texts[piece].strip() if self.trims else texts[piece]), True) if piece in texts else (piece, False)
            for piece in self.pieces
        ]


def _chat(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any], parts: bool, blank: str) -> str:
    def content(text: str) -> Any:
        text = f"{blank}{text}{blank}"
        return [{"type": "text", "text": text}] if parts else text

    messages = [{"role": "user", "content": content(_PROMPT)}, {"role": "assistant", "content": content(_RESPONSE)}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables))


class Encoder:
    """Tokenises a guard's prompts for exchanges.

    Args:
        tokenizer: The tokenizer, from `models.load_tokenizer`.
        prompt: The guard's prompt.
        room: Maximum number of tokens of a prompt.
        response_tokens: Maximum number of tokens of a response; None: no limit.

    Raises:
        UserError: The prompt without an exchange leaves too little room for one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: GuardPrompt, room: int, response_tokens: int | None = None
    ) -> None:
        self._tokenizer, self._prompt, self._room, self._most = tokenizer, prompt, room, response_tokens
        fixed = "".join(piece for piece in prompt.pieces if not _MARKS.fullmatch(piece))
        # Control tokens: all special ones, and added tokens of the template that are not marked as special.
        added = tokenizer.added_tokens_decoder.values()
        control = {str(t) for t in added if t.special or (str(t).strip() and str(t) in fixed)}
        control |= set(tokenizer.all_special_tokens)
        tokens = sorted((t for t in control if len(t) > 1), key=len, reverse=True)
        self._heads = {token[:2] for token in tokens}
        self._control = re.compile("|".join(map(re.escape, tokens))) if tokens else None
        empty = len(self.ids("", ""))
        self._free = room - empty
        if self._free < 8:
            raise UserError(
                f"the guard's prompt takes {empty} tokens without an exchange, and there is room for {max(room, 0)}",
                "give a shorter policy or template, or a guard with a longer context",
            )

    def encode(self, exchanges: Sequence[Exchange]) -> list[Encoded]:
        """Tokenise the guard's prompts.

        A response that is too long loses its end. So does a prompt, beyond half of the free room.

        Args:
            exchanges: The exchanges.

        Returns:
            The prompt of each exchange, in order.
        """
        return [self._fitted(exchange.prompt, exchange.response) for exchange in exchanges]

    def ids(self, prompt: str, response: str) -> list[int]:
        """Tokenise the guard's prompt for one exchange. Nothing is cut, however long it is.

        Args:
            prompt: The prompt of the exchange.
            response: Its response.

        Returns:
            The token ids.
        """
        found: list[int] = []
        for k, text in enumerate(self._chunks(self._prompt.filled(prompt, response))):
            ids = self._tokenizer(text, add_special_tokens=self._prompt.special and k == 0)["input_ids"]
            if k == 0 and len(ids) > 1 and ids[0] == ids[1] == self._tokenizer.bos_token_id:
                ids = ids[1:]  # the text begins with the token that the tokenizer adds
            found += ids
        return found

    def _fitted(self, prompt: str, response: str) -> Encoded:
        given = (prompt, response)
        if self._most is not None:
            response = self._first_tokens(response, self._most)
        ids = self.ids(prompt, response) if len(prompt) + len(response) <= self._characters else []
        if not ids or len(ids) > self._room:
            prompt = self._first_tokens(prompt, max(self._free // 2, self._free - self._n_tokens(response)))
            most = self._free - self._n_tokens(prompt)
            while True:
                response = self._first_tokens(response, most)
                ids = self.ids(prompt, response)
                over = len(ids) - self._room
                if over <= 0:
                    break
                # Control tokens of the exchange are more tokens than in the texts alone.
                if not most:
                    prompt = prompt[: len(prompt) - over]
                most = max(most - over, 0)
        return Encoded(ids, (prompt, response) != given)

    @property
    def _characters(self) -> int:
        """More characters than that are not tokenised, because they hardly ever fit."""
        return 64 * self._room

    def _n_tokens(self, text: str) -> int:
        return len(self._tokenizer(text[: self._characters], add_special_tokens=False)["input_ids"])

    def _first_tokens(self, text: str, n: int) -> str:
        """Return the beginning of a text, up to its first `n` tokens."""
        text = text[: self._characters]
        if not self._tokenizer.is_fast:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            return text if len(ids) <= n else str(self._tokenizer.decode(ids[:n]))
        spans = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(spans) <= n:
            return text
        return text[: spans[n - 1][1]] if n else ""

    def _chunks(self, parts: Sequence[tuple[str, bool]]) -> list[str]:
        """Return the text in chunks that are tokenised one by one.

        It is one chunk unless a control token is written in the exchange. Then the text is divided after the token's
        first character, so that only the template's own control tokens remain.
        """
        text = "".join(part for part, _ in parts)
        given = [part for part, is_given in parts if is_given]
        if self._control is None or not any(head in part for part in given for head in self._heads):
            return [text]
        ours, at = [], 0
        for part, is_given in parts:
            if not is_given:
                ours.append((at, at + len(part)))
            at += len(part)
        cuts, first = [0], 0
        while found := self._control.search(text, first):
            first = found.start() + 1
            if not any(begin <= found.start() and found.end() <= end for begin, end in ours):
                cuts.append(first)
        return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True) if a < b]
