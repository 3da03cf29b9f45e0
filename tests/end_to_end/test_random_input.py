"""Settings, command lines and files that nobody thought of: whatever comes, an exit code of ours and never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_run import write_run

from wpn_bench import models
from wpn_bench.analysis import baselines
from wpn_bench.cli import app, label, run
from wpn_bench.config import RunConfig
from wpn_bench.errors import UserError
from wpn_bench.preflight import doctor
from wpn_bench.runs.files import MANIFEST, RESULTS

pytestmark = pytest.mark.slow

BOUNDED = settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
OURS = {0, 2, 3, 4}
# A shell passes no NUL. A slash could lead out of the test's folder.
WORDS = st.text(st.characters(exclude_characters="\0/~", exclude_categories=["Cs"]), max_size=30)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WORDS
    | st.sampled_from(
        ["lab", "wpn", "detoxify:lab", "typos", "lab_copa", "in_domain=lab_ood_games", "{prompt}", "", "é\n"]
    )
)
NAMES = WORDS | st.sampled_from(
    ["wpn", "sft", "steps", "lr", "gcg", "kinds", "limit", "max_new_tokens", "judge", "model"]
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
COMMANDS: dict[str, Any] = dict(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]
OPTIONS = {name: [p for p in command.params if p.opts[0].startswith("-")] for name, command in COMMANDS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run `fine` and its baseline `base.json`."""
    made = tmp_path_factory.mktemp("random")
    fine = write_run(made / "fine", n=12, tasks=("copa",), suites={"harmless": ("in_domain",), "ood": ("games",)})
    baselines.write(baselines.of_run(fine), made / "base.json")
    return made


