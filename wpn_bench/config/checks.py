"""Checks of single settings of a run. Each takes the value, and returns it as it is stored, or raises `ValueError`."""

from __future__ import annotations

import re
from typing import Any

from wpn_bench.harmless.judges import spec as judge_spec
from wpn_bench.prompts import FormatTemplate
from wpn_bench.prompts.columns import FIELDS
from wpn_bench.prompts.templates import is_file

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MAX_SEEDS = 100  # largest number of seeds that can be given as a single number


def split_candidate(entry: str) -> tuple[str, str]:
    """Split `NAME=SOURCE` into the name and the source. Raises `ValueError` if the text does not have this form."""
    name, equals, source = entry.partition("=")
    if not equals or not source.strip() or not _LABEL.fullmatch(name):
        raise ValueError(f"the candidate {entry!r} is not NAME=SOURCE, such as mine=./folder (a name has no spaces)")
    return name, source.strip()


def one_or_several(value: Any) -> Any:
    """Replace a single text by a tuple with it, and None by an empty tuple."""
    return () if value is None else (value,) if isinstance(value, str) else value


def judges_as_text(value: Any) -> tuple[str, ...]:
    """Return the specifications of judges in their canonical form."""
    if not isinstance(value, list | tuple):
        raise ValueError("give a list of judges")
    return tuple(judge_spec.canonical(one) for one in value)


def has_prompt(value: str) -> str:
    """Check that a prompt template has a place for the prompt."""
    if value not in ("auto", "chat", "plain") and not is_file(value):
        FormatTemplate(value)
    return value


def known_fields(value: dict[str, str]) -> dict[str, str]:
    """Check that only fields that exist are mapped to columns."""
    if strange := sorted(set(value) - set(FIELDS)):
        raise ValueError(f"{strange[0]!r} is not one of {', '.join(FIELDS)}")
    return value


def labels_and_variants(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Check the labels of methods, and add the options of variants that methods define.

    The options of a variant cannot be changed, because its name stands for them.
    """
    from wpn_bench.unlearn.methods import METHODS, variant_of

    filled = {}
    for name, options in value.items():
        if ":" in name and not _LABEL.fullmatch(name.partition(":")[2]):
            raise ValueError(f"the label of {name!r} contains other characters than letters, digits, '.', '_' and '-'")
        # An unknown method is reported by `check_names`.
        own = variant_of(name).options if ":" in name and name.partition(":")[0] in METHODS else {}
        if changed := [key for key in own if options.get(key, own[key]) != own[key]]:
            raise ValueError(
                f"{name!r} stands for {changed[0]}={own[changed[0]]}: give the variant with another {changed[0]} another "
                "name"
            )
        filled[name] = {**own, **options}
    return filled


def task_and_metric(value: tuple[str, ...]) -> tuple[str, ...]:
    """Check that each entry has the form TASK=METRIC or TASK=METRIC,FILTER."""
    for one in value:
        task, equals, metric = one.partition("=")
        if not (task.strip() and equals and metric.strip()):
            raise ValueError(f"{one!r} is not TASK=METRIC or TASK=METRIC,FILTER")
    return value


def named_candidates(value: tuple[str, ...]) -> tuple[str, ...]:
    """Check that each candidate has a name of its own."""
    names = [split_candidate(entry)[0] for entry in value]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two candidates have the name {min(twice)!r}")
    return value


def number_of_seeds(value: Any) -> Any:
    """Replace a single whole number K by the seeds 0 to K - 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if not 1 <= value <= MAX_SEEDS:
        raise ValueError(f"give the number of seeds (1 to {MAX_SEEDS}), or a list of seeds")
    return tuple(range(value))


def some_seed(value: tuple[int, ...]) -> tuple[int, ...]:
    """Check that there is a seed, and each only once."""
    if not value or len(set(value)) != len(value):
        raise ValueError("give at least one seed, each once")
    if not all(0 <= seed < 2**32 for seed in value):
        raise ValueError("a seed lies between 0 and 2**32 - 1")
    return value
