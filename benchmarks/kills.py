"""Kill `wpn-bench full` on the lab at random moments, and check that restarted runs lose nothing and give the same results.

    python benchmarks/kills.py                              # 100 kills, 20 faults, 20 pairs of runs: about 40 minutes
    python benchmarks/kills.py --kills 10 --faults 3 --pairs 0 --seed 7

Kills: a chain starts with an empty store. The run is started and killed (SIGKILL, with all its subprocesses) after a random time,
and restarted and killed again until one start finishes. Its results.json must equal that of an undisturbed run, except for
times. No job and no stored item may be computed twice, and no training steps except those after the last checkpoint.

Faults: the disk is filled (a large file on a small file system of its own), folders of the store become read-only, or the
process is limited to a little more memory than it has. (With less memory, batches are smaller and the last digits of results may
differ; such results are counted separately, and so is every other difference.) The exit codes of these starts are counted; the
next, undisturbed start must give the usual results. The first two faults need the permission to mount; without it, the script
stops with a message.

Pairs: two identical runs at the same time with one store and two run folders. Both must give the usual results, and no job
may be executed by both.

All modules are imported once before forking, so starts cost no imports and the kills hit the actual work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# All stages within seconds, so that kills can hit each of them.
SETTINGS: dict[str, Any] = {
    "methods": {
        "wpn": {"steps": 8, "save_every": 3, "batch_size": 4},
        "ga": {"steps": 5, "save_every": 2, "stop_at_harmless_rate": 0.9, "check_every": 2},
    },
    "limit": 5,
    "attacks": ["few_shot", "typos"],
    "judges": ["refusal"],
    "benchmarks": ["lab_copa"],
    "judge_card": None,
    "gradient_attacks": {"gcg": {"steps": 4, "candidates": 16, "universal": True, "prompts": 4, "suffix_tokens": 6}},
    "relearn": {"steps": [0, 2], "items": 4, "limit": 4},
    "curve": {"methods": ["wpn"], "steps": [0, 4], "limit": 4},
    "decoding": {"max_new_tokens": 16, "batch_size": 4},
}
# Values that differ between any two runs.
OF_THE_MOMENT = ("name", "created", "command")
TIMED = ("train_seconds", "gradient_attacks")
SOON = 0.35  # latest kill, as a fraction of the duration of an undisturbed run, so that each chain has several kills


def preload() -> None:
    """Import everything that a run needs, before forking."""
    import detoxify  # noqa: F401
    import lm_eval  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import wpn_bench.attacks.gcg
    import wpn_bench.benchmarks.language_model
    import wpn_bench.benchmarks.run
    import wpn_bench.engine.decode
    import wpn_bench.harmless.stages
    import wpn_bench.pipeline.runner
    import wpn_bench.report.render
    import wpn_bench.unlearn.loop
    import wpn_bench.unlearn.train  # noqa: F401

    torch.set_num_threads(1)


def few(folder: Path) -> dict[str, Any]:
    """Return settings that refer to files with a few of the lab's prompts and texts."""
    from wpn_bench import lab

    def put(name: str, rows: Sequence[dict[str, Any]]) -> str:
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    forget, asked = lab.prompt_set("forget"), lab.prompt_set("in_domain")
    return {
        "forget": put("forget", forget[:40]),
        "validation": put("validation", forget[60:70]),
        "in_domain": [put("asked", [{"prompt": row["prompt"]} for row in asked[:8]])],
        "ood": [put("other", [{"prompt": row["prompt"]} for row in lab.prompt_set("ood_notes")[:6]])],
        "benign": [put("benign", [{"prompt": row["prompt"]} for row in lab.prompt_set("benign")[:6]])],
        "retain": put("retain", [{"text": text} for text in lab.texts("retain")[:60]]),
        "heldout": put("heldout", [{"text": text} for text in lab.texts("heldout")[:10]]),
        "overlap": "drop",
        "near_duplicate": 1.0,
    }


# --- one start -------------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """The folders of a chain: store and run folders and, on another disk (its own may be full), logs and records."""

    root: Path

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    @property
    def trace(self) -> Path:
        return Path(f"{self.root}.trace.jsonl")

    def log(self, name: str) -> Path:
        return Path(f"{self.root}.{name}.log")

    def results(self, name: str) -> dict[str, Any]:
        """Return results.json of a run without times."""
        found = json.loads((self.root / name / "results.json").read_text(encoding="utf-8"))
        for key in OF_THE_MOMENT:
            found["run"].pop(key)
        for model in found["models"].values():
            for search in model.get("gradient_attacks") or ():
                search.pop("seconds", None)
            model.pop("train_seconds", None)
            (model.get("tuning") or {}).pop("seconds", None)
        found["metrics"] = [row for row in found["metrics"] if row["suite"] != "cost"]
        return found

    def events(self) -> list[dict[str, Any]]:
        if not self.trace.exists():
            return []
        return [json.loads(line) for line in self.trace.read_text().splitlines() if line.endswith("}")]


