"""Candidates: finished models that are measured and compared with the base, without training them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wpn_bench import models
from wpn_bench.config import RunConfig, split_candidate
from wpn_bench.core.files import Signature
from wpn_bench.core.paths import display_path
from wpn_bench.engine.support import settings_note
from wpn_bench.errors import UserError
from wpn_bench.jobs.store import default_store
from wpn_bench.models import ModelRef, gguf
from wpn_bench.models.backends.endpoint import PREFIX, parse_source
from wpn_bench.models.backends.openai import endpoint_folder
from wpn_bench.models.files import check_causal, check_usable
from wpn_bench.prompts import Template
from wpn_bench.prompts.templates import choose_template, system_message

_SENT_AS_MESSAGES = "messages, which the server puts into its own chat template"


@dataclass(frozen=True)
class Candidate:
    """A model that is measured without training it.

    Attributes:
        name: Name in results.
        source: What the user typed.
        path: Folder of its files, or of the settings of an endpoint.
        digest: Identifies the model in jobs.
        revision: Commit of a hub model; None for other models.
        template: Renders its prompts.
        made: Description of its files, and of how they were converted.
        asked: Description of how its prompts are rendered, as shown in results.
        same_tokens: Whether it has the tokenizer of the base. If not, losses per token cannot be compared.
        same_as_base: Whether it has the weights of the base and is measured in the same way, so that its answers are
            the same.
        remote: Whether it is reached at an endpoint, which only gives responses.
        seen: Names, sizes and modification times of its files when the digest was computed.
    """

    name: str
    source: str
    path: Path
    digest: str
    revision: str | None
    template: Template
    made: str = ""
    asked: str = ""
    same_tokens: bool = True
    same_as_base: bool = False
    remote: bool = False
    seen: Signature | None = None

    def json(self) -> dict[str, Any]:
        """Describe the candidate, for results and manifest."""
        kind = "endpoint" if self.remote else "model"
        return {
            "source": self.source,
            "kind": kind,
            "digest": self.digest,
            "revision": self.revision,
            "made": self.made,
            "template": self.asked or self.template.label,
            "same_tokenizer": self.same_tokens,
            "same_as_base": self.same_as_base,
        }


def find_candidates(config: RunConfig, base: ModelRef, template: Template, notes: list[str]) -> tuple[Candidate, ...]:
    """Find the candidates of a run. Models on the hub are downloaded, and adapters are merged into their base models.

    Args:
        config: Settings of the run.
        base: The base model.
        template: Template of the base model.
        notes: Gets a line for each way in which a candidate is not measured like the base.

    Returns:
        The candidates, in the order of the settings.

    Raises:
        UserError: A candidate cannot be found, is not a causal language model, or has too short a context.
    """
    found = []
    for entry in config.candidates:
        name, source = split_candidate(entry)
        if source == models.LAB_ORACLE and not base.is_lab:
            notes.append(
                f"{name} was left out: it is the oracle of the lab's model, and not of {display_path(base.asked)}"
            )
            continue
        if source.startswith(PREFIX):
            endpoint = parse_source(source)
            if config.system and endpoint.api == "chat" and not endpoint.system:
                endpoint = endpoint.model_copy(update={"system": system_message(config.system)})
            folder = default_store() / "endpoints" / endpoint.digest()
            known = endpoint_folder(endpoint, folder)
            asked = template.label
            if known.api == "chat":
                asked = _SENT_AS_MESSAGES + (f", system message {known.system!r}" if known.system else "")
            found.append(
                Candidate(
                    name,
                    source,
                    folder,
                    known.digest(),
                    None,
                    template,
                    "endpoint",
                    asked,
                    same_tokens=False,
                    remote=True,
                )
            )
            notes.append(
                f"{name} is an endpoint, which only gives responses, so its benchmarks, held-out text and attacks on weights "
                "are not available"
            )
            continue
        try:
            found.append(_local(name, source, config, base, template, notes))
        except UserError as e:
            raise UserError(f"candidate {name}: {e}", e.hint) from e
    return tuple(found)


def _local(
    name: str, source: str, config: RunConfig, base: ModelRef, template: Template, notes: list[str]
) -> Candidate:
    asked, revision = models.split_revision(source)
    ref = models.resolve(asked, revision, base)
    onto = models.base_of_adapter(asked, revision, base)
    if onto is base:
        notes.append(
            f"{name} is an adapter that names no base model on this machine: it was merged into the base of the run"
        )
    if onto is not None and onto.digest != base.digest:
        notes.append(
            f"{name} is an adapter of {onto.asked}, whose files differ from those of the base; this may be the cause of a "
            "difference from the base"
        )
    check_causal(ref.path)
    check_usable(ref.path, trained=False)
    notes += settings_note(name, ref.path)
    context = models.context_length_of(ref.path)
    if config.decoding.max_new_tokens >= context:
        raise UserError(
            f"it has a context of {context} tokens, but the response alone may have {config.decoding.max_new_tokens}",
            f"use --max-new-tokens below {context}",
        )
    tokenizer, of_base = models.load_tokenizer(ref.path), models.load_tokenizer(base.path)
    own = choose_template(config.template, tokenizer, config.system)
    if own != template:
        kinds = ["a chat template" if one.is_chat else "plain text" for one in (own, template)]
        differs = f"{kinds[0]}, the base with {kinds[1]}" if kinds[0] != kinds[1] else "another chat template"
        notes.append(f"{name} is asked with {differs}; this may be the cause of a difference from the base")
    same_tokens = tokenizer.get_vocab() == of_base.get_vocab()
    if not same_tokens:
        notes.append(
            f"{name} has another tokenizer than the base, so losses per token cannot be compared and its held-out text is "
            "left out; answers and benchmarks are still compared item by item"
        )
    same = ref.digest == base.digest and own == template
    made = _made_from(asked, ref, onto)
    return Candidate(
        name, source, ref.path, ref.digest, ref.revision, own, made, own.label, same_tokens, same, seen=ref.seen
    )


def _made_from(asked: str, ref: ModelRef, onto: ModelRef | None) -> str:
    """Describe the files of a local candidate, and how they were converted. `onto` is the base of an adapter."""
    if onto is not None:
        return f"adapter, merged into {display_path(onto.asked) if onto.revision is None else onto.asked}"
    if asked == models.LAB_ORACLE:
        return "the lab's base model, trained without the harm; a reference and no method"
    if gguf.file_of(os.path.expanduser(asked)) is not None:
        return "GGUF file, its weights dequantised to float32"
    return "folder" if ref.revision is None else f"model of the hub, commit {ref.revision[:12]}"
