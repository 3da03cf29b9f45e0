"""Describe the available methods, attacks, judges, benchmarks, prompt sets and presets (`wpn-bench list`)."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from wpn_bench.core.registry import close_matches
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from wpn_bench.unlearn.methods.base import Method


OURS = "this project"
_CITED = re.compile(r"\s*\(([^()]*\d{4}[^()]*)\)\.?$")  # "... (after Wei et al. 2023)." at the end of a description


@dataclass(frozen=True)
class Entry:
    """One available part: its name, title, description and source. `more` contains further facts, one per line."""

    name: str
    title: str
    what: str
    source: str
    more: dict[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> str:
        """Return the title, description, further facts and source, as the table shows them."""
        facts = (f"{name.capitalize()}: {value}" for name, value in self.more.items() if value)
        return "\n".join(filter(None, (self.title, self.what, *facts, f"Source: {self.source}")))


def methods() -> Iterator[Entry]:
    """Yield an entry for each method, followed by its named variants."""
    from wpn_bench.unlearn.methods import METHODS, title_of, variant_of

    for name in METHODS:
        method = METHODS.get(name)
        formula = " ".join((inspect.getdoc(method) or "").partition("\n\n")[0].split())
        yield Entry(name, title_of(name), formula, variant_of(name).paper)
        for label, variant in method.variants.items():
            if label:
                options = ", ".join(f"{option}: {value}" for option, value in variant.options.items())
                variant_name = f"{name}:{label}"
                yield Entry(variant_name, title_of(variant_name), f"{method.title} with {options}", variant.paper)


def attacks() -> Iterator[Entry]:
    """Yield an entry for each attack of any kind."""
    from wpn_bench import attacks as parts
    from wpn_bench.attacks.quantise import SCHEMES
    from wpn_bench.attacks.registry import CONVERSATIONS, RELEARN, RELEARN_SEARCH, by_stage, conversations
    from wpn_bench.attacks.relearn import Relearning
    from wpn_bench.attacks.relearn_search import Searching

    def entry(name: str, part: Any) -> Entry:
        cited = _CITED.search(part.description)
        what = f"{part.description[: cited.start()]}." if cited else part.description
        return Entry(name, part.title, what, cited[1] if cited else OURS)

    yield from (entry(name, parts.get_attack(name)) for name in parts.names())
    yield Entry(CONVERSATIONS, "All conversations", f"Stands for {', '.join(conversations())}.", OURS)
    yield from (entry(name, parts.GRADIENT.get(name)) for name in parts.GRADIENT)
    yield from (entry(scheme.name, scheme) for scheme in SCHEMES.values())
    yield from (entry(name, one) for name, one in by_stage().items())
    yield entry(RELEARN, Relearning)
    yield entry(RELEARN_SEARCH, Searching)


def judges() -> Iterator[Entry]:
    """Yield an entry for each judge."""
    from wpn_bench.harmless.judges import JUDGES

    for name in JUDGES:
        judge = JUDGES.get(name)
        yield Entry(name, judge.title, judge.measures, judge.source, {"write": judge.usage or name})


def benchmarks() -> Iterator[Entry]:
    """Yield an entry for each benchmark task and group."""
    from wpn_bench.benchmarks.definitions import read_folders, short_name, task_folders
    from wpn_bench.benchmarks.run import describe
    from wpn_bench.benchmarks.selection import select

    folders = task_folders(("benchmarks", "lab"))
    found = read_folders(folders)
    known = {short_name(name): str(one.metadata["title"]) for name, one in found.items() if "title" in one.metadata}
    for name, definition in found.items():
        # The lab has each benchmark twice: for testing, and with the suffix `_validation` a smaller one for tuning.
        short, validation = re.subn("_validation$", "", short_name(name))
        title = known.get(short, short)
        if name.startswith("lab_"):
            title += " in the lab's world" + (", to tune on" if validation else "")
        if definition.is_group:
            members = len(select([name], folders).tasks)
            yield Entry(name, title, f"A group of {members} tasks", str(definition.metadata.get("citation", OURS)))
            continue
        info = describe(name, folders, resolve=False)
        chance = "" if info.chance is None else f"{100 * info.chance:.3g} %"
        more = {"chance": chance, "licence": info.licence}
        yield Entry(name, title, "", info.dataset_path or "embedded lab", more)


def prompts() -> Iterator[Entry]:
    """Yield an entry for each declared prompt and text set."""
    from wpn_bench.prompts import declared, read_spec

    for name, file in declared().items():
        spec = read_spec(file)
        more = {"licence": spec.licence, "warning": spec.warning}
        paper = spec.citation.replace("https://arxiv.org/abs/", "arXiv ")
        where = ", ".join(filter(None, (spec.source.hub or spec.source.file or "embedded lab", paper)))
        yield Entry(name, spec.title, f"Role: {spec.role}, kind: {spec.kind}", where, more)


def presets() -> Iterator[Entry]:
    """Yield an entry for each preset."""
    from wpn_bench.config import presets as known
    from wpn_bench.config import read_preset

    for name in known():
        raw = read_preset(name)
        methods_ = list(raw["methods"])
        shown = ", ".join(methods_) if len(methods_) <= 6 else f"{len(methods_)} varieties or methods"
        yield Entry(name, str(raw.get("title", "")), f"Trains {shown}", OURS, {"model": str(raw.get("model", ""))})


KINDS: dict[str, Callable[[], Iterator[Entry]]] = {
    "methods": methods,
    "attacks": attacks,
    "judges": judges,
    "benchmarks": benchmarks,
    "prompts": prompts,
    "presets": presets,
}


def show(what: str | None, as_json: bool = False) -> None:
    """Print one kind of parts, all kinds, or one method with its formula and options.

    Args:
        what: A kind of parts or a method; None prints all kinds.
        as_json: Whether to print JSON instead of tables.

    Raises:
        UserError: There is no such kind or method.
    """
    from wpn_bench.unlearn.methods import METHODS

    if what in METHODS:
        _show_method(str(what), METHODS.get(str(what)), as_json)
        return
    if what is not None and what not in KINDS:
        near = close_matches(what, [*KINDS, *METHODS])
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(KINDS)}"
        raise UserError(f"nothing to list under {what!r}", hint)
    kinds = [what] if what else list(KINDS)
    if as_json:
        print(json.dumps({kind: [asdict(e) for e in KINDS[kind]()] for kind in kinds}, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for kind in kinds:
        table = Table(title=f"{kind}\n", title_justify="left", box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for entry in KINDS[kind]():
            table.add_row(entry.name, Text(entry.lines))
        console.print(table)
        console.print()


def _show_method(name: str, method: type[Method], as_json: bool) -> None:
    fields = method.Config.model_fields
    if as_json:
        options = [{"name": n, "default": f.get_default(), "what": f.description or ""} for n, f in fields.items()]
        searched = {n: str(r) for n, r in method.search.items()}
        found = {"name": name, "title": method.title, "source": method.paper, "what": inspect.getdoc(method)}
        print(json.dumps(found | {"options": options, "searched": searched}, indent=2, ensure_ascii=False, default=str))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    console.print(Text(name, "bold"), f": {method.title}\n{method.paper}\n\n{inspect.getdoc(method)}", sep="")
    for option, f in fields.items():
        console.print(f"  {option} = {f.default!r}  {f.description or ''}")
    for label, variant in method.variants.items():
        if label:
            console.print(f"  {name}:{label} = {dict(variant.options)}  {variant.paper}")
    for option, r in method.search.items():
        console.print(f"  --tune searches {option}: {r}")
