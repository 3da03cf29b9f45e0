"""The documents: they build without a warning, and every command in them is one that there is.

A command that only looks at a run is run on one. A command that would train for minutes is carried as far as its first job:
parsed, its configuration put together and checked. Scripts and nox sessions must exist and know the options they are given.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from made_run import write_run

from wpn_bench.analysis import baselines
from wpn_bench.cli import app, libraries, prefetch, run
from wpn_bench.errors import WpnBenchError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNS = ("full", "train", "harmless", "attack", "benchmarks")
# What stands for something of the reader's own.
PLACEHOLDERS = {
    "RUN": "runs/first",
    "FILE": "baseline.json",
    "DIR": "my-model",
    "M": "lab",
    "METHOD": "wpn",
    "NAME,...": "typos",
}
PLACEHOLDERS["RUN..."] = "runs/other"
# Methods of the reader's own.
PLACEHOLDERS |= {"wpn,yours": "wpn,sft", "wpn,unlikelihood": "wpn,sft"}


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) for each line of a shell block and each span of code that begins with a program of ours."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.S)
        lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
        spans = re.findall(r"`((?:wpn-bench|nox|python|lm_eval) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        for line in (*lines, *(" ".join(span.split()) for span in spans)):
            for part in re.split(r"\s*&&\s*|\s#\s", line):
                if re.match(r"(wpn-bench|nox|python|lm_eval)\b", part.strip()):
                    yield page.name, part.strip()


ALL = sorted(set(commands()))
OURS = [(page, line) for page, line in ALL if line.startswith("wpn-bench")]
OTHERS = [(page, line) for page, line in ALL if not line.startswith("wpn-bench")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands name."""
    from report import fake_run

    folder = tmp_path_factory.mktemp("reader")
    for name in ("docs", "tasks", "tests", "wpn_bench"):
        (folder / name).symlink_to(ROOT / name)
    first = write_run(folder / "runs" / "first", n=400)
    write_run(folder / "runs" / "bold", n=400)
    write_run(folder / "runs" / "x", n=400)
    baselines.write(baselines.of_run(first), folder / "baseline.json")
    (folder / "reports" / "baselines").mkdir(parents=True)
    baselines.write(baselines.of_run(first), folder / "reports" / "baselines" / "opt-2.7b.json")
    for name in ("whole", "other", "third"):
        fake_run.write_run(folder / "runs" / name)
    (folder / "gates.yaml").write_text("min: {coherent_harmless_rate: 0.9}\n")
    (folder / "bold.yaml").write_text("methods: {wpn: {kl: 0}}\n")
    (folder / "unlearning.yaml").write_text("methods: {wpn: {kl: 0.5}}\n")
    (folder / "more.yaml").write_text("- {name: two, template: 'Twice: {prompt} {prompt}'}\n")
    (folder / "mine.csv").write_text("name,template\nfriend,My friend asks: {prompt}\n")
    rows = [{"text": "You are kind.", "label": 0}, {"text": "You stupid idiot!", "label": 1}] * 8
    for name in ("comments.jsonl", "labelled.jsonl"):
        (folder / name).write_text("".join(json.dumps(row | {"toxicity": row["label"]}) + "\n" for row in rows))
    return folder


@pytest.fixture
def begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configurations of runs that would have begun; judges' cards that would have been measured."""
    found: list[Any] = []
    monkeypatch.chdir(folder)
    for module, name in ((run, "run"), (prefetch, "fetch")):
        monkeypatch.setattr(module, name, lambda config, *_, **__: found.append(config))
    monkeypatch.setattr(libraries, "go_offline", lambda: None)
    monkeypatch.setattr("wpn_bench.analysis.judge_card.measure", lambda *given, **options: found.append(given))
    monkeypatch.setattr("wpn_bench.report.judge_card.show", lambda card: None)
    monkeypatch.setattr("wpn_bench.report.judge_card.write_card", lambda card, file: [file])
    monkeypatch.setattr(libraries, "configure_libraries", lambda: None)
    monkeypatch.setattr("wpn_bench.jobs.executor.find_spec", lambda name: name)  # Ray is an extra
    # tests/interop and the lab's end-to-end test export for good.
    monkeypatch.setattr("wpn_bench.interop.FORMATS.get", lambda name: lambda run, out: [])
    return found


