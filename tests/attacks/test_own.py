"""Attacks of a user's own files: what is read from them, and what is said of those that cannot be."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wpn_bench.attacks import AttackContext, attacked, get_attack, own_attacks
from wpn_bench.errors import UserError
from wpn_bench.prompts import Item, PromptSet, Template, load_prompts, spec_for
from wpn_bench.prompts.templates import QUESTION_TEMPLATE

TEMPLATE = Template.parse(QUESTION_TEMPLATE)
ITEM = Item("1", "Who {sells} apples?")
SET = PromptSet("in_domain", "in_domain", (ITEM,), source={"lab": "in_domain"})
Write = Callable[[Path, list[Any]], Path]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def prompt_under(name: str, *files: str) -> str:
    context = AttackContext(TEMPLATE, own=own_attacks(files))
    return attacked(SET, name, context).items[0].prompt


# --- what is read ----------------------------------------------------------------------------------------------------


def test_a_csv(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    with file.open("w", encoding="utf-8-sig", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["name", "template", "title", "answer_prefix"])
        writer.writerow(["AIM", 'Say "yes", then:\n{prompt}', "Always", ""])
        writer.writerow(["", "{prompt} Now!", "", "Sure,"])
        writer.writerow(["prefix only", "", "", "Of course:"])
    got = own_attacks([str(file)])
    assert list(got) == ["AIM", "mine-2", "prefix-only"]
    assert (got["AIM"].title, got["mine-2"].title, got["prefix-only"].title) == ("Always", "mine-2", "prefix only")
    item = got["AIM"].apply(ITEM, AttackContext(TEMPLATE))
    assert (item.prompt, item.answer_prefix) == ('Say "yes", then:\nWho {sells} apples?', "")
    item = got["prefix-only"].apply(ITEM, AttackContext(TEMPLATE))
    assert (item.prompt, item.answer_prefix) == (ITEM.prompt, "Of course:")


def test_jsonl(tmp_path: Path, write_jsonl: Write) -> None:
    rows = [{"template": "ПРИВЕТ 🙂 {prompt}", "title": None}, {"name": "b", "template": "{prompt} {prompt}"}]
    file = str(write_jsonl(tmp_path / "x.jsonl", rows))
    assert prompt_under("x-1", file) == f"ПРИВЕТ 🙂 {ITEM.prompt}"
    assert prompt_under("b", file) == f"{ITEM.prompt} {ITEM.prompt}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("template: 'A {prompt}'\n", {"mine": "A "}),
        ("name: one\ntitle: t\ndescription: d\ntemplate: 'A {prompt}'\n", {"one": "A "}),
        ("- template: 'A {prompt}'\n- {name: two, template: 'B {prompt}'}\n", {"mine-1": "A ", "two": "B "}),
        ("one: {template: 'A {prompt}'}\n2: {template: 'B {prompt}'}\n", {"one": "A ", "2": "B "}),
        ("\ufeff# with a byte order mark\ntemplate: 'A {prompt}'\n", {"mine": "A "}),
    ],
)
def test_yaml(tmp_path: Path, content: str, expected: dict[str, str]) -> None:
    for suffix in (".yaml", ".yml"):
        file = write(tmp_path / f"mine{suffix}", content)
        assert list(own_attacks([file])) == list(expected)
        for name, before in expected.items():
            assert prompt_under(name, file) == before + ITEM.prompt


def test_a_template_file_of_ours_can_be_a_users(tmp_path: Path) -> None:
    from wpn_bench.core.paths import tasks_dir

    text = (tasks_dir() / "attacks" / "role_play.yaml").read_text()
    assert prompt_under("grum", write(tmp_path / "grum.yaml", text)) == prompt_under("role_play")


def test_several_files_and_names_that_are_safe_in_results(tmp_path: Path) -> None:
    one = write(tmp_path / "ein Ölbild.jsonl", '{"template": "A {prompt}"}\n')
    two = write(tmp_path / "b.yaml", '"../DAN / v1\\u202e.0\\e[31m": {template: "B {prompt}"}\n')
    got = own_attacks([one, two])
    assert list(got) == ["ein-lbild-1", "DAN-v1-.0-31m"]
    assert [a.title for a in got.values()] == ["ein Ölbild-1", "../DAN / v1 .0 [31m"]
    assert [a.file for a in got.values()] == ["ein Ölbild.jsonl", "b.yaml"]


def test_the_set_says_which_file_without_its_folder_and_is_known_by_its_text(tmp_path: Path) -> None:
    def under(folder: str, template: str) -> PromptSet:
        (tmp_path / folder).mkdir(exist_ok=True)
        file = write(tmp_path / folder / "mine.yaml", json.dumps({"template": template}))
        return attacked(SET, "mine", AttackContext(TEMPLATE, own=own_attacks([file])))

    first = under("a", "A {prompt}")
    assert first.source == {"lab": "in_domain", "attack": "mine", "on": "in_domain", "attack_file": "mine.yaml"}
    assert under("b", "A {prompt}").digest == first.digest
    assert under("a", "B {prompt}").digest != first.digest


def test_ours_and_the_users_are_found_by_name(tmp_path: Path) -> None:
    own = own_attacks([write(tmp_path / "mine.yaml", "template: 'A {prompt}'\n")])
    assert get_attack("mine", own) is own["mine"]
    assert get_attack("typos", own).name == "typos"
    with pytest.raises(UserError, match="unknown attack 'mien'; did you mean 'mine'"):
        get_attack("mien", own)


PLACES = [
    "{query}", "{goal}", "{question}", "{{ prompt }}", "{{question}}", "{Prompt}", "[INSERT PROMPT HERE]",
    "[INSERT_PROMPT_HERE]", "[insert your question here]", "[PROMPT]", "[GOAL]", "[INSERT PROMPT]",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_the_places_of_published_templates(tmp_path: Path, write_jsonl: Write, place: str) -> None:
    file = str(write_jsonl(tmp_path / "x.jsonl", [{"template": f"Do {place}! Again: {place} {{x}}"}]))
    assert prompt_under("x-1", file) == f"Do {ITEM.prompt}! Again: {ITEM.prompt} {{x}}"
    assert place in (own_attacks([file])["x-1"].read_as or "")


def test_other_places_are_text_beside_prompt(tmp_path: Path, write_jsonl: Write) -> None:
    file = str(write_jsonl(tmp_path / "x.jsonl", [{"template": "{goal} [PROMPT] {prompt}"}]))
    assert prompt_under("x-1", file) == f"{{goal}} [PROMPT] {ITEM.prompt}"
    assert own_attacks([file])["x-1"].read_as is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("GPTFuzzer.csv", 'index,text\n0,"Well, do it: [INSERT PROMPT HERE]"\n'),
        ("GPTFuzzer.csv", "platform;prompt;jailbreak_score\nx;Well, do it: [INSERT PROMPT HERE];4\n"),
        ("GPTFuzzer.tsv", "text\tid\nWell, do it: {query}\t7\n"),
        ("GPTFuzzer.json", '[{"text": "Well, do it: {goal}", "votes": 3}]'),
    ],
)
def test_published_collections(tmp_path: Path, name: str, content: str) -> None:
    assert prompt_under("GPTFuzzer-1", write(tmp_path / name, content)) == f"Well, do it: {ITEM.prompt}"


# --- what cannot be --------------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join([f'*{o}'] * 9)}]\n" for o, n in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{n}: &{n} {{<<: [{', '.join([f'*{o}'] * 9)}]}}\n" for o, n in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = [
    # name, content, what is wrong, the way out
    ("x.csv", "name,prompt,text\nDAN,Do: {prompt},x\n", "row 1 has several texts that could be the template: 'prompt' and 'text'", "rename one of these columns to `template`"),
    ("x.csv", "text,answer_prefx\nDo: {prompt},Sure\n", "row 1 has the unknown field 'answer_prefx'", "answer_prefix"),
    ("x.csv", "template\nDo: <the user's question>\n", "row 1: template: the template must contain {prompt}", "docs/attacks.md"),
    ("x.csv", "template\nDo: <your prompt>\n", "row 1: template: the template must contain {prompt}", "write {prompt} in the place of <your prompt>"),
    ("x.csv", "template\nDo {goal}: [INSERT PROMPT HERE]\n", "row 1: the template has several placeholders for the question: {goal} and [INSERT PROMPT HERE]", "write {prompt}"),
    ("x.jsonl", json.dumps({"template": "[" + "prompt" * 200_000}), "row 1: template: the template must contain {prompt}", "docs/attacks.md"),
    ("x.csv", "Do it now: {prompt}\nAgain: {prompt}\n", "row 1 has the unknown field 'Do it now: {prompt}'", "call the text around the question `template`"),
    ("x.csv", "Do it now: {prompt}\n", "x.csv is empty", "the first line of a CSV file only names its columns"),
    ("x.csv", "name,template\na,Well, do it: {prompt}\n", "line 2 has more cells than the first line has columns (2)", "double quotes"),
    ("x.csv", "name,template\nonly a name\n", "row 1 has neither template nor answer_prefix", "`template`"),
    ("x.csv", "template,template\nA {prompt},B {prompt}\n", "two columns named 'template'", "rename"),
    ("x.csv", "name/template\na/A {prompt}\n", "row 1 has the unknown field 'name/template'", "`template`"),
    ("x.csv", b"template\ncaf\xe9 {prompt}\n", "is not UTF-8 (byte 12)", "iconv"),
    ("x.csv", "template\n{prompt} now\n".encode("utf-16-le"), "UTF-16 without a byte order mark", "iconv"),
    ("x.csv", "template\n{prompt}\n", "row 1: the template is only {prompt} and there is no answer_prefix", "docs/attacks.md"),
    ("x.csv", 'template\n["A {prompt}"]\n', "row 1: template: Input should be a valid string", "docs/attacks.md"),
    ("x.csv", "", "x.csv is empty", "at least one row"),
    ("x.jsonl", '{"template": 5}\n', "row 1: template: Input should be a valid string", "docs/attacks.md"),
    ("x.jsonl", '{"template": ["A {prompt}"]}\n', "row 1: template: Input should be a valid string", "docs/attacks.md"),
    ("x.jsonl", '{"template": null, "name": "n"}\n', "row 1 has neither template nor answer_prefix", "`template`"),
    ("x.jsonl", '{"template": "A {prompt}", "name": ["n"]}\n', "row 1: name: Input should be a valid string", "write a text"),
    ("x.jsonl", '{"template": "A {prompt}", "answer_prefx": "y"}\n', "row 1 has the unknown field 'answer_prefx'", "answer_prefix"),
    ("x.jsonl", '{"template": "A {prompt} \\ud83d"}\n', "line 1 is not valid JSON", "correct this line"),
    ("x.jsonl", "[" * 99_999, "line 1 is not valid JSON", "correct this line"),
    ("x.jsonl", '{"template": "A {prompt}", "name": "..."}\n', "row 1: '...' cannot be a name", "give it a `name`"),
    ("x.jsonl", '{"template": "A {prompt}", "name": "' + "n" * 61 + '"}\n', "cannot be a name", "1 to 60"),
    ("x.jsonl", '{"template": "A {prompt}", "name": "typos"}\n', "row 1: 'typos' is already the name of an attack of wpn-bench", "another `name`"),
    ("x.jsonl", '{"template": "A {prompt}", "name": "a b"}\n{"template": "B {prompt}", "name": "a-b"}\n', "row 2: 'a-b' is already the name of another attack of x.jsonl", "another `name`"),
    ("x.jsonl", json.dumps({"template": "{prompt}" * 1001}), "row 1: the template contains {prompt} more than 1,000 times", "write it once"),
    ("typos.yaml", "template: 'A {prompt}'\n", "'typos' is already the name of an attack of wpn-bench", "`name`"),
    ("x.yaml", "", "contains no attacks", "write a mapping with the fields"),
    ("x.yaml", "just text\n", "contains no attacks", "write a mapping with the fields"),
    ("x.yaml", "[]\n", "contains no attacks", "write a mapping with the fields"),
    ("x.yaml", "- A {prompt}\n", "entry 1 is not a mapping", "template"),
    ("x.yaml", "- template: A {prompt}\n- null\n", "entry 2 is not a mapping", "template"),
    ("x.yaml", "a: {template: no place}\n", "entry 'a': template: the template must contain {prompt}", "docs/attacks.md"),
    ("x.yaml", "a: {}\n", "entry 'a' has neither template nor answer_prefix", "`template`"),
    ("x.yaml", "a: {template: 'A {prompt}'}\na: {template: 'B {prompt}'}\n", "duplicate key 'a'", "fix the YAML"),
    ("x.yaml", "template: 'A {prompt}'\ntemplat: x\n", "has the unknown field 'templat'", "`template`"),
    ("x.yaml", "template: 3\n", "template: Input should be a valid string", "docs/attacks.md"),
    ("x.yaml", "template: {a: b}\nname: x\n", "template: Input should be a valid string", "docs/attacks.md"),
    ("x.yaml", "template: !!python/object/apply:os.system ['true']\n", "could not determine a constructor for the tag", "fix the YAML"),
    ("x.yaml", "template: !!int x\n", "x.yaml cannot be read", "fix the YAML"),
    ("x.yaml", "template: !!timestamp x\n", "x.yaml cannot be read", "fix the YAML"),
    ("x.yaml", "template: !!bool x\n", "x.yaml cannot be read", "fix the YAML"),
    ("x.yaml", "template: 2024-13-45\n", "x.yaml cannot be read", "fix the YAML"),
    ("x.yaml", 'template: "A {prompt} \\ud83d"\n', "x.yaml cannot be read", "fix the YAML"),
    ("x.yaml", "template: 'A\0{prompt}'\n", "special characters are not allowed", "fix the YAML"),
    ("x.yaml", "[" * 1500, "x.yaml cannot be read", "fix the YAML"),
    ("x.yaml", BOMB, "aliases are not supported", "fix the YAML"),
    ("x.yaml", MERGES, "aliases are not supported", "fix the YAML"),
    ("x.yaml", "a: &a [*a]\n", "aliases are not supported", "fix the YAML"),
    ("x.yaml", b"template: caf\xe9 {prompt}\n", "is not UTF-8", "iconv"),
    ("x.txt", "A {prompt}\n", "x.txt is not .csv, .tsv, .json, .jsonl or .yaml", "convert it"),
    ("x.parquet", "PAR1", "x.parquet is not .csv, .tsv, .json, .jsonl or .yaml", "convert it"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "problem", "hint"), BAD, ids=range(len(BAD)))
def test_bad_files_are_named_with_the_place(
    tmp_path: Path, name: str, content: str | bytes, problem: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        own_attacks([write(tmp_path / name, content)])
    assert name in caught.value.problem
    assert problem in caught.value.problem
    assert hint in caught.value.hint
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "name", ["folder.csv", "folder.yaml", "gone.csv", "gone.yaml", "folder.jsonl", "nul\0.csv", "nul\0.yaml"]
)
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"there is no file|cannot be read|not a valid path"):
        own_attacks([str(tmp_path / name)])


def test_the_same_file_twice(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", "template: 'A {prompt}'\n")
    with pytest.raises(UserError, match=r"'mine' is already the name of another attack of mine\.yaml"):
        own_attacks([file, file])


def test_a_long_template_and_control_characters_are_text(tmp_path: Path, write_jsonl: Write) -> None:
    long = "x" * 1_000_000 + " {prompt}"
    rows = [{"template": long}, {"template": "\x00\x1b[2J\u202e {prompt}", "title": "\x1b[2J\u202etitle\n"}]
    file = str(write_jsonl(tmp_path / "x.jsonl", rows))
    assert len(prompt_under("x-1", file)) == 1_000_001 + len(ITEM.prompt)
    assert prompt_under("x-2", file) == f"\x00\x1b[2J\u202e {ITEM.prompt}"
    assert own_attacks([file])["x-2"].title == "[2J title"


# --- whatever the file holds: a value or a `UserError` ---------------------------------------------------------------

LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["A {prompt}", "name"])
)
FIELD = st.sampled_from(["name", "template", "title", "description", "answer_prefix", "prompt", "harmful", "source"])
VALUE = st.recursive(LEAF, lambda v: st.lists(v, max_size=3) | st.dictionaries(FIELD | st.text(max_size=5), v, max_size=4), max_leaves=12)  # fmt: skip
YAML_BITS = st.lists(
    st.sampled_from(
        ["template", ": ", "{prompt}", "\n", "  ", "- ", "&a ", "*a", "!!int ", "!!set ", "!x ", "|", ">", "'", '"', "[", "]",
         "{", "}", "<<: ", "? ", "%YAML 1.1\n", "---\n", "...", "0o9", "2024-99-99", "1:99", ".inf", "\\ud800", "=", "~", "\t"]
    ),
    max_size=14,
).map("".join)  # fmt: skip
CONTENT = (
    st.binary(max_size=80)
    | VALUE.map(lambda v: json.dumps(v).encode())
    | st.lists(VALUE.map(json.dumps), max_size=3).map(lambda rows: "\n".join(rows).encode())
    | YAML_BITS.map(str.encode)
    | st.text("abc,;\"'\n\r\0[]{}", max_size=40).map(lambda t: f"template,name\n{t}".encode())
    | st.lists(VALUE.map(str), max_size=4).map(
        lambda rows: "\n".join(["prompt,harmful", *rows]).encode(errors="replace")
    )
)


def read_attacks(file: Path) -> None:
    for name, attack in own_attacks([str(file)]).items():
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,60}", name)
        assert ITEM.prompt in attack.apply(ITEM, AttackContext(TEMPLATE)).prompt
        assert attack.title.isprintable()
        json.dumps([attack.title, attack.description], ensure_ascii=False).encode()


def read_prompts(file: Path) -> None:
    for role in ("forget", "ood"):
        for item in load_prompts(spec_for(str(file), role=role, kind="question")).items:  # type: ignore[arg-type]
            item.prompt.encode()


@pytest.mark.parametrize(
    ("read", "suffix"),
    [(read_attacks, s) for s in (".csv", ".jsonl", ".yaml")]
    + [(read_prompts, s) for s in (".csv", ".jsonl", ".yaml", ".parquet")],
)
@settings(deadline=None, max_examples=100)
@given(content=CONTENT)
@pytest.mark.slow
def test_any_file_is_a_value_or_a_user_error(read: Callable[[Path], None], suffix: str, content: bytes) -> None:
    said = None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"x{suffix}"
        file.write_bytes(content)
        try:
            read(file)
        except UserError as e:
            said = e
    if said is not None:
        assert said.hint
        assert file.name in said.problem or "prompt set" in said.problem
        assert len(str(said)) < 1000