def start(
    place: Place,
    config: Path,
    name: str = "run",
    before: Callable[[], None] = lambda: None,
    more: Sequence[str] = (),
) -> int:
    """Fork a process (with its own process group) that executes the run; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        log = os.open(place.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        traced(place.trace)
        before()
        sys.argv = ["wpn-bench", "full", "--config", str(config), "--store", str(place.root / "store")]
        sys.argv += ["--out", str(place.root / name), *more]
        from wpn_bench.cli.main import main

        main()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def traced(file: Path) -> None:
    """Patch the code so that it records every finished job, stored item and training step."""
    from wpn_bench.jobs import executor, journal
    from wpn_bench.unlearn.loop import UnlearnTrainer

    def told(**event: Any) -> None:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(fd, (json.dumps(event) + "\n").encode())
        os.close(fd)

    perform, write, end_of_step = executor.execute_job, journal.Journal.write, UnlearnTrainer.end_of_step

    def performed(store: Any, job: Any, *rest: Any, **more: Any) -> Any:
        outcome = perform(store, job, *rest, **more)
        if outcome.status == "done":
            told(job=[job.stage, job.digest])
        return outcome

    def written(self: Any, key: str, found: Any) -> None:
        write(self, key, found)
        if not key.startswith("search/"):  # states; only the newest counts
            told(item=[self.folder.name, key], at=list(found))

    def stepped(self: Any) -> None:
        end_of_step(self)
        told(step=[Path(self.args.output_dir).name, self.state.global_step])

    executor.execute_job, journal.Journal.write, UnlearnTrainer.end_of_step = performed, written, stepped


def ended(pid: int, seconds: float | None = None) -> int | None:
    """Return the exit code of a start; None if it still runs after `seconds`."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        got, status = os.waitpid(pid, os.WNOHANG)
        if got:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.01)


def kill(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)
    ended(pid)


# --- requirements ---------------------------------------------------------------------------------------------------


def computed_twice(place: Place) -> tuple[int, int, int]:
    """Count the jobs, stored items and training steps that were computed more than once."""
    jobs: Counter[Any] = Counter()
    items: Counter[Any] = Counter()
    steps: Counter[Any] = Counter()
    for event in place.events():
        if "job" in event:
            jobs[tuple(event["job"])] += 1
        elif "item" in event:
            items.update((*event["item"], position) for position in event["at"])
        elif event["step"][0].count(
            "-"
        ):  # name of the scratch folder; a training without checkpoints uses another folder
            steps[tuple(event["step"])] += 1
    return tuple(sum(n - 1 for n in counts.values()) for counts in (jobs, items, steps))  # type: ignore[return-value]


@dataclass
class Tally:
    """Counts over all chains."""

    disturbed: int = 0
    chains: int = 0
    wrong: int = 0
    rounded: int = 0  # equal except for the last digits
    jobs: int = 0
    items: int = 0
    steps: int = 0
    codes: Counter[int | None] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def close(self, place: Place, reference: dict[str, Any], names: Sequence[str] = ("run",)) -> None:
        self.chains += 1
        jobs, items, steps = computed_twice(place)
        self.jobs, self.items, self.steps = self.jobs + jobs, self.items + items, self.steps + steps
        for name in names:
            file = place.root / name / "results.json"
            if file.exists() and (found := place.results(name)) != reference and close(found, reference):
                self.rounded += 1
                print(f"  {place.root}: {first_difference(reference, found)}", flush=True)
            elif not file.exists() or found != reference:
                self.wrong += 1
                self.notes.append(
                    f"{place.root}: {first_difference(reference, found) if file.exists() else 'no results'}"
                )
        if jobs or items:
            self.notes.append(f"{place.root}: {jobs} jobs and {items} items computed twice")

    def line(self, what: str) -> str:
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(self.codes.items(), key=str))
        return (
            f"{what}: {self.disturbed}, chains {self.chains}, other results {self.wrong}, other last digits"
            f" {self.rounded}; computed twice: jobs {self.jobs},"
            f" items {self.items}, training steps {self.steps}; exit codes {{{codes}}}"
        )


def close(a: Any, b: Any) -> bool:
    """Return whether two JSON values are equal except for the last digits of numbers."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def first_difference(a: Any, b: Any, at: str = "") -> str:
    """Return the first difference between two JSON values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if a.get(key) != b.get(key) or (key in a) != (key in b):
                return first_difference(a.get(key), b.get(key), f"{at}.{key}")
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            if x != y:
                return first_difference(x, y, f"{at}[{k}]")
    return f"{at}: {str(a)[:200]} / {str(b)[:200]}"


# --- disturbances ----------------------------------------------------------------------------------------------------


def killed(n: int, config: Path, work: Path, reference: dict[str, Any], usual: float, draw: random.Random) -> Tally:
    """Run chains until `n` starts were killed."""
    tally = Tally()
    while tally.disturbed < n:
        place = Place(work / f"kills{tally.chains}")
        while True:
            pid = start(place, config)
            code = ended(pid, draw.uniform(0, SOON * usual) if tally.disturbed < n else None)
            if code is not None:
                tally.codes[code] += 1
                break
            kill(pid)
            tally.disturbed += 1
        tally.close(place, reference)
        finish(place, tally, f"kills {tally.disturbed}/{n}")
    return tally