def words_of(line: str) -> list[str]:
    """The words, without what stands for "and so on" and with something in the place of placeholders."""
    line = re.sub(r"\s+(\[.*|\.\.\.|>.*|\|.*)$", "", line.replace("\\|", "|"))
    if line.count(" ") == 1:
        return [*line.split()[1:], "--help"]  # it is named, not typed
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(line)[1:]]


@pytest.mark.parametrize(("page", "line"), OURS, ids=[f"{page}: {line}"[:120] for page, line in OURS])
def test_a_command_is_one_that_there_is(page: str, line: str, begun: list[Any]) -> None:
    words = words_of(line)
    if words and words[0] in ("report", "show", "export") and "junit" not in line:
        whole = iter(("runs/whole", "runs/other", "runs/third"))
        words = [next(whole) if word.startswith("runs/") else word for word in words]
    try:
        code = app.app(words or ["--help"], prog_name="wpn-bench", standalone_mode=False)
    except typer.Exit as e:
        code = e.exit_code
    except WpnBenchError as e:
        pytest.fail(f"{page}: {line}: {e}")
    # A check has a verdict; the doctor has one, too, and finds no hub here.
    verdicts = {"check": (0, 3, 4), "doctor": (0, 2)}
    assert (code or 0) in verdicts.get(words[0] if words else "", (0,))
    if words and words[0] in RUNS and "--help" not in words:
        assert len(begun) == 1


@pytest.mark.parametrize(("page", "line"), OTHERS, ids=[f"{page}: {line}"[:120] for page, line in OTHERS])
def test_a_script_is_there_and_knows_its_options(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"\s+(\[.*|\.\.\.|>.*|\|.*)$", "", line))
    if words[:3] == ["python", "-m", "nox"] or words[0] == "nox":
        sessions = re.findall(r"@nox\.session.*?\ndef (\w+)\(", (ROOT / "noxfile.py").read_text(), re.S)
        named = words[words.index("-s") + 1 :] if "-s" in words else []
        for session in named[: named.index("--")] if "--" in named else named:
            assert session in sessions, f"{page}: {line}"
        return
    if words[:2] == ["python", "-m"]:
        module = words[2]
        if not module.startswith("wpn_bench"):
            return  # pip, cProfile
        file = ROOT / Path(*module.split(".")).with_suffix(".py")
    elif words[:2] == ["python", "-c"]:
        compile(words[2], page, "exec")
        return
    elif words[0] == "python":
        file = ROOT / words[1]
    else:
        return  # lm_eval itself: tests/benchmarks run it
    assert file.is_file() or file.with_suffix("").is_dir(), f"{page}: {line}"
    source = file.read_text(encoding="utf-8") if file.is_file() else ""
    for word in words:
        if word.startswith("--") and "language_model" not in str(file):
            assert f'"{word.split("=")[0]}"' in source, f"{page}: {line}"


def python_of(page: Path) -> str:
    """All Python of a page, which goes on from block to block; not what the reader's own files are put into."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    return "\n".join(block for block in blocks if "DIR" not in block)


PYTHON = [(page.name, code) for page in PAGES if (code := python_of(page))]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_in_the_pages_runs(page: str, code: str, folder: Path) -> None:
    code = re.sub(r'"runs/[^"]*"', '"runs/first"', code)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{page}: {done.stderr}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").is_file()
    assert "Unlikelihood training" in (tmp_path / "site" / "extending" / "index.html").read_text()


def test_the_pictures_are_of_the_report_as_it_is() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import pictures
    finally:
        sys.path.pop(0)
    made = json.loads(pictures.RECORD.read_text())
    assert made["digest"] == pictures.digest(), "the report has changed: make its pictures again with `nox -s pictures`"
    assert made["pictures"] == list(pictures.PICTURES)
    shown = {name for page in PAGES for name in re.findall(r"images/([\w-]+)\.png", page.read_text())}
    assert shown == set(pictures.PICTURES)
    for name in pictures.PICTURES:
        assert (pictures.IMAGES / f"{name}.png").stat().st_size < 400_000
