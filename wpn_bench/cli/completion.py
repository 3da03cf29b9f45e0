"""What a shell completes after an option: names of methods, presets, attacks, judges, benchmarks, prompt sets.

Each press of the tab key is a process, so nothing heavy is imported: names come from registries and file names. A
value that is a comma-separated list is completed in its last part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


def methods() -> Iterable[str]:
    """Names of the methods."""
    from wpn_bench.unlearn.methods import METHODS

    return METHODS


def attacks() -> Iterable[str]:
    """Names of the attacks of all kinds."""
    from wpn_bench.attacks import all_names

    return all_names()


def judges() -> Iterable[str]:
    """Names of the judges."""
    from wpn_bench.harmless.judges.spec import JUDGES

    return JUDGES


def benchmarks() -> Iterable[str]:
    """Names of the benchmark tasks and groups."""
    import re

    from wpn_bench.core.paths import tasks_dir

    # `read_folders` would also read what the tasks are made of, which takes a second.
    files = (file for folder in ("benchmarks", "lab") for file in sorted((tasks_dir() / folder).glob("*.yaml")))
    named = (re.search(r"^(?:task|group): *(\w+)$", file.read_text(encoding="utf-8"), re.M) for file in files)
    return [found[1] for found in named if found]


def prompts() -> Iterable[str]:
    """Names of the declared prompt and text sets."""
    from wpn_bench.prompts import declared

    return declared()


def presets() -> Iterable[str]:
    """Names of the presets."""
    from wpn_bench.config import presets as known

    return known()


def topics() -> Iterable[str]:
    """What `wpn-bench list` can show: the kinds of parts, and each method."""
    from wpn_bench.cli.catalogue import KINDS

    return [*KINDS, *methods()]


def export_formats() -> Iterable[str]:
    """The formats of `wpn-bench export`."""
    return ("lm-eval", "mlflow", "wandb")


def one_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes a value that is one of the names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def several_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes the last name of a comma-separated list, with those that the list has not yet."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        taken = before.split(",")
        return [before + comma + name for name in names() if name.startswith(last) and name not in taken]

    return complete
