"""Read prompt sets and texts from declarations in `tasks/prompts/`, files of the user, the hub, or the lab data."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from wpn_bench.core.files import digest_of
from wpn_bench.core.paths import display_path, tasks_dir
from wpn_bench.core.registry import unknown_name
from wpn_bench.core.validation import as_user_error
from wpn_bench.core.yaml_files import load_yaml
from wpn_bench.errors import UserError
from wpn_bench.prompts.columns import choose_columns, companion_of, value_of
from wpn_bench.prompts.csv_cells import looks_like_list
from wpn_bench.prompts.tables import READERS, read_file
from wpn_bench.prompts.types import Item, Kind, PromptSet, Refusal, Role, TextSet, item_id
from wpn_bench.redact import redact_secrets


class Pick(BaseModel):
    """A column that is read only from rows in which other columns have the given values."""

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
    """The declaration of a prompt set or text set, as in the YAML files of `tasks/prompts/`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str = ""
    role: Role
    kind: Kind = "question"
    refusal: Refusal | None = Field(
        None,
        description="whether a refusal of these prompts is right, wrong, or as good as another harmless answer (either);"
        " by default wrong for benign prompts, and either for all others",
    )
    source: Source
    columns: dict[str, str | list[Pick]] = {
        "prompt": "prompt",
        "harmful": "harmful",
        "harmless": "harmless",
        "group": "group",
    }
    find_columns: bool = Field(
        False, description="whether columns that `columns` does not name are found by their usual names"
    )
    where: dict[str, Any] = Field(default_factory=dict)
    min_chars: int = Field(1, ge=1, description="shorter texts, such as headings, are left out")
    licence: str = ""
    citation: str = ""
    warning: str = ""

    @property
    def refusals(self) -> Refusal:
        """Return whether a refusal of these prompts is right, with the default of the role."""
        return self.refusal or ("wrong" if self.role == "benign" else "either")


def declared() -> dict[str, Path]:
    """Return the file of each set declared in `tasks/prompts/`, by the name of the set."""
    return {p.stem: p for p in sorted((tasks_dir() / "prompts").glob("*.yaml"))}


def read_spec(path: Path) -> SetSpec:
    """Read one declaration. If a field is wrong, the `UserError` names it."""
    with as_user_error(str(path), "see tasks/prompts/ for examples"):
        return SetSpec.model_validate(load_yaml(path))


def spec_for(
    name_or_file: str, *, role: Role, kind: Kind, name: str | None = None, columns: Mapping[str, str] | None = None
) -> SetSpec:
    """Return the specification of a set that a user named.

    Args:
        name_or_file: Name of a declared set, a declaration file (.yaml), or a data file (.jsonl, .json, .csv, .tsv,
            .parquet).
        role: What the set is used for.
        kind: Kind of the prompts in a data file.
        name: Name of the set in results; None uses the declared name or the name of the data file.
        columns: Column of a data file for each field. Columns that are not given are found by their usual names.

    Returns:
        The specification.

    Raises:
        UserError: There is no such set, or the declaration is not valid.
    """
    known = declared()
    if not name_or_file.strip():
        raise unknown_name("prompt set", name_or_file, known)
    if name_or_file in known:
        spec = read_spec(known[name_or_file])
        return spec.model_copy(update={"role": role, "name": name or spec.name})
    # Path.exists would raise for a name that is too long for a file, such as a prompt typed by mistake.
    path = Path(os.path.expanduser(name_or_file))
    if path.suffix in {".yaml", ".yml"}:
        spec = read_spec(path)
        return spec.model_copy(update={"role": role, "name": name or spec.name})
    if path.suffix.lower() in READERS or os.path.exists(path) or "/" in name_or_file:
        return SetSpec(
            name=name or redact_secrets(path.stem),
            role=role,
            kind=kind,
            source=Source(file=str(path)),
            columns=dict(columns or {}),
            find_columns=True,
        )
    raise unknown_name("prompt set", name_or_file, known)


