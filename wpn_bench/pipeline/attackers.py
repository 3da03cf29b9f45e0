"""Find the model that writes the prompts of adaptive attacks."""

from __future__ import annotations

from collections.abc import Iterable

from wpn_bench import models
from wpn_bench.attacks.adaptive import Adaptive
from wpn_bench.config import RunConfig
from wpn_bench.core.paths import display_path
from wpn_bench.errors import UserError
from wpn_bench.jobs.job import External
from wpn_bench.jobs.planning import Attacker
from wpn_bench.jobs.store import default_store
from wpn_bench.models.backends.endpoint import PREFIX, parse_source
from wpn_bench.models.backends.openai import endpoint_folder
from wpn_bench.models.files import check_causal, check_usable
from wpn_bench.prompts.templates import QUESTION_TEMPLATE, choose_template


def find_attacker(config: RunConfig, notes: list[str]) -> Attacker | None:
    """Find the attacker of a run. A model on the hub is downloaded, and an endpoint is asked for its models.

    Args:
        config: Settings of the run.
        notes: Gets a line for each adaptive attack, with the attacker and the number of queries.

    Returns:
        The attacker; None if the run has no adaptive attack.

    Raises:
        UserError: The attacker cannot be found or reached, is not a causal language model, or has too short a context.
    """
    source = config.attacker_needed()
    if source is None:
        return None
    chosen = config.adaptive_attacks
    try:
        found = _endpoint(source) if source.startswith(PREFIX) else _local(source, chosen.values())
    except UserError as e:
        raise UserError(f"the attacker: {e}", e.hint) from e
    notes += [
        f"{name}: {found.name} writes the prompts, with at most {one.queries} queries of each model for each of the first"
        f" {one.limit} prompts"
        for name, one in chosen.items()
    ]
    return found


def _endpoint(source: str) -> Attacker:
    endpoint = parse_source(source)
    known = endpoint_folder(endpoint, default_store() / "endpoints" / endpoint.digest())
    artifact = External(default_store() / "endpoints" / endpoint.digest(), known.digest())
    return Attacker(f"{PREFIX}{known.url}#{known.model}", artifact, QUESTION_TEMPLATE)


def _local(source: str, chosen: Iterable[Adaptive]) -> Attacker:
    ref = models.resolve(*models.split_revision(source))
    check_causal(ref.path)
    check_usable(ref.path, trained=False)
    context, longest = models.context_length_of(ref.path), max(one.max_new_tokens for one in chosen)
    if longest >= context:
        raise UserError(
            f"it has a context of {context} tokens, but its reply alone may have {longest}",
            "use a model with a longer context, or a smaller max_new_tokens of the attack",
        )
    template = choose_template("auto", models.load_tokenizer(ref.path))
    name = display_path(source) if ref.revision is None else f"{source.partition('@')[0]}@{ref.revision[:12]}"
    return Attacker(name, External(ref.path, ref.digest, ref.seen), template.value)
