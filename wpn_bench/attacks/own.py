"""Read template attacks from files of the user (`--attack-file`): CSV, TSV, JSON, JSONL or YAML.

Each entry is one attack. An entry has a `template`, an `answer_prefix`, or both. The template contains `{prompt}`, or a
placeholder that published collections use, such as `[INSERT PROMPT HERE]`. Its field may also be called `text` or
`prompt`; the other columns are then ignored. `name`, `title` and `description` are optional. A YAML file contains one
entry, a list of entries, or a mapping of names to entries (see docs/attacks.md).

An entry with the field `attacked` is a ready-made prompt for a single prompt (see `transfer.py`). All of them with the same
`name` are one attack, whose default name is that of the file.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wpn_bench.attacks.base import Attack
from wpn_bench.attacks.registry import all_names
from wpn_bench.attacks.templates import TemplateAttack, TemplateSpec
from wpn_bench.attacks.transfer import ATTACKED, TransferAttack
from wpn_bench.core.paths import display_path
from wpn_bench.core.validation import as_user_error
from wpn_bench.core.yaml_files import load_yaml
from wpn_bench.errors import UserError
from wpn_bench.prompts import WORST_CASE, read_file

FIELDS = ("name", *TemplateSpec.model_fields)
LONGEST = 60  # maximum number of characters of a name, which is printed in tables
MOST_SEARCHED = 1_000_000  # a placeholder is searched in so many characters of a template
MOST = 1_000  # maximum number of {prompt} in a template, because many copies of a long prompt exhaust the memory
# Placeholders of published collections, such as [INSERT PROMPT HERE].
_PLACEHOLDER = re.compile(
    r"[\[<{]{1,2}[a-z_ ]{0,40}(?:prompt|question|query|goal|request|behaviou?r|instruction)[a-z_ ]{0,40}[\]>}]{1,2}",
    re.IGNORECASE,
)
_WORDS = r"(?:prompt|question|query|goal|request|behaviou?r|instruction)"
# The placeholders that are read as {prompt} if a template has no {prompt}.
_PLACE = re.compile(
    rf"\{{\{{?\s*{_WORDS}\s*\}}\}}?|\[\s*(?:insert[ _])?(?:(?:your|the)[ _])?{_WORDS}(?:[ _]here)?\s*\]", re.IGNORECASE
)
_TEMPLATE_NAMES = ("text", "prompt", "jailbreak", "jailbreak_prompt")  # columns of published collections
Entry = tuple[str, str, Mapping[Any, Any]]  # position in the file, default name, fields


def own_attacks(files: Sequence[str]) -> dict[str, Attack]:
    """Return the attacks in all `files` by name. Raises `UserError` with the file, the entry and a hint."""
    found: dict[str, Attack] = {}
    ours = {*all_names(), WORST_CASE}
    for file in files:
        path = Path(os.path.expanduser(file))
        ready: dict[str, TransferAttack] = {}
        for place, default, entry in _entries(path):
            where = f"{path} {place}".strip()
            attack: Attack
            if ATTACKED in entry:
                told = _line(str(entry.get("name") or path.stem[:40]))
                name = _name(where, told)
                attack = ready.get(name) or TransferAttack(name, told, display_path(path))
                attack.add(where, place, entry)
                if name in ready:
                    continue
                ready[name] = attack
            else:
                name, attack = _attack(where, default, entry, display_path(path))
            if name in ours or name in found:
                whose = "an attack of wpn-bench" if name in ours else f"another attack of {found[name].file}"
                raise UserError(f"{where}: {name!r} is already the name of {whose}", "give it another `name`")
            found[name] = attack
        for one in ready.values():
            one.check(str(path))
    return found


def _entries(path: Path) -> Iterator[Entry]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path} is not .csv, .tsv, .json, .jsonl or .yaml", "convert it, or give it the suffix of its format"
        )
    return reader(path)


def _rows(path: Path) -> Iterator[Entry]:
    for number, row in enumerate(read_file(path), 1):
        yield f"row {number}", f"{path.stem[:40]}-{number}", row


def _yaml(path: Path) -> Iterator[Entry]:
    raw = load_yaml(path)
    if not raw or not isinstance(raw, (dict, list)):
        raise UserError(
            f"{path} contains no attacks", f"write a mapping with the fields {', '.join(FIELDS)}, or a list of them"
        )
    if isinstance(raw, list):
        for number, entry in enumerate(raw, 1):
            yield f"entry {number}", f"{path.stem[:40]}-{number}", _mapping(path, f"entry {number}", entry)
    elif all(isinstance(entry, dict) for entry in raw.values()):
        for name, entry in raw.items():
            yield f"entry {str(name)[:LONGEST]!r}", str(name), entry
    else:
        yield "", path.stem[:40], raw


_READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".csv": _rows,
    ".tsv": _rows,
    ".json": _rows,
    ".jsonl": _rows,
    ".yaml": _yaml,
    ".yml": _yaml,
}


def _mapping(path: Path, where: str, entry: Any) -> Mapping[Any, Any]:
    if not isinstance(entry, dict):
        raise UserError(f"{path} {where} is not a mapping", f"write its fields: {', '.join(FIELDS)}")
    return entry


def _attack(where: str, default: str, entry: Mapping[Any, Any], file: str) -> tuple[str, TemplateAttack]:
    """Check an entry. Returns its name, reduced to the characters that are allowed in results, and the attack."""
    given, read_as = _fields(where, entry)
    told = _line(str(given.pop("name", default)))
    name = _name(where, told)
    with as_user_error(where, _way_out(given.get("template"))):
        spec = TemplateSpec.model_validate({"title": told, "description": f"An attack of {file}.", **given})
    if spec.template.count("{prompt}") > MOST:
        raise UserError(f"{where}: the template contains {{prompt}} more than {MOST:,} times", "write it once")
    clean = {"title": _line(spec.title), "description": _line(spec.description)}
    return name, TemplateAttack(name, spec.model_copy(update=clean), file, read_as)


def _name(where: str, told: str) -> str:
    """Reduce a name to the characters that are allowed in results."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", told).strip("-._")
    if not name or len(name) > LONGEST:
        raise UserError(
            f"{where}: {told[:LONGEST]!r} cannot be a name, because it has {len(name)} letters, digits, '.', '_' and '-'",
            f"give it a `name` with 1 to {LONGEST} of these characters",
        )
    return name


