"""Prompt sets and plain texts: read from a user's file, the hub or the lab, checked, and known by their digest.

A prompt set is declared as YAML in `tasks/prompts/` (see `SetSpec`) or is simply a JSONL, CSV or Parquet file with
the columns `prompt` and, for a forget set, `harmful` and `harmless` (each a string or a list of strings).
"""

from __future__ import annotations

import csv
import gzip
import json
import operator
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wpn_bench.errors import UserError
from wpn_bench.paths import shown, tasks_dir
from wpn_bench.redact import without_secrets
from wpn_bench.registry import unknown
from wpn_bench.store import digest_of
from wpn_bench.validation import first_of
from wpn_bench.yaml_files import load_yaml

Role = Literal["forget", "validation", "in_domain", "ood", "benign", "retain", "heldout"]
Kind = Literal["question", "continuation", "text"]


class Pick(BaseModel):
    """One source column, taken only from rows where the other columns have the given values."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    column: str
    when: dict[str, Any] = Field(default_factory=dict)


class Source(BaseModel):
    """Where the rows come from: exactly one of `lab`, `hub` and `file`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    lab: str | None = None
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    file: str | None = None


class SetSpec(BaseModel):
    """A declared prompt set or text set, one YAML file in `tasks/prompts/`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str = ""
    role: Role
    kind: Kind = "question"
    source: Source
    columns: dict[str, str | list[Pick]] = {"prompt": "prompt", "harmful": "harmful", "harmless": "harmless"}
    where: dict[str, Any] = Field(default_factory=dict)
    min_chars: int = Field(1, ge=1, description="shorter texts are left out (headings)")
    licence: str = ""
    citation: str = ""
    warning: str = ""


@dataclass(frozen=True)
class Item:
    """One prompt. `harmful` and `harmless` are reference responses (training, calibration); either may be empty.

    The last three are for attacks: `context` is text before the rendered prompt (demonstrations), `answer_prefix` is
    put into the model's mouth between template and response, `original` is the prompt before the attack.
    """

    id: str
    prompt: str
    kind: str = "question"
    harmful: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    context: str = ""
    answer_prefix: str = ""
    original: str = ""


@dataclass(frozen=True)
class PromptSet:
    """Named prompts. `source` says where they come from (never a home folder)."""

    name: str
    role: Role
    items: tuple[Item, ...]
    title: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return digest_of([asdict(i) for i in self.items])

    def head(self, limit: int | None) -> PromptSet:
        """The first `limit` items (None: all)."""
        return self if limit is None else replace(self, items=self.items[:limit])


@dataclass(frozen=True)
class TextSet:
    """Named plain texts (retain data, held-out text)."""

    name: str
    role: Role
    texts: tuple[str, ...]
    title: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return digest_of(list(self.texts))


def normalise(prompt: str) -> str:
    """What counts as the same prompt: letters without case, runs of white space as one."""
    return " ".join(prompt.casefold().split())


def item_id(prompt: str) -> str:
    """Twelve hexadecimal digits that name a prompt, the same in every run."""
    return digest_of(normalise(prompt))[:12]


# --- input to the model ----------------------------------------------------------------------------------------------


def render(item: Item, template: str) -> str:
    """The text a model sees: the template for questions, the prompt itself for continuations."""
    text = template.format(prompt=item.prompt) if item.kind == "question" else item.prompt
    return item.context + text + (f" {item.answer_prefix}" if item.answer_prefix else "")


def joined(response: str) -> str:
    """A response as it follows a rendered prompt: one space, then the text."""
    return " " + response.strip()


# --- declared sets ---------------------------------------------------------------------------------------------------


def declared() -> dict[str, Path]:
    """Names of the sets declared in `tasks/prompts/` and their files."""
    return {p.stem: p for p in sorted((tasks_dir() / "prompts").glob("*.yaml"))}


def read_spec(path: Path) -> SetSpec:
    """Read one declaration; `UserError` names the field that is wrong."""
    try:
        return SetSpec.model_validate(load_yaml(path))
    except ValidationError as e:
        raise UserError(f"{path}: {first_of(e)}", "see tasks/prompts/ for examples") from e


def spec_for(name_or_file: str, *, role: Role, kind: Kind, name: str | None = None) -> SetSpec:
    """A declared set's name, a declaration file (.yaml), or a data file (.jsonl, .csv, .parquet)."""
    known = declared()
    if not name_or_file.strip():
        raise unknown("prompt set", name_or_file, known)
    if name_or_file in known:
        spec = read_spec(known[name_or_file])
        return spec.model_copy(update={"role": role, "name": name or spec.name})
    # Not Path's own questions: they raise for a name too long to be a file's, a prompt typed by mistake for instance.
    path = Path(os.path.expanduser(name_or_file))
    if path.suffix in {".yaml", ".yml"}:
        spec = read_spec(path)
        return spec.model_copy(update={"role": role, "name": name or spec.name})
    if path.suffix.lower() in _READERS or os.path.exists(path) or "/" in name_or_file:
        columns: dict[str, str | list[Pick]] = (
            {"text": "text"} if kind == "text" else {"prompt": "prompt", "harmful": "harmful", "harmless": "harmless"}
        )
        return SetSpec(
            name=name or without_secrets(path.stem),
            role=role,
            kind=kind,
            source=Source(file=str(path)),
            columns=columns,
        )
    raise unknown("prompt set", name_or_file, known)


