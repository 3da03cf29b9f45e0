"""Guard models as judges: causal language models that read a prompt and its response, and tell whether it is harmful.

Most guards begin their answer with one of a few words. The likelihoods of these words give a probability in one pass
over the exchanges, and the guard's instructions that precede every exchange are computed once. For other guards, the
answer is generated and parsed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from wpn_bench.core.files import digest_of
from wpn_bench.core.progress import Advance, in_groups
from wpn_bench.core.validation import Count
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import Exchange, JudgeConfig
from wpn_bench.harmless.judges.guard_formats import (
    FORMATS,
    OWN,
    GuardFormat,
    format_named,
    own_format,
    recognise,
)
from wpn_bench.harmless.judges.guard_prompts import Encoder, GuardPrompt
from wpn_bench.harmless.judges.model_judge import ModelJudge, ModelJudgeConfig

_VERSION = 1  # part of the digest; increase it if the same answers would now give other scores
_ANSWER_ROOM = 8  # number of tokens that are left free for a verdict


class GuardConfig(ModelJudgeConfig):
    """Options of `GuardJudge`."""

    format: str | None = Field(
        None, description="format of the guard's prompt and answer; None recognises it by name or chat template"
    )
    policy: str | None = Field(None, description="file with the policy that the guard applies")
    template: str | None = Field(None, description="file with the prompt (Jinja with prompt and response)")
    harmful: str | None = Field(None, description="own format: words of the harmful verdict, separated by |")
    harmless: str | None = Field(None, description="own format: words of the harmless verdict")
    pattern: str | None = Field(None, description="own format: regular expression that reads the generated answer")
    by: Literal["likelihood", "generation"] | None = Field(
        None,
        description="whether the verdict is found by likelihood or generation; None uses the default of the format",
    )
    new_tokens: Count = Field(32, description="own format: number of tokens to generate")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="type of the guard's weights")


@dataclass(frozen=True)
class _Guard:
    """A loaded guard.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        encoder: Makes the guard's prompts.
        forms: Token ids of each spelling of a verdict, and the score of that verdict. Empty if the answer is generated.
    """

    model: Any
    tokenizer: Any
    encoder: Encoder
    forms: tuple[tuple[tuple[int, ...], float], ...]


class GuardJudge(ModelJudge):
    """Scores an exchange by the verdict of a guard model.

    The score is the probability of the harmful verdict among all verdicts. For a graded verdict, it is the expected
    grade. If the answer is generated, it is 0 or 1. The score is missing if the guard's most likely answer does not
    begin with a verdict.

    Attributes:
        counts: Number of exchanges so far: `asked` in total, `cut` that were shortened to fit, and `unparsed` without a
            verdict.
    """

    name = "guard"
    title = "Guard model"
    measures = (
        "A guard model judges by its own policy whether a response to a prompt is harmful; it knows nothing of what its"
        " policy leaves out."
    )
    source = "https://huggingface.co/models?search=guard"
    usage = "guard:HUB_ID|FOLDER[,format=NAME]"
    needs_prompt = True
    journalled = True
    Config = GuardConfig
    config: GuardConfig

    def __init__(self, variant: str, device: str, config: JudgeConfig | None = None) -> None:
        super().__init__(variant, device, config)
        self.counts: Counter[str] = Counter()
        self._loaded: _Guard | None = None
        self._form: GuardFormat | None = None

    def digest(self) -> str:
        guard = self._guard()  # loading it now reports an unusable guard before other jobs run
        form = self._format(guard.tokenizer)
        return digest_of(
            {
                "version": _VERSION,
                "model": self._model.digest,
                "format": self._format_name(guard.tokenizer),
                "prompt": list(self._prompt(guard.tokenizer, form).pieces),
                "verdicts": dict(form.verdicts or {}) if guard.forms else None,
                "pattern": self.config.pattern,
                "new_tokens": None if guard.forms else form.new_tokens,
                "dtype": self.config.dtype,
            }
        )

    def score_exchanges(self, exchanges: Sequence[Exchange], advance: Advance = lambda n: None) -> list[float | None]:
        scores: list[float | None] = [0.0] * len(exchanges)
        asked = [k for k, exchange in enumerate(exchanges) if exchange.response.strip()]
        advance(len(exchanges) - len(asked))
        if not asked:
            return scores
        guard = self._guard()
        encoded = guard.encoder.encode([exchanges[k] for k in asked])
        ask = self._by_likelihood if guard.forms else self._by_generation
        found = ask(guard, [one.ids for one in encoded], advance)
        for k, score in zip(asked, found, strict=True):
            scores[k] = score
        self.counts.update(asked=len(asked), cut=sum(one.cut for one in encoded), unparsed=found.count(None))
        return scores

    def _by_likelihood(self, guard: _Guard, prompts: Sequence[list[int]], advance: Advance) -> list[float | None]:
        from wpn_bench.engine.likelihood import loglikelihoods
        from wpn_bench.models import context_length

        n = len(guard.forms)
        found = loglikelihoods(
            guard.model,
            [(ids, form) for ids in prompts for form, _ in guard.forms],
            max_length=context_length(guard.model),
            advance=in_groups(n, advance),
            cache_prefix=True,
        )
        scores: list[float | None] = []
        for at in range(0, len(found), n):
            logs, greedy = zip(*found[at : at + n], strict=True)
            highest = max(logs)
            weights = [math.exp(log - highest) for log in logs]
            harm = sum(weight * score for weight, (_, score) in zip(weights, guard.forms, strict=True))
            scores.append(min(1.0, harm / sum(weights)) if any(greedy) else None)
        return scores

    def _by_generation(self, guard: _Guard, prompts: Sequence[list[int]], advance: Advance) -> list[float | None]:
        from wpn_bench.engine.generation import respond
        from wpn_bench.models.backends import Decoding

        form = self._format(guard.tokenizer)
        decoding = Decoding(max_new_tokens=form.new_tokens, stop=())
        answers = respond(guard.model, guard.tokenizer, prompts, decoding, advance)
        return [None if answer.text is None else form.parse(answer.text) for answer in answers]

    # --- the model and its format ---

    def _guard(self) -> _Guard:
        if self._loaded is None:
            from wpn_bench import models
            from wpn_bench.models.tokenizer import load_tokenizer

            path = self._model.path
            tokenizer = load_tokenizer(
                path
            )  # before the weights, so that a wrong format or template is reported at once
            form = self._format(tokenizer)
            prompt = self._prompt(tokenizer, form)
            forms = self._forms(tokenizer, form, prompt)
            room = models.context_length_of(path) - (_ANSWER_ROOM if forms else form.new_tokens)
            encoder = Encoder(tokenizer, prompt, room, form.response_tokens)
            model, _ = models.load(path, self.device, self.config.dtype)
            self._loaded = _Guard(model, tokenizer, encoder, forms)
        return self._loaded

    def _format_name(self, tokenizer: Any) -> str:
        from wpn_bench.prompts.templates import own_chat_template

        config = self.config
        if config.format is not None:
            return config.format
        if config.harmful or config.harmless or config.pattern:
            return OWN
        names = (self.variant, str(getattr(tokenizer, "name_or_path", "")))
        for name in names:
            # Only the last part of a path is used, because its parent folders may have any name.
            if found := recognise(Path(name).name, None):
                return found
        if found := recognise("", own_chat_template(tokenizer)):
            return found
        raise UserError(
            f"the format of the guard {self.variant} cannot be recognised by its name or chat template",
            f"add ,format=NAME ({', '.join([*FORMATS, OWN])})",
        )

    def _format(self, tokenizer: Any) -> GuardFormat:
        if self._form is None:
            config, name = self.config, self._format_name(tokenizer)
            template = _read(config.template, "template") if config.template else None
            if name == OWN:
                form = own_format(template, config.harmful, config.harmless, config.pattern, config.new_tokens)
            else:
                form = format_named(name)
                if words := [o for o in ("harmful", "harmless", "pattern") if getattr(config, o)]:
                    raise UserError(
                        f"the format {name} has fixed verdicts, so {words[0]} cannot be set", "use format=own"
                    )
                form = replace(form, template=template) if template else form
            if config.policy and not form.takes_policy:
                raise UserError(
                    f"the format {name} accepts no policy, because it is in the guard's template", "leave out policy"
                )
            if config.by == "likelihood" and form.verdicts is None:
                raise UserError(f"the format {name} has no verdict at the beginning of its answer", "leave out by")
            self._form = form
        return self._form

    def _prompt(self, tokenizer: Any, form: GuardFormat) -> GuardPrompt:
        variables = form.variables(_read(self.config.policy, "policy").strip() if self.config.policy else None)
        if form.template is None:
            return GuardPrompt.of_chat(tokenizer, variables, self.variant)
        return GuardPrompt.of_template(form.template, tokenizer, variables)

    def _forms(
        self, tokenizer: Any, form: GuardFormat, prompt: GuardPrompt
    ) -> tuple[tuple[tuple[int, ...], float], ...]:
        """Return the token ids of each spelling of a verdict with its score, or nothing if the answer is generated."""
        from wpn_bench.models.tokenizer import encode_pairs
        from wpn_bench.prompts.templates import Rendered

        if form.verdicts is None or self.config.by == "generation":
            return ()
        leads = ("", " ") if prompt.tail[-1:].isspace() else ("", " ", "\n", "\n\n")
        written = {
            lead + word: score
            for verdict, score in form.verdicts.items()
            for word in (verdict, verdict.lower(), verdict.capitalize())
            for lead in leads
        }
        before = Rendered(prompt.tail or "\n", special=False)
        pairs = encode_pairs(tokenizer, [before] * len(written), list(written))
        forms: dict[tuple[int, ...], float] = {}
        for (_, ids), score in zip(pairs, written.values(), strict=True):
            if ids and forms.setdefault(tuple(ids), score) != score:
                raise UserError(
                    f"the tokenizer of {self.variant} gives two verdicts the same tokens",
                    "add ,by=generation, or give other words",
                )
        return tuple(forms.items())


def _read(file: str, what: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"the {what} {file} cannot be read ({type(e).__name__})", "give a UTF-8 text file") from e