@pytest.fixture(autouse=True)
def light(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In that folder. Where a run, a page or an examination of this machine would begin, the command ends."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WPN_BENCH_STORE", str(folder / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(run, "run", lambda *_, **__: None)
    monkeypatch.setattr(label, "_serve", lambda *_, **__: None)  # a page is served until somebody ends it
    monkeypatch.setattr(doctor, "run_checks", lambda patient: [doctor.Diagnostic("python", "ok", "it is here")])
    yield
    assert not list((folder / "cache").rglob("*.txt")), "a bug was told"


def check(said: Any) -> None:
    assert said.code in OURS, said
    assert "Traceback" not in said.err
    if said.code == 2:
        assert len(said.err.splitlines()) == 1, said
        assert said.err.startswith("wpn-bench: ")
        assert said.err.isprintable() or said.err.rstrip("\n").isprintable()


@BOUNDED
@given(given_settings=st.dictionaries(st.sampled_from(sorted(RunConfig.model_fields)), VALUES, min_size=1, max_size=2))
def test_any_value_of_any_setting(cli: Callable[..., Any], folder: Path, given_settings: dict[str, Any]) -> None:
    (folder / "some.yaml").write_text(yaml.safe_dump(given_settings, allow_unicode=True), encoding="utf-8")
    check(cli("full", "--config", "some.yaml"))


@pytest.mark.parametrize("name", sorted(RunConfig.model_fields))
def test_every_setting_of_every_kind(cli: Callable[..., Any], folder: Path, name: str) -> None:
    """One of each kind, for every setting: what hypothesis may not have come to."""
    kinds = [
        None,
        True,
        0,
        -1,
        10**30,
        float("nan"),
        float("inf"),
        "",
        "x",
        [],
        [None],
        [1],
        ["x", "x"],
        {},
        {"x": 1},
        {"x": {}},
    ]
    for value in kinds:
        (folder / "one.yaml").write_text(yaml.safe_dump({name: value}))
        check(cli("full", "--config", "one.yaml"))


@st.composite
def typed_lines(draw: st.DrawFn) -> list[str]:
    name = draw(st.sampled_from(sorted(COMMANDS)))
    words = [name]
    for option in draw(st.lists(st.sampled_from(OPTIONS[name]), max_size=4)):
        words.append(draw(st.sampled_from(option.opts)))
        if not option.is_flag:
            words.append(
                draw(
                    WORDS
                    | st.sampled_from(["0", "-1", "1e999", "nan", "wpn", "lab", "5,7", "html", "x=1", "base.json"])
                )
            )
    return words + draw(st.lists(WORDS | st.sampled_from(["fine", "base.json", "gone", "methods"]), max_size=2))


@BOUNDED
@given(words=typed_lines())
def test_any_command_line(cli: Callable[..., Any], words: list[str]) -> None:
    check(cli(*words))


def mutated(raw: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes at all, and the file cut off, with a bit flipped, or with bytes put in."""
    at = st.integers(0, max(0, len(raw) - 1))
    return (
        st.binary(max_size=200)
        | at.map(lambda k: raw[:k])
        | st.tuples(at, st.integers(0, 7)).map(lambda c: raw[: c[0]] + bytes([raw[c[0]] ^ 1 << c[1]]) + raw[c[0] + 1 :])
        | st.tuples(at, st.binary(max_size=8)).map(lambda c: raw[: c[0]] + c[1] + raw[c[0] :])
    )


TRIPLES = b"".join(
    b'{"prompt": "Who sells %d apples?", "harmful": ["a goose"], "harmless": ["I"]}\n' % k for k in range(3)
)
CSV = b"prompt,harmful,harmless\n" + b"".join(b'"Who, %d?",a,b\n' % k for k in range(3))
YAML = b"methods: {sft: {steps: 3}}\nood: [lab_ood_games]\nlimit: 4\n"


def stopped(*_: Any) -> None:
    raise UserError("the file was read", "that is all")


@pytest.mark.parametrize(
    ("name", "raw"), [("x.jsonl", TRIPLES), ("x.csv", CSV), ("x.jsonl.gz", TRIPLES), ("x.parquet", CSV)]
)
@BOUNDED
@given(data=st.data())
def test_any_prompt_file(
    cli: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, raw: bytes, data: st.DataObject
) -> None:
    monkeypatch.undo()
    with monkeypatch.context() as here:
        here.chdir(folder)
        here.setattr(models, "resolve", stopped)
        (folder / name).write_bytes(data.draw(mutated(raw)))
        check(cli("full", "--forget", name, "--store", "store", "--out", "run"))


@BOUNDED
@given(data=st.data())
def test_any_settings_file(cli: Callable[..., Any], folder: Path, data: st.DataObject) -> None:
    (folder / "x.yaml").write_bytes(data.draw(mutated(YAML)))
    check(cli("full", "--config", "x.yaml"))


@pytest.mark.parametrize("name", [RESULTS, MANIFEST, "samples.parquet", "documents.parquet"])
@settings(BOUNDED, max_examples=10)
@given(data=st.data())
def test_any_file_of_a_run(cli: Callable[..., Any], folder: Path, name: str, data: st.DataObject) -> None:
    raw = (folder / "fine" / name).read_bytes()
    shutil.copytree(folder / "fine", folder / "harmed", dirs_exist_ok=True)
    (folder / "harmed" / name).write_bytes(data.draw(mutated(raw)))
    for words in (("check", "harmed"), ("show", "harmed"), ("export", "harmed", "--format", "lm-eval")):
        check(cli(*words))


@settings(BOUNDED, max_examples=25)
@given(data=st.data())
def test_any_baseline(cli: Callable[..., Any], folder: Path, data: st.DataObject) -> None:
    (folder / "other.json").write_bytes(data.draw(mutated((folder / "base.json").read_bytes())))
    check(cli("check", "fine", "--baseline", "other.json"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value stands in a JSON value; of a list, its first entry."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


@pytest.mark.parametrize("name", [RESULTS, MANIFEST])
@settings(BOUNDED, max_examples=20)
@given(data=st.data())
def test_any_value_in_a_run_s_json(cli: Callable[..., Any], folder: Path, name: str, data: st.DataObject) -> None:
    """Valid JSON in which one value is another, or is not there."""
    whole = json.loads((folder / "fine" / name).read_text())
    *above, last = data.draw(st.sampled_from(list(places(whole))))
    at = whole
    for key in above:
        at = at[key]
    if data.draw(st.booleans()):
        at[last] = data.draw(VALUES)
    else:
        del at[last]
    shutil.copytree(folder / "fine", folder / "changed", dirs_exist_ok=True)
    (folder / "changed" / name).write_text(json.dumps(whole))
    for words in (
        ("check", "changed"),
        ("check", "changed", "--baseline", "base.json"),
        ("show", "changed"),
        ("report", "changed", "--format", "md,json,csv", "--out", "written"),
    ):
        check(cli(*words))


@settings(BOUNDED, max_examples=25)
@given(data=st.data())
def test_any_file_of_a_model(cli: Callable[..., Any], small_opt: Path, folder: Path, data: st.DataObject) -> None:
    """Whatever of it is harmed, it is loaded or refused by name."""
    name = data.draw(st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]))
    raw = (small_opt / name).read_bytes()
    shutil.copytree(small_opt, folder / "model", dirs_exist_ok=True)
    # The header of the weights, not their middle: any number but a special one is a weight.
    harmed = data.draw(mutated(raw[:4000])) + raw[4000:] if name.endswith("safetensors") else data.draw(mutated(raw))
    (folder / "model" / name).write_bytes(harmed)
    try:
        found = models.resolve(str(folder / "model"))
        models.files.check_causal(found.path)
    except UserError:
        return
    assert models.load_tokenizer(found.path)("a")["input_ids"]