def load_prompts(spec: SetSpec) -> PromptSet:
    """Read a prompt set. Rows with the same prompt are merged into one item.

    Raises:
        UserError: A row is not valid, or no usable prompts are left. The message names the row.
    """
    rows, source = _rows(spec)
    columns = _columns_of(spec, rows, ("prompt", "harmful", "harmless", "group"), source)
    companion = _companion(spec, rows, columns, source)
    need = {"prompt", "harmful", "harmless"} if spec.role == "forget" else {"prompt"}
    merged: dict[str, Item] = {}
    groups: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{_origin(spec)} row {number}"
        values = {name: value_of(name, _take(row, how), where) for name, how in columns.items() if name != "group"}
        missing = sorted(name for name in need if values.get(name) is None)
        if missing:
            raise UserError(
                f"{_origin(spec)} row {number} has no {' and no '.join(repr(m) for m in missing)}"
                f" (columns: {', '.join(str(column)[:60] for column in row)[:300]})",
                "a forget set needs prompt, harmful and harmless, and other sets need prompt; name the columns, for"
                " instance: --columns prompt=goal,harmful=target (docs/inputs.md)",
            )
        prompt = values["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            hint = "mend or remove the row"
            if isinstance(prompt, Mapping) and (inner := [k for k, v in prompt.items() if isinstance(v, str)]):
                hint = f"name the text inside it: --columns prompt={columns['prompt']}.{inner[0][:60]}"
            raise UserError(f"{_origin(spec)} row {number}: the prompt is empty or not text", hint)
        if companion and isinstance(other := row.get(companion[0]), str) and other.strip():
            prompt = companion[1].replace("{other}", other.strip()).replace("{prompt}", prompt, 1)
        for name in ("harmful", "harmless"):
            if _is_texts(values.get(name)):
                if spec.source.file and _is_csv(spec.source.file):
                    _refuse_lists(values.get(name), f"{where}: {name!r}")
                continue
            if name in need:
                raise UserError(
                    f"{_origin(spec)} row {number}: {name!r} is not a text or a list of texts",
                    "correct or remove the row",
                )
            values[name] = None  # the column may hold labels, and only forget sets need responses
        kind = row.get("kind") if row.get("kind") in ("question", "continuation") else spec.kind
        key = item_id(prompt)
        old = merged.get(key, Item(key, prompt, str(kind)))
        merged[key] = replace(
            old,
            harmful=_union(old.harmful, values.get("harmful")),
            harmless=_union(old.harmless, values.get("harmless")),
        )
        group = _take(row, columns["group"]) if "group" in columns else None
        if isinstance(group, (str, int, float)) and str(group).strip():
            groups.setdefault(key, str(group).strip())
    items = tuple(merged.values())
    if spec.role == "forget":
        # Training needs a harmful and a harmless response to each prompt.
        items = tuple(i for i in items if i.harmful and i.harmless)
    if not items:
        raise UserError(f"{_origin(spec)} contains no usable prompts", "check the file, its columns and the filter")
    title = spec.title or spec.name
    about = {**source, "licence": spec.licence, "warning": spec.warning}
    return PromptSet(spec.name, spec.role, items, title, about, len(merged) - len(items), spec.refusals, groups)


def load_texts(spec: SetSpec) -> TextSet:
    """Read plain texts from the column `text`. Empty and too short texts are left out."""
    if spec.source.lab:
        from wpn_bench import lab

        texts = tuple(lab.texts(spec.source.lab))
        return TextSet(spec.name, spec.role, texts, spec.title or spec.name, {"lab": spec.source.lab})
    rows, source = _rows(spec)
    how = _columns_of(spec, rows, ("text",), source).get("text", "text")
    found = [_take(row, how) for row in rows]
    texts = tuple(t for t in found if isinstance(t, str) and len(t.strip()) >= spec.min_chars)
    if not texts:
        raise UserError(
            f"{_origin(spec)} contains no text in the column {how if isinstance(how, str) else 'text'!r}"
            f" (columns: {', '.join(str(column)[:60] for column in (rows[0] if rows else ()))[:300]})",
            "name the column of the texts, for instance: --columns text=body",
        )
    return TextSet(spec.name, spec.role, texts, spec.title or spec.name, {**source, "licence": spec.licence})


def _columns_of(
    spec: SetSpec, rows: Sequence[Mapping[str, Any]], fields: Sequence[str], source: dict[str, Any]
) -> dict[str, str | list[Pick]]:
    """Return the columns to read.

    Columns that are not named like their fields are recorded in `source` for the results.
    """
    if not spec.find_columns:
        return spec.columns
    given = {field: column for field, column in spec.columns.items() if isinstance(column, str)}
    chosen = choose_columns(rows, given, fields, _origin(spec))
    if other := {field: column for field, column in chosen.items() if field != column}:
        source["columns"] = other
        if (
            "prompt" in other
            and "prompt" not in given
            and (other["prompt"] in (other.get("harmful"), other.get("harmless")))
        ):
            source["columns"]["prompt"] = f"{other['prompt']} (the user's turn)"
    return {**chosen}


def _companion(
    spec: SetSpec, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any], source: dict[str, Any]
) -> tuple[str, str] | None:
    """The column of a text that belongs to each prompt, with the form of both; None if the user named the prompt's column."""
    column = columns.get("prompt")
    if not spec.find_columns or "prompt" in spec.columns or not isinstance(column, str):
        return None
    found = companion_of(column, list(dict.fromkeys(str(name) for row in rows for name in row)))
    if found and any(isinstance(row.get(found[0]), str) and row[found[0]].strip() for row in rows):
        source["columns"] = source.get("columns", {}) | {"prompt": f"{column} with {found[0]}"}
        return found
    return None