# --- reading ---------------------------------------------------------------------------------------------------------


def load_prompts(spec: SetSpec) -> PromptSet:
    """Read a prompt set. Rows with the same prompt become one item; `UserError` says what is wrong and where."""
    rows, source = _rows(spec)
    need = {"prompt", "harmful", "harmless"} if spec.role == "forget" else {"prompt"}
    merged: dict[str, Item] = {}
    for number, row in enumerate(rows, 1):
        values = {name: _take(row, how) for name, how in spec.columns.items()}
        missing = sorted(name for name in need if values.get(name) is None)
        if missing:
            raise UserError(
                f"{_origin(spec)} row {number} has no {' and no '.join(repr(m) for m in missing)}"
                f" (columns: {', '.join(str(column)[:60] for column in row)[:300]})",
                "a forget set needs prompt, harmful and harmless; other sets need prompt; rename the columns, or map"
                " them in a YAML like those in tasks/prompts/",
            )
        prompt = values["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{_origin(spec)} row {number}: the prompt is empty or not text", "mend or remove the row")
        for name in ("harmful", "harmless"):
            if _is_texts(values.get(name)):
                continue
            if name in need:
                raise UserError(
                    f"{_origin(spec)} row {number}: {name!r} is not a text or a list of texts", "mend or remove the row"
                )
            values[name] = None  # a label, for instance: other sets need no responses
        kind = row.get("kind") if row.get("kind") in ("question", "continuation") else spec.kind
        key = item_id(prompt)
        old = merged.get(key, Item(key, prompt, str(kind)))
        merged[key] = replace(
            old,
            harmful=_union(old.harmful, values.get("harmful")),
            harmless=_union(old.harmless, values.get("harmless")),
        )
    items = tuple(merged.values())
    if spec.role == "forget":
        # A triple needs both sides; rows without one cannot be trained on.
        items = tuple(i for i in items if i.harmful and i.harmless)
    if not items:
        raise UserError(f"{_origin(spec)} holds no usable prompts", "check the file, its columns and the filter")
    title = spec.title or spec.name
    return PromptSet(spec.name, spec.role, items, title, {**source, "licence": spec.licence, "warning": spec.warning})


def load_texts(spec: SetSpec) -> TextSet:
    """Read plain texts (the column `text`), empty lines left out."""
    if spec.source.lab:
        from wpn_bench import lab

        texts = tuple(lab.texts(spec.source.lab))
        return TextSet(spec.name, spec.role, texts, spec.title or spec.name, {"lab": spec.source.lab})
    rows, source = _rows(spec)
    how = spec.columns.get("text", "text")
    found = [_take(row, how) for row in rows]
    texts = tuple(t for t in found if isinstance(t, str) and len(t.strip()) >= spec.min_chars)
    if not texts:
        raise UserError(f"{_origin(spec)} holds no text", "it needs a column `text`")
    return TextSet(spec.name, spec.role, texts, spec.title or spec.name, {**source, "licence": spec.licence})


def _origin(spec: SetSpec) -> str:
    return spec.source.file or spec.source.hub or f"lab:{spec.source.lab}"


def _rows(spec: SetSpec) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if spec.source.lab:
        from wpn_bench import lab

        rows = lab.prompt_set(spec.source.lab)
        source: dict[str, Any] = {"lab": spec.source.lab}
    elif spec.source.hub:
        rows, source = _from_hub(spec.source)
    elif spec.source.file:
        path = Path(os.path.expanduser(spec.source.file))
        rows, source = read_file(path), {"file": shown(path)}
    else:
        raise UserError(f"prompt set {spec.name!r} names no source", "give it one of lab, hub and file")
    return [row for row in rows if _matches(row, spec.where)], source


def _from_hub(source: Source) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from wpn_bench import hub

    assert source.hub is not None
    revision = hub.resolve_revision(source.hub, source.config, source.revision)
    assert revision is not None
    splits = hub.load(source.hub, source.config, revision)
    if source.split not in splits:
        raise UserError(f"the data set {source.hub!r} has no split {source.split!r}", f"it has {', '.join(splits)}")
    return list(splits[source.split]), {
        "hub": source.hub,
        "config": source.config,
        "split": source.split,
        "revision": revision,
    }