def faulty(n: int, config: Path, work: Path, reference: dict[str, Any], usual: float, draw: random.Random) -> Tally:
    """Run chains of one start with a fault (the three kinds take turns) and one undisturbed start."""
    tally = Tally()
    kinds = (disk_filled, folders_locked, memory_limited)
    for number in range(n):
        kind = kinds[number % len(kinds)]
        place = Place(work / f"faults{number}")
        code = kind(place, config, draw.uniform(0.05, 0.9) * usual, draw)
        tally.codes[code] += 1
        tally.disturbed += 1
        told = place.log("run").read_text().splitlines()
        print(f"  {kind.__name__}: exit code {code}: {told[-1][:160] if told else ''}", flush=True)
        last = ended(start(place, config))
        if last != 0:
            tally.notes.append(f"{place.root}: exit code {last} undisturbed")
        tally.close(place, reference)
        finish(place, tally, f"faults {tally.disturbed}/{n}")
    return tally


def disk_filled(place: Place, config: Path, after: float, draw: random.Random) -> int | None:
    """Put store and run folder on a small file system that becomes full after some time."""
    mounted(place.root, 1000)
    pid = start(place, config)
    code = ended(pid, after)
    if code is None:
        ballast = place.root / "ballast"
        with ballast.open("wb") as f:
            try:
                while True:
                    f.write(b"\0" * 65536)
            except OSError:
                pass
            with contextlib.suppress(OSError):
                f.flush()
        code = ended(pid)
        ballast.unlink()
    return code


def folders_locked(place: Place, config: Path, after: float, draw: random.Random) -> int | None:
    """Make some folders of the store read-only after some time."""
    locked: list[Path] = []
    pid = start(place, config)
    code = ended(pid, after)
    if code is None:
        store = place.root / "store"
        folders = [p for p in store.iterdir() if p.is_dir()] if store.exists() else []
        for folder in draw.sample(folders, (len(folders) + 1) // 2):
            subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
            locked.append(folder)
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        code = ended(pid)
    for folder in locked:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    return code


def memory_limited(place: Place, config: Path, after: float, draw: random.Random) -> int | None:
    """Limit the process to the memory after its imports and a little more."""

    def limited() -> None:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = held + int(draw.uniform(5, 250) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    # The memory estimate would reject the run.
    return ended(start(place, config, before=limited, more=("--force",)))


def paired(n: int, config: Path, work: Path, reference: dict[str, Any], draw: random.Random) -> Tally:
    """Start the same run twice with one store, the second a moment later."""
    tally = Tally()
    for number in range(n):
        place = Place(work / f"pairs{number}")
        first = start(place, config, "run")
        time.sleep(draw.uniform(0, 3))
        second = start(place, config, "other")
        tally.codes.update(ended(pid) for pid in (first, second))
        tally.disturbed += 1
        tally.close(place, reference, ("run", "other"))
        finish(place, tally, f"pairs {tally.disturbed}/{n}")
    return tally


def mounted(folder: Path, megabytes: int) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=False)
    if done.returncode:
        sys.exit("filling the disk needs the permission to mount: run this as root, or with --faults 0")


def finish(place: Place, tally: Tally, said: str) -> None:
    """Delete the folders of a chain; keep them after a failure."""
    print(f"  {said}: other results {tally.wrong}", flush=True)
    if any(note.startswith(f"{place.root}:") for note in tally.notes):
        return
    subprocess.run(["umount", str(place.root)], check=False, stderr=subprocess.DEVNULL)
    shutil.rmtree(place.root, ignore_errors=True)
    for file in (place.trace, place.log("run"), place.log("other")):
        file.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder for stores and runs (default: a temporary one)")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="wpn-kills-"))
    work.mkdir(parents=True, exist_ok=True)
    preload()
    config = work / "settings.yaml"
    config.write_text(yaml.safe_dump(SETTINGS | few(work)))
    place = Place(work / "undisturbed")
    begun = time.monotonic()
    if ended(start(place, config)) != 0:
        sys.exit(place.log("run").read_text()[-2000:])
    usual = time.monotonic() - begun
    reference = place.results("run")
    jobs = sum("job" in event for event in place.events())
    print(f"undisturbed: {usual:.1f} s, {jobs} jobs, {len(reference['metrics'])} rows; seed {args.seed}", flush=True)
    draw = random.Random(args.seed)
    parts = {
        "starts killed": lambda: killed(args.kills, config, work, reference, usual, draw),
        "starts with a fault": lambda: faulty(args.faults, config, work, reference, usual, draw),
        "pairs of runs at once": lambda: paired(args.pairs, config, work, reference, draw),
    }
    bad = False
    for what, part in parts.items():
        tally = part()
        print(tally.line(what), *tally.notes, sep="\n  ", flush=True)
        bad |= bool(tally.wrong or tally.jobs or tally.items)
    if bad:
        sys.exit(1)
    if args.work is None:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
