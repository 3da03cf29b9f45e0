"""`wpn-bench list`: what there is, with one line each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from wpn_bench.errors import UserError
from wpn_bench.registry import nearest

Entry = tuple[str, str, str]  # name, what it is, where it is from


def methods() -> Iterator[Entry]:
    from wpn_bench.unlearn.methods import METHODS

    for name in METHODS:
        method = METHODS.get(name)
        yield name, method.title, method.paper


def attacks() -> Iterator[Entry]:
    from wpn_bench import attacks as parts
    from wpn_bench.attacks.base import RELEARN
    from wpn_bench.attacks.quantise import SCHEMES
    from wpn_bench.attacks.relearn import Relearning

    for name in parts.names():
        attack = parts.get_attack(name)
        yield name, attack.title, attack.description
    for name in parts.GRADIENT:
        search = parts.GRADIENT.get(name)
        yield name, search.title, search.description
    for scheme in SCHEMES.values():
        yield scheme.name, scheme.title, scheme.description
    yield RELEARN, Relearning.title, Relearning.description


def judges() -> Iterator[Entry]:
    from wpn_bench.harmless.judges import JUDGES

    for name in JUDGES:
        judge = JUDGES.get(name)
        yield judge.usage or name, judge.measures, judge.source


def benchmarks() -> Iterator[Entry]:
    from wpn_bench.benchmarks.definitions import read_folders, task_folders
    from wpn_bench.benchmarks.run import describe

    folders = task_folders(("benchmarks", "lab"))
    for name, definition in read_folders(folders).items():
        if not definition.is_group:
            info = describe(name, folders, resolve=False)
            yield name, info.title, info.dataset_path or "embedded lab"


def prompts() -> Iterator[Entry]:
    from wpn_bench.prompts import declared, read_spec

    for name, file in declared().items():
        spec = read_spec(file)
        what = [spec.title, f"Role: {spec.role}, kind: {spec.kind}", f"Warning: {spec.warning}" if spec.warning else ""]
        paper = spec.citation.replace("https://arxiv.org/abs/", "arXiv ")
        where = [spec.source.hub or spec.source.file or "embedded lab", spec.licence, paper]
        yield name, "\n".join(filter(None, what)), "\n".join(filter(None, where))


def presets() -> Iterator[Entry]:
    from wpn_bench.config import presets as known
    from wpn_bench.config import read_preset

    for name in known():
        raw = read_preset(name)
        yield name, str(raw.get("title", "")), str(raw.get("model", ""))


KINDS: dict[str, Callable[[], Iterator[Entry]]] = {
    "methods": methods,
    "attacks": attacks,
    "judges": judges,
    "benchmarks": benchmarks,
    "prompts": prompts,
    "presets": presets,
}


def show(what: str | None) -> None:
    """Print one kind, all kinds, or one method with its formula and options."""
    from rich.console import Console
    from rich.table import Table

    from wpn_bench.unlearn.methods import METHODS

    console = Console()
    if what in METHODS:
        method = METHODS.get(str(what))
        console.print(
            f"[bold]{what}[/bold]: {method.title}\n{method.paper}\n\n{inspect.getdoc(method)}", highlight=False
        )
        for name, field in method.Config.model_fields.items():
            console.print(f"  {name} = {field.default!r}  {field.description or ''}", markup=False, highlight=False)
        for name, searched in method.search.items():
            console.print(f"  --tune searches {name}: {searched}", markup=False, highlight=False)
        return
    if what is not None and what not in KINDS:
        near = nearest(what, [*KINDS, *METHODS])
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(KINDS)}"
        raise UserError(f"nothing to list under {what!r}", hint)
    for kind in [what] if what else list(KINDS):
        table = Table(title=kind, title_justify="left", box=None, pad_edge=False)
        for column in ("name", "what", "source"):
            table.add_column(column, overflow="fold")
        for entry in KINDS[kind]():
            table.add_row(*entry)
        console.print(table)
        console.print()
