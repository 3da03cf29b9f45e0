"""Complete the values of options in a shell: names of methods, presets, attacks, judges, benchmarks and prompt sets.

Each press of the tab key starts a process, so no large library is imported. Names come from registries and file names.
In a comma-separated list, the last part is completed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


def methods() -> Iterable[str]:
    """Return the names of the methods and of their named variants."""
    from wpn_bench.unlearn.methods import METHODS, named_variants

    return [*METHODS, *named_variants()]


def attacks() -> Iterable[str]:
    """Return the names of the attacks of all kinds."""
    from wpn_bench.attacks import all_names

    return all_names()


def judges() -> Iterable[str]:
    """Return the names of the judges."""
    from wpn_bench.harmless.judges.spec import JUDGES

    return JUDGES


def benchmarks() -> Iterable[str]:
    """Return the names of the benchmark tasks and groups."""
    import re

    from wpn_bench.core.paths import tasks_dir

    # `read_folders` is not used, because it would also read the contents of the tasks, which takes a second.
    files = (file for folder in ("benchmarks", "lab") for file in sorted((tasks_dir() / folder).glob("*.yaml")))
    named = (re.search(r"^(?:task|group): *(\w+)$", file.read_text(encoding="utf-8"), re.M) for file in files)
    return [found[1] for found in named if found]


def prompts() -> Iterable[str]:
    """Return the names of the declared prompt and text sets."""
    from wpn_bench.prompts import declared

    return declared()


def presets() -> Iterable[str]:
    """Return the names of the presets."""
    from wpn_bench.config import presets as known

    return known()


def topics() -> Iterable[str]:
    """Return what `wpn-bench list` can show: the kinds of parts, and each method."""
    from wpn_bench.cli.catalogue import KINDS
    from wpn_bench.unlearn.methods import METHODS

    return [*KINDS, *METHODS]


def export_formats() -> Iterable[str]:
    """Return the formats of `wpn-bench export`."""
    return ("lm-eval", "mlflow", "wandb")


def one_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a function that completes a value that is one of the names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def several_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a function that completes the last name of a comma-separated list, without names already in the list."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        taken = before.split(",")
        return [before + comma + name for name in names() if name.startswith(last) and name not in taken]

    return complete
