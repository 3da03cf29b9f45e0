"""Download everything that a run needs, so that it can run offline (`wpn-bench prefetch`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wpn_bench import hub, models, prompts
from wpn_bench.config import RunConfig, split_candidate
from wpn_bench.core import consent
from wpn_bench.core.progress import Reporter, Stopwatch
from wpn_bench.harmless.judges import get_judge
from wpn_bench.harmless.judges.spec import parse
from wpn_bench.hub import FetchedItem
from wpn_bench.models.backends.endpoint import PREFIX
from wpn_bench.preflight.sets import TaskNames, sets_of, task_names_of


@dataclass(frozen=True)
class Step:
    """One download.

    Attributes:
        label: Name of the download.
        fetch: Downloads it and returns the items, which may have been in the cache.
    """

    label: str
    fetch: Callable[[], list[FetchedItem]]


def prefetch(config: RunConfig, reporter: Reporter) -> list[tuple[FetchedItem, bool]]:
    """Download everything that a run reads from the hub and other sources.

    Args:
        config: Configuration of the run.
        reporter: Shows the progress.

    Returns:
        Each item, with whether it was downloaded now and not cached before.

    Raises:
        UserError: A download failed.
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
    """Yield the downloads. Small ones that may be refused come first, so that no gigabytes are downloaded in vain."""
    for judge in (config.judge, *config.judges):
        yield Step(f"judge {parse(judge).name}", lambda judge=judge: get_judge(judge, "cpu").fetched())  # type: ignore[misc]
    for source in hub_sources(config):
        yield Step(f"data set {source.hub}", lambda source=source: _data(source))  # type: ignore[misc]
    tasks = task_names_of(config)
    for name in dict.fromkeys((*tasks.tested, *tasks.tuned)):
        tasks.describe(name, resolve=False)
        yield Step(f"benchmark {name}", lambda name=name: _benchmark(name, tasks))  # type: ignore[misc]
    yield Step(f"model {config.model}", lambda: models.resolve(config.model, config.revision).fetched)
    for name, where in map(split_candidate, config.candidates):
        if not where.startswith(PREFIX):
            yield Step(f"candidate {name}", lambda where=where: _candidate(where, config))  # type: ignore[misc]
    attacker = config.attacker_needed()
    if attacker and not attacker.startswith(PREFIX):
        yield Step(f"attacker {attacker}", lambda: models.resolve(*models.split_revision(attacker)).fetched)


def hub_sources(config: RunConfig) -> list[prompts.Source]:
    """Return the hub's data sets from which a run reads prompts and texts, without duplicates."""
    sources = (one.spec.source for one in sets_of(config))
    return list({(s.hub, s.config, s.revision): s for s in sources if s.hub}.values())


def _candidate(source: str, config: RunConfig) -> list[FetchedItem]:
    base = models.resolve(config.model, config.revision)
    return models.resolve(*models.split_revision(source), base).fetched


def _data(source: prompts.Source) -> list[FetchedItem]:
    assert source.hub is not None
    commit = hub.resolve_revision(source.hub, source.config, source.revision)
    return [] if commit is None else [_loaded("prompts", source.hub, source.config, commit)]


def _benchmark(name: str, tasks: TaskNames) -> list[FetchedItem]:
    from wpn_bench.benchmarks import run

    info = run.prefetch(name, tasks.folders, tasks.metrics)
    if info.dataset_path is None or info.revision is None:
        return []
    if not run.reads_whole_data(name, tasks.folders, info.revision):
        return []
    return [_loaded("benchmark", info.dataset_path, info.dataset_name, info.revision)]


def _loaded(kind: str, path: str, name: str | None, commit: str) -> FetchedItem:
    hub.load_dataset(path, name, commit)
    shown = path if name in (None, "default") else f"{path} ({name})"
    return FetchedItem(kind, shown, commit, hub.cached_tables(path, name))


def show(found: list[tuple[FetchedItem, bool]]) -> None:
    """Print a line for each item, and the totals."""
    width = max((len(one.name) for one, _ in found), default=0)
    for one, now in found:
        size = f"{one.size / 2**20:,.1f} MiB"
        print(
            f"{'fetched' if now else 'cached':<7}  {one.kind:<9}  {one.name:<{width}}  {one.revision[:12]}  {size:>12}"
        )
    new = [one for one, now in found if now]
    total, downloaded = (sum(one.size for one in some) / 2**20 for some in ([one for one, _ in found], new))
    print(f"{len(found)} items, {total:,.1f} MiB; {len(new)} downloaded now, {downloaded:,.1f} MiB")