def _fields(where: str, entry: Mapping[Any, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the fields that are set, and what was read as template and as {prompt}, or None.

    An empty cell or null counts as missing.
    """
    given = {str(key): value for key, value in entry.items() if value not in (None, "")}
    strange = [key[:LONGEST] for key in map(str, entry) if key not in FIELDS]
    read_as = []
    texts = [key for key in given if key.casefold() in _TEMPLATE_NAMES]
    if "template" not in given and texts:
        if len(texts) > 1:
            raise UserError(
                f"{where} has several texts that could be the template: {texts[0]!r} and {texts[1]!r}",
                f"rename one of these columns to `template`, or to `{ATTACKED}` if it is the attacked text of the prompt in `prompt`",
            )
        given["template"] = given[texts[0]]
        read_as.append(f"the column {texts[0]!r}")
        # The other columns of a collection are left out, but not a misspelt field.
        strange = [key for key in strange if difflib.get_close_matches(key, FIELDS, cutoff=0.75)]
        given = {key: value for key, value in given.items() if key in FIELDS}
    template = given.get("template")
    if isinstance(template, str) and "{prompt}" not in template:
        places = list(dict.fromkeys(found[0] for found in _PLACE.finditer(template[:MOST_SEARCHED])))
        if len(places) > 1:
            raise UserError(
                f"{where}: the template has several placeholders for the question: {' and '.join(places)[:200]}",
                "write {prompt} in the place where the question goes",
            )
        if places:
            given["template"] = template.replace(places[0], "{prompt}")
            read_as.append(f"{places[0]} as {{prompt}}")
    if strange or not given.keys() & {"template", "answer_prefix", "turns"}:
        problem = f"has the unknown field {strange[0]!r}" if strange else "has neither template nor answer_prefix"
        raise UserError(
            f"{where} {problem} (fields: {', '.join(map(str, entry))[:200]})",
            "call the text around the question `template`, with {prompt} where the question goes; other fields may be "
            + ", ".join(f for f in FIELDS if f != "template"),
        )
    if not isinstance(given.get("name", ""), (str, int)):
        raise UserError(f"{where}: name: Input should be a valid string", "write a text")
    return given, ", ".join(read_as) or None


def _way_out(template: Any) -> str:
    """Return the hint for a wrong template. If it has a known placeholder instead of {prompt}, the hint names it."""
    if isinstance(template, str) and "{prompt}" not in template and (seen := _PLACEHOLDER.search(template)):
        return f"write {{prompt}} in the place of {seen[0][:LONGEST]}"
    return "see docs/attacks.md for examples"


def _line(text: str) -> str:
    """Return the text on one line, without unprintable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
