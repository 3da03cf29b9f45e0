"""`wpn-bench prefetch`: fetch all that a configuration needs, so that its run needs no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wpn_bench import hub, models, prompts
from wpn_bench.benchmarks.definitions import task_folders
from wpn_bench.config import RunConfig
from wpn_bench.core import consent
from wpn_bench.core.progress import Reporter, Stopwatch
from wpn_bench.harmless.judges import get_judge
from wpn_bench.harmless.judges.spec import parse
from wpn_bench.hub import FetchedItem


@dataclass(frozen=True)
class Step:
    """One thing to fetch: what it is called, and what fetches it."""

    label: str
    fetch: Callable[[], list[FetchedItem]]


def prefetch(config: RunConfig, reporter: Reporter) -> list[tuple[FetchedItem, bool]]:
    """All that a run of `config` reads from elsewhere, and of each whether it was fetched now or was here before.

    Raises `UserError` for what cannot be had.
    """
    started = time.time()
    found: dict[tuple[str, str], FetchedItem] = {}
    with consent.granted(code=config.trust_remote_code, pickles=config.allow_pickle), reporter:
        steps = list(_steps(config))
        reporter.plan(len(steps))
        for step in steps:
            reporter.start(step.label)
            watch = Stopwatch()
            parts = step.fetch()
            found |= {(one.name, one.revision): one for one in parts}
            now = any(one.fetched_after(started) for one in parts)
            reporter.finish(step.label, "done" if now else "cached", watch.seconds)
    return [(one, one.fetched_after(started)) for one in found.values()]


def _steps(config: RunConfig) -> Iterator[Step]:
    """What is small and may be closed to the user first, the model last: a refusal after its gigabytes would be late."""
    for judge in (config.judge, *config.judges):
        yield Step(f"judge {parse(judge).name}", lambda judge=judge: get_judge(judge, "cpu").fetched())  # type: ignore[misc]
    for source in _sources(config):
        yield Step(f"data set {source.hub}", lambda source=source: _data(source))  # type: ignore[misc]
    from wpn_bench.benchmarks.run import expand

    folders = task_folders(config.benchmark_folders)
    for name in expand((*config.benchmarks, *(config.tune_benchmarks if config.tune else ())), folders):
        yield Step(f"benchmark {name}", lambda name=name: _benchmark(name, config))  # type: ignore[misc]
    yield Step(f"model {config.model}", lambda: models.resolve(config.model, config.revision).fetched)


def _sources(config: RunConfig) -> Iterator[prompts.Source]:
    """The hub's data sets behind the prompt and text sets, each once."""
    tests = [entry.partition("=")[2] or entry for entry in (*config.in_domain, *config.ood, *config.benign)]
    texts = (config.retain, config.heldout, config.tune_text if config.tune else None)
    named = (config.forget, config.validation, *tests, *texts)
    specs = [prompts.spec_for(name, role="ood", kind=config.file_kind) for name in dict.fromkeys(filter(None, named))]
    seen = set()
    for source in (spec.source for spec in specs):
        if source.hub and (key := (source.hub, source.config, source.revision)) not in seen:
            seen.add(key)
            yield source


def _data(source: prompts.Source) -> list[FetchedItem]:
    assert source.hub is not None
    commit = hub.resolve_revision(source.hub, source.config, source.revision)
    return [] if commit is None else [_loaded("prompts", source.hub, source.config, commit)]


def _benchmark(name: str, config: RunConfig) -> list[FetchedItem]:
    from wpn_bench.benchmarks import run

    info = run.prefetch(name, task_folders(config.benchmark_folders))
    if info.dataset_path is None or info.revision is None:
        return []
    return [_loaded("benchmark", info.dataset_path, info.dataset_name, info.revision)]


def _loaded(kind: str, path: str, name: str | None, commit: str) -> FetchedItem:
    hub.load_dataset(path, name, commit)
    shown = path if name in (None, "default") else f"{path} ({name})"
    return FetchedItem(kind, shown, commit, hub.cached_tables(path, name))


def show(found: list[tuple[FetchedItem, bool]]) -> None:
    """Print a line for each thing, and the sum."""
    width = max((len(one.name) for one, _ in found), default=0)
    for one, now in found:
        size = f"{one.size / 2**20:,.1f} MiB"
        print(f"{'fetched' if now else 'here':<7}  {one.kind:<9}  {one.name:<{width}}  {one.revision[:12]}  {size:>12}")
    new = [one for one, now in found if now]
    total, fetched = (sum(one.size for one in some) / 2**20 for some in ([one for one, _ in found], new))
    print(f"{len(found)} things, {total:,.1f} MiB; {len(new)} fetched now, {fetched:,.1f} MiB")