def read_file(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .csv (each gzipped or not) or .parquet file. Errors name the line."""
    reader = _READERS.get(Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower())
    if reader is None:
        raise UserError(f"{path} is not .jsonl, .csv or .parquet", "convert it, or rename it to what it is")
    try:
        rows = reader(path)
    except FileNotFoundError as e:
        raise UserError(f"there is no file {path}", "check the path") from e
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path} is not UTF-8 (byte {e.start})", f"convert it, for instance: iconv -f latin1 -t utf-8 {path.name}"
        ) from e
    except (OSError, EOFError, zlib.error) as e:  # the last two: a gzip file that was cut off
        raise UserError(
            f"{path} cannot be read ({getattr(e, 'strerror', None) or e})", "check the file and its permissions"
        ) from e
    except ValueError as e:  # a NUL byte in the path
        raise UserError(f"{str(path)!r} is no path of a file ({e})", "check the path") from e
    if not rows:
        raise UserError(f"{path} is empty", "give a file with at least one row (the first of a CSV names its columns)")
    return rows


def _open(path: Path) -> TextIO:
    """The file as text with its line ends as they are, unpacked where its name ends in .gz."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    opened: TextIO = opener(path, "rt", encoding="utf-8-sig", newline="")
    return opened


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    # Split at line feeds only: JSON strings may hold other characters that str.splitlines() breaks at.
    with _open(path) as f:
        text = f.read()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\u" in line:
                _must_be_text(row)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path} line {number} is not valid JSON ({e})", "mend that line") from e
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object", 'write {"prompt": ...} on every line')
        rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    rows = []
    with _open(path) as f:
        reader = csv.DictReader(f)
        try:
            columns = reader.fieldnames or []
            if twice := [c for c in columns if c and columns.count(c) > 1]:
                raise UserError(f"{path} has two columns {twice[0][:60]!r}", "rename one of them in its first line")
            for row in reader:
                # Texts without a column: a comma in a text without quotes, most likely. Left out, they would be lost.
                if any(row.get(None) or ()):
                    raise UserError(
                        f"{path} line {reader.line_num} has more cells than the first line has columns ({len(columns)})",
                        "put texts that hold commas into double quotes",
                    )
                rows.append({k: _list_or_text(v) for k, v in row.items() if k})
        except csv.Error as e:
            raise UserError(
                f"{path} is not valid CSV (line {reader.line_num}: {e})",
                "save it again as UTF-8 CSV; texts of more than 131,072 characters go into a .jsonl file",
            ) from e
    return rows


def _list_or_text(value: Any) -> Any:
    # A cell may hold several responses as a JSON list.
    if isinstance(value, str) and value.startswith("["):
        try:
            parsed = json.loads(value)
            _must_be_text(parsed)
        except (ValueError, RecursionError):
            return value
        return parsed
    return value


def _must_be_text(value: Any) -> None:
    """`ValueError` for half of an escaped surrogate pair, which is no character: nothing could write it down again."""
    json.dumps(value, ensure_ascii=False).encode()


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except pa.ArrowException as e:
        raise UserError(f"{path} is not a Parquet file ({' '.join(str(e).split())[:120]})", "save it again") from e
    return rows


_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _reach(row: Mapping[str, Any], column: str) -> Any:
    """`a.b` is the field b of the column a; None where it is not there."""
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _take(row: Mapping[str, Any], how: str | Sequence[Pick]) -> Any:
    if isinstance(how, str):
        return _reach(row, how)
    return [_reach(row, p.column) for p in how if _matches(row, p.when)]


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "eq": operator.eq,
}


def _matches(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    for column, wanted in where.items():
        value = _reach(row, column)
        tests = wanted if isinstance(wanted, Mapping) else {"eq": wanted}
        if not set(tests) <= set(_COMPARE):
            raise unknown("comparison", sorted(set(map(str, tests)) - set(_COMPARE))[0], _COMPARE)
        try:
            if value is None or not all(_COMPARE[op](value, bound) for op, bound in tests.items()):
                return False
        except TypeError as e:
            raise UserError(
                f"the filter `{column}: {wanted}` does not fit the value {value!r}", "compare numbers with numbers"
            ) from e
    return True


def _is_texts(value: Any) -> bool:
    """A text, a list of texts, or nothing; a hole in a list counts as nothing."""
    each = value if isinstance(value, (list, tuple)) else [value]
    return all(v is None or isinstance(v, str) for v in each)


def _union(old: tuple[str, ...], new: Any) -> tuple[str, ...]:
    texts = [new] if isinstance(new, str) else list(new or [])
    kept = [t.strip() for t in texts if isinstance(t, str) and t.strip()]
    return tuple(dict.fromkeys([*old, *kept]))


# --- holding back ----------------------------------------------------------------------------------------------------


def split_off(forget: PromptSet, *, name: str, role: Role, share: float) -> tuple[PromptSet, PromptSet]:
    """Take a fixed `share` of a forget set away for validation or testing; the same items in every run."""
    ranked = sorted(forget.items, key=lambda i: digest_of([name, i.id]))
    n = max(1, round(len(ranked) * share))
    if n >= len(ranked):
        raise UserError(
            f"the forget set {forget.name!r} has only {len(ranked)} prompts: too few to hold some back",
            "add prompts, or name the test prompts with --prompts in_domain=FILE",
        )
    taken = {i.id for i in ranked[:n]}
    source = {**forget.source, "held_out_of": forget.name}
    held = PromptSet(name, role, tuple(i for i in forget.items if i.id in taken), name, source)
    return replace(forget, items=tuple(i for i in forget.items if i.id not in taken)), held