def _is_csv(file: str) -> bool:
    return file.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def _refuse_lists(value: Any, where: str) -> None:
    """Raise `UserError` for a cell that looks like a list and could not be read as one."""
    for text in [value] if isinstance(value, str) else []:
        if looks_like_list(text):
            raise UserError(
                f"{where} looks like a list but cannot be read as one ({text[:40]!r})",
                'write JSON lists (["one", "two"]) into the cells, or save the data as .jsonl or .parquet',
            )


def _origin(spec: SetSpec) -> str:
    return spec.source.file or spec.source.hub or f"lab:{spec.source.lab}"


def _rows(spec: SetSpec) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if spec.source.lab:
        from wpn_bench import lab

        rows = lab.grouped_prompt_set(spec.source.lab)
        source: dict[str, Any] = {"lab": spec.source.lab}
    elif spec.source.hub:
        rows, source = _from_hub(spec.source)
    elif spec.source.file:
        path = Path(os.path.expanduser(spec.source.file))
        rows, source = read_file(path), {"file": display_path(path)}
    else:
        raise UserError(f"prompt set {spec.name!r} has no source", "add one of lab, hub and file to its declaration")
    return [row for row in rows if _matches(row, spec.where)], source


def _from_hub(source: Source) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from wpn_bench import hub

    assert source.hub is not None
    revision = hub.resolve_revision(source.hub, source.config, source.revision)
    assert revision is not None
    splits = hub.load_dataset(source.hub, source.config, revision)
    if source.split not in splits:
        raise UserError(f"the data set {source.hub!r} has no split {source.split!r}", f"it has {', '.join(splits)}")
    return list(splits[source.split]), {
        "hub": source.hub,
        "config": source.config,
        "split": source.split,
        "revision": revision,
    }


def _reach(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, or None if it does not exist. `a.b` is the field b of the column a."""
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
            raise unknown_name("comparison", sorted(set(map(str, tests)) - set(_COMPARE))[0], _COMPARE)
        try:
            if value is None or not all(_COMPARE[op](value, bound) for op, bound in tests.items()):
                return False
        except TypeError as e:
            raise UserError(
                f"the filter `{column}: {wanted}` cannot be compared with the value {value!r}", "compare only numbers"
            ) from e
    return True


def _is_texts(value: Any) -> bool:
    each = value if isinstance(value, (list, tuple)) else [value]
    return all(v is None or isinstance(v, str) for v in each)


def _union(old: tuple[str, ...], new: Any) -> tuple[str, ...]:
    texts = [new] if isinstance(new, str) else list(new or [])
    kept = [t.strip() for t in texts if isinstance(t, str) and t.strip()]
    return tuple(dict.fromkeys([*old, *kept]))


def split_off(forget: PromptSet, *, name: str, role: Role, share: float) -> tuple[PromptSet, PromptSet]:
    """Move a fixed share of a forget set into a new validation or test set. Every run moves the same items.

    Args:
        forget: The forget set.
        name: Name of the new set.
        role: Role of the new set.
        share: Share of the prompts to move, between 0 and 1. At least one prompt is moved.

    Returns:
        The rest of the forget set, and the new set.

    Raises:
        UserError: No prompts would remain in the forget set.
    """
    ranked = sorted(forget.items, key=lambda i: digest_of([name, i.id]))
    n = max(1, round(len(ranked) * share))
    if n >= len(ranked):
        raise UserError(
            f"the forget set {forget.name!r} has only {len(ranked)} prompts, too few to hold some back for testing",
            "add prompts, or give the test prompts with --prompts in_domain=FILE",
        )
    taken = {i.id for i in ranked[:n]}
    source = {**forget.source, "held_out_of": forget.name}
    items = tuple(i for i in forget.items if i.id in taken)
    held = PromptSet(name, role, items, name, source, refusal=forget.refusal, groups=forget.groups)
    return replace(forget, items=tuple(i for i in forget.items if i.id not in taken)), held
