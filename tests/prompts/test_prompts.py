from __future__ import annotations

import csv
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer
from hypothesis import given, settings
from hypothesis import strategies as st

from wpn_bench.errors import UserError
from wpn_bench.prompts import (
    Item,
    PromptSet,
    SetSpec,
    Source,
    TextSet,
    declared,
    item_id,
    load_prompts,
    load_texts,
    normalise,
    read_file,
    read_spec,
    spec_for,
    split_off,
)
from wpn_bench.prompts.items import item_row, read_items, write_rows

Write = Callable[[Path, list[Any]], Path]
# Everything that JSON strings can hold and UTF-8 can write; the line separators that str.splitlines() breaks at.
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.text(
    alphabet='ab\u2028\u2029\x85\x1c\x0b\x0c\r\n\t"\\{}\u200b\ufeff'
)


def load(path: Path, role: str = "ood", **spec: Any) -> PromptSet:
    found = spec_for(str(path), role=role, kind="question")  # type: ignore[arg-type]
    return load_prompts(found.model_copy(update=spec))


def forget_set(n: int = 20, name: str = "forget") -> PromptSet:
    items = [Item(item_id(f"prompt {k}"), f"prompt {k}", harmful=("h",), harmless=("y",)) for k in range(n)]
    return PromptSet(name, "forget", tuple(items))


# --- whether a refusal is right -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "declared_as", "found"),
    [("benign", None, "wrong"), ("ood", None, "either"), ("ood", "right", "right"), ("benign", "either", "either")],
)
def test_whether_a_refusal_is_right_follows_the_role_unless_it_is_declared(
    tmp_path: Path, write_jsonl: Write, role: str, declared_as: str | None, found: str
) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [{"prompt": "One?"}, {"prompt": "Two?"}])
    loaded = load(path, role=role, refusal=declared_as)
    assert loaded.refusal == loaded.head(1).refusal == found


def test_a_declared_set_keeps_whether_a_refusal_is_right_in_another_role() -> None:
    assert spec_for("rtp_nontoxic", role="ood", kind="question").refusals == "wrong"
    assert spec_for("harmbench", role="ood", kind="question").refusals == "right"
    assert {read_spec(path).refusals for path in declared().values() if read_spec(path).role == "benign"} == {"wrong"}


# --- reading ---------------------------------------------------------------------------------------------------------


def test_jsonl(tmp_path: Path, write_jsonl: Write) -> None:
    rows = [
        {"prompt": "One?", "harmful": ["bad", "worse"], "harmless": "good"},
        {"prompt": "Two…", "harmful": "bad", "harmless": ["good"], "kind": "continuation", "more": {"x": 1}},
    ]
    got = load(write_jsonl(tmp_path / "mine.jsonl", rows), role="forget")
    assert (got.name, got.role, got.title) == ("mine", "forget", "mine")
    assert got.source["file"] == "mine.jsonl"
    assert got.items == (
        Item(item_id("One?"), "One?", "question", ("bad", "worse"), ("good",)),
        Item(item_id("Two…"), "Two…", "continuation", ("bad",), ("good",)),
    )


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "One?"}\r\n\r\n  \n{"prompt": "Two?"}')
    assert [i.prompt for i in load(file).items] == ["One?", "Two?"]


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    with file.open("w", encoding="utf-8-sig", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["prompt", "harmful", "harmless"])
        writer.writerow(['Say "hi",\nthen go?', '["bad", "worse"]', "[good]"])
    (item,) = load(file, role="forget").items
    assert item.prompt == 'Say "hi",\nthen go?'
    assert item.harmful == ("bad", "worse")  # a cell with a JSON list
    assert item.harmless == ("[good]",)  # a cell that only looks like one


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{"prompt": "One?", "harmful": ["bad"], "harmless": ["good", "kind"]}])
    pq.write_table(table, tmp_path / "x.parquet")
    (item,) = load(tmp_path / "x.parquet", role="forget").items
    assert (item.harmful, item.harmless) == (("bad",), ("good", "kind"))


@settings(deadline=None, max_examples=80)
@given(prompt=TEXT.filter(str.strip), harmful=TEXT.filter(str.strip), escaped=st.booleans())
def test_any_text_survives_the_way_in_and_the_store(prompt: str, harmful: str, escaped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.jsonl"
        row = {"prompt": prompt, "harmful": [harmful], "harmless": ["y"]}
        file.write_text(json.dumps(row, ensure_ascii=escaped) + "\n", encoding="utf-8", newline="\n")
        got = load(file, role="forget")
        write_rows(Path(folder) / "items.jsonl", [item_row(i) for i in got.items])
        stored = read_items(Path(folder))
    assert got.items[0].prompt == prompt
    assert got.items[0].harmful == (harmful.strip(),)
    assert tuple(stored) == got.items


def test_rows_with_the_same_prompt_are_one_item(tmp_path: Path, write_jsonl: Write) -> None:
    rows = [
        {"prompt": "Who are you?", "harmful": ["a"], "harmless": []},
        {"prompt": "Other?", "harmful": ["x"], "harmless": ["y"]},
        {"prompt": "  who ARE\tyou? ", "harmful": ["b", "a", " "], "harmless": ["c"]},
    ]
    first, second = load(write_jsonl(tmp_path / "x.jsonl", rows), role="forget").items
    assert (first.prompt, first.harmful, first.harmless) == ("Who are you?", ("a", "b"), ("c",))
    assert second.prompt == "Other?"


def test_forget_items_without_both_sides_are_left_out(tmp_path: Path, write_jsonl: Write) -> None:
    rows = [
        {"prompt": "One?", "harmful": ["a"], "harmless": []},
        {"prompt": "Two?", "harmful": ["a"], "harmless": ["b"]},
        {"prompt": "Three?", "harmful": "  ", "harmless": "b"},
    ]
    file = write_jsonl(tmp_path / "x.jsonl", rows)
    forget = load(file, role="forget")
    assert [i.prompt for i in forget.items] == ["Two?"]
    assert forget.left_out == 2
    assert len(load(file, role="ood").items) == 3
    assert load(file, role="ood").left_out == 0


def test_a_label_called_harmful_does_no_harm_in_a_test_set(tmp_path: Path, write_jsonl: Write) -> None:
    (item,) = load(write_jsonl(tmp_path / "x.jsonl", [{"prompt": "a", "harmful": True}]), role="ood").items
    assert item.harmful == ()


def test_columns_are_mapped(tmp_path: Path, write_jsonl: Write) -> None:
    rows = [{"question": {"text": "One?"}, "chosen": "good", "rejected": "bad"}]
    columns = {"prompt": "question.text", "harmful": "rejected", "harmless": "chosen"}
    (item,) = load(write_jsonl(tmp_path / "x.jsonl", rows), role="forget", columns=columns).items
    assert (item.prompt, item.harmful, item.harmless) == ("One?", ("bad",), ("good",))


def test_columns_are_taken_when_another_says_so(tmp_path: Path, write_jsonl: Write) -> None:
    """The shape of PKU-SafeRLHF: two answers, each with a flag."""
    rows = [
        {"prompt": "One?", "a": "a1", "b": "b1", "a_safe": True, "b_safe": False},
        {"prompt": "Two?", "a": "a2", "b": "b2", "a_safe": False, "b_safe": False},
    ]
    spec = SetSpec.model_validate(
        {
            "name": "pku",
            "role": "forget",
            "source": {"file": str(write_jsonl(tmp_path / "x.jsonl", rows))},
            "columns": {
                "prompt": "prompt",
                "harmful": [{"column": "a", "when": {"a_safe": False}}, {"column": "b", "when": {"b_safe": False}}],
                "harmless": [{"column": "a", "when": {"a_safe": True}}, {"column": "b", "when": {"b_safe": True}}],
            },
        }
    )
    (item,) = load_prompts(spec).items
    assert (item.prompt, item.harmful, item.harmless) == ("One?", ("b1",), ("a1",))
    both = load_prompts(spec.model_copy(update={"role": "ood"})).items
    assert both[1].harmful == ("a2", "b2")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"score": {"ge": 0.5}}, ["b", "c"]),
        ({"score": {"gt": 0.5}}, ["c"]),
        ({"score": {"le": 0.5}}, ["a", "b"]),
        ({"score": {"lt": 0.5}}, ["a"]),
        ({"score": {"gt": 0.1, "lt": 0.9}}, ["b"]),
        ({"kind": "x"}, ["a", "c"]),
        ({"kind": {"eq": "x"}, "score": {"ge": 0.5}}, ["c"]),
    ],
)
def test_rows_are_filtered(tmp_path: Path, write_jsonl: Write, where: dict[str, Any], expected: list[str]) -> None:
    rows = [
        {"prompt": "a", "score": 0.1, "kind": "x"},
        {"prompt": "b", "score": 0.5, "kind": "y"},
        {"prompt": "c", "score": 0.9, "kind": "x"},
        {"prompt": "d", "score": None},
    ]
    file = write_jsonl(tmp_path / "x.jsonl", rows)
    assert [i.prompt for i in load(file, where=where).items] == expected


@pytest.mark.parametrize(
    ("where", "problem"),
    [({"score": {"about": 1}}, "about"), ({"score": {"ge": "high"}}, "score"), ({"score": {"ge": 3}}, "no usable")],
)
def test_a_filter_that_cannot_work(tmp_path: Path, where: dict[str, Any], problem: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "score": 0.1}\n')
    declaration = tmp_path / "mine.yaml"
    declaration.write_text(
        json.dumps({"name": "x", "role": "ood", "source": {"file": str(tmp_path / "x.jsonl")}, "where": where})
    )
    with pytest.raises(UserError, match=problem):
        load_prompts(spec_for(str(declaration), role="ood", kind="question"))


def test_texts(tmp_path: Path, write_jsonl: Write) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", [{"text": "long enough"}, {"text": " "}, {"text": "= h ="}, {"text": 3}])
    spec = spec_for(str(file), role="retain", kind="text")
    assert load_texts(spec).texts == ("long enough", "= h =")
    assert load_texts(spec.model_copy(update={"min_chars": 6})).texts == ("long enough",)
    with pytest.raises(UserError, match="contains no text"):
        load_texts(spec.model_copy(update={"min_chars": 60}))


# --- what can be wrong with a file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.jsonl", b"", "is empty"),
        ("x.jsonl", b"\n  \n", "is empty"),
        ("x.csv", b"", "is empty"),
        ("x.csv", b"prompt,harmful,harmless\n", "is empty"),
        ("x.jsonl", b'{"prompt": "a", "harmful": "b", "harmless": "c"}\n{"prompt": \n', "line 2 is not valid JSON"),
        ("x.jsonl", b'\n\n{"prompt": "a"},\n', "line 3 is not valid JSON"),
        ("x.jsonl", b'["a"]\n', "line 1 is not a JSON object"),
        ("x.jsonl", b"[" * 100_000 + b"\n", "line 1 is not valid JSON"),
        ("x.jsonl", b'{"prompt": "half a pair: \\ud83d"}\n', "line 1 is not valid JSON"),
        ("x.jsonl", b'{"prompt": "caf\xe9"}\n', r"is not UTF-8 \(byte 15\)"),
        ("x.csv", b"prompt,harmful,harmless\ncaf\xe9,a,b\n", "is not UTF-8"),
        ("x.csv", "prompt,harmful,harmless\nOne?,a,b\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("x.csv", b'prompt,harmful,harmless\n"One?"x,b,c\n', "line 2: the closing quote of a cell that begins here is followed by 'x,b,c"),
        ("x.csv", b"prompt,harmful,harmless\nWell, one?,a,b\n", r"line 2 has more cells than the first line has columns \(3\)"),
        ("x.csv", b"prompt,harmful,harmless,prompt\nOne?,a,b,c\n", "has two columns named 'prompt'"),
        ("x.csv", b"One?,a,b\nTwo?,a,b\n", r"row 1 has no 'harmful' and no 'harmless' and no 'prompt' \(columns: One\?, a, b\)"),
        ("x.csv", b"prompt,harmful,harmless\nOne?,[5],b\n", "row 1: 'harmful' is not a text"),
        ("x.jsonl", b'{"' + b"q" * 5000 + b'": "a"}\n', "row 1 has no 'harmful'"),
        ("x.parquet", b"PAR1 or not", "is not a Parquet file"),
        ("x.parquet", b"", "is not a Parquet file"),
        ("x.txt", b"One?\n", "is not .jsonl, .json, .csv, .tsv or .parquet"),
        ("x.jsonl", b'{"asked": "a", "bad": "b"}\n', r"row 1 has no 'harmful' and no 'harmless' and no 'prompt' \(columns: asked, bad\)"),
        ("x.jsonl", b'{"prompt": "a", "harmful": "b"}\n', "row 1 has no 'harmless'"),
        ("x.csv", b"prompt/harmful/harmless\na/b/c\n", "row 1 has no 'harmful'"),
        ("x.csv", b"prompt,harmful,harmless\nOne?,a,b\nTwo?,a\n", "row 2 has no 'harmless'"),
        ("x.jsonl", b'{"prompt": " ", "harmful": "b", "harmless": "c"}\n', "row 1: the prompt is empty or not text"),
        ("x.jsonl", b'{"prompt": 3, "harmful": "b", "harmless": "c"}\n', "row 1: the prompt is empty or not text"),
        ("x.jsonl", b'{"prompt": "a", "harmful": "", "harmless": "c"}\n', "contains no usable prompts"),
        ("x.jsonl", b'{"prompt": "a", "harmful": 5, "harmless": "c"}\n', "row 1: 'harmful' is not a text or a list of texts"),
        ("x.jsonl", b'{"prompt": "a", "harmful": ["x", 5], "harmless": "c"}\n', "row 1: 'harmful' is not a text"),
        ("x.jsonl", b'{"prompt": "a", "harmful": "x", "harmless": {"y": 1}}\n', "row 1: 'harmless' is not a text"),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_the_place(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        load(file, role="forget")
    assert name in caught.value.problem
    assert caught.value.hint
    assert len(str(caught.value)) < 1000


def test_cells_that_only_look_like_json_and_cells_that_are_empty(tmp_path: Path) -> None:
    """Deep brackets stay the text they are; empty cells beyond the columns are nothing."""
    file = tmp_path / "x.csv"
    with file.open("w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows(
            [["prompt", "harmful"], ["[" * 9999, "[laughs] no", "", ""], ["a\x00\x1b\u202eb\U0001f642"]]
        )
    first, second = load(file).items
    assert (first.prompt, first.harmful) == ("[" * 9999, ("[laughs] no",))
    assert (second.prompt, second.harmful) == ("a\x00\x1b\u202eb\U0001f642", ())


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv", "none.parquet", "none.yaml"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["folder", "folder.jsonl"])
def test_a_folder_is_not_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=name):
        load(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"prompt": "a"}\n')
    file.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        load(file)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("name: x\nrole: ood\n", "source: Field required"),
        ("name: x\nrole: odd\nsource: {file: x}\n", "role: "),
        ("name: x\nrole: ood\nsource: {fil: x}\n", "source.fil: "),
        ("name: [x\n", "cannot be read"),
        ("", "Input should be"),
        ("name: x\nname: y\nrole: ood\nsource: {file: x}\n", "duplicate key 'name'"),
        ("name: &n x\nrole: ood\ntitle: *n\nsource: {file: x}\n", "aliases are not supported"),
        ("name: !!python/object:x.y {}\n", "constructor for the tag"),
        ("name: 2024-99-99\n", "cannot be read"),
        ("name: 'a\\0'\nrole: ood\nsource: {file: \"a\\0.csv\"}\n", "not a valid path"),
        ("name: x\nrole: [ood]\nsource: {file: x}\n", "role: "),
        ("name: x\nrole: ood\nsource: {file: x}\ncolumns: {prompt: 5}\n", "columns.prompt"),
        ("name: x\nrole: ood\nsource: {}\n", "has no source"),
    ],
)
def test_bad_declarations(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=problem):
        load_prompts(spec_for(str(file), role="ood", kind="question"))


def test_an_unknown_set_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown prompt set 'advbnch'; did you mean 'advbench'"):
        spec_for("advbnch", role="ood", kind="question")


@pytest.mark.parametrize("name", declared())
def test_every_declaration_is_whole(name: str) -> None:
    spec = read_spec(declared()[name])
    assert spec.name == name
    assert spec.title
    assert spec.licence
    assert sum(x is not None for x in (spec.source.lab, spec.source.hub, spec.source.file)) == 1
    assert spec.source.revision is None  # the commit of the day is taken, and stands in the manifest
    if spec.kind == "text":
        assert set(spec.columns) >= {"text"} or spec.source.lab
    else:
        assert "prompt" in spec.columns
        # Whoever reads samples of it should know beforehand.
        assert spec.warning.endswith(".") or spec.role == "benign"
    if spec.source.hub:
        assert re.fullmatch(r"[\w-]+/[\w.-]+", spec.source.hub)
        assert spec.source.config
        assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", spec.citation)
        assert spec.warning or spec.kind == "text"
    if spec.role == "forget" and spec.source.hub:
        assert set(spec.columns) == {"prompt", "harmful", "harmless"}


@pytest.mark.parametrize("name", [n for n, file in declared().items() if read_spec(file).source.lab])
def test_every_set_of_the_lab_can_be_read(name: str) -> None:
    spec = read_spec(declared()[name])
    if spec.kind == "text":
        assert all(text.strip() for text in load_texts(spec).texts)
    else:
        items = load_prompts(spec).items
        assert all(item.prompt.strip() and item.kind == spec.kind for item in items)
        assert len({item.id for item in items}) == len(items)


READ_ALL = """
import json, sys
from wpn_bench import prompts
from wpn_bench.errors import UserError
found = {}
for name, file in prompts.declared().items():
    spec = prompts.read_spec(file)
    if not spec.source.hub:
        continue
    if spec.kind == "text":
        got = prompts.load_texts(spec)
        found[name] = {"n": len(got.texts), "empty": sum(not t.strip() for t in got.texts), "source": dict(got.source)}
    else:
        got = prompts.load_prompts(spec)
        found[name] = {
            "n": len(got.items), "empty": sum(not i.prompt.strip() for i in got.items), "source": dict(got.source),
            "kinds": sorted({i.kind for i in got.items}),
            **{side: sum(bool(getattr(i, side)) for i in got.items) for side in ("harmful", "harmless")},
        }
spec = prompts.read_spec(prompts.declared()["advbench"])
for revision in (found["advbench"]["source"]["revision"], "0" * 40):
    pinned = spec.model_copy(update={"source": spec.source.model_copy(update={"revision": revision})})
    try:
        found[f"pinned {revision}"] = prompts.load_prompts(pinned).source["revision"]
    except UserError as e:
        found["refused"] = str(e)
print(json.dumps(found))
"""


@pytest.mark.hub
def test_every_set_of_the_hub_can_be_read_at_a_known_commit(hub_commands: ForkServer) -> None:
    found = json.loads(hub_commands.python(READ_ALL))
    specs = {name: read_spec(file) for name, file in declared().items()}
    for name, spec in specs.items():
        if not spec.source.hub:
            continue
        got = found[name]
        assert got["n"] >= 100
        assert got["empty"] == 0
        assert re.fullmatch(r"[0-9a-f]{40}", got["source"]["revision"])
        assert (got["source"]["hub"], got["source"]["split"]) == (spec.source.hub, spec.source.split)
        assert got["source"]["licence"] == spec.licence
        if spec.kind != "text":
            assert got["source"]["warning"] == spec.warning
            assert got["kinds"] == [spec.kind]
    # The opening that GCG aims at is AdvBench's harmful reference; the forget set has both sides of each item.
    assert found["advbench"]["harmful"] == found["advbench"]["n"]
    assert found["pku_forget"]["harmful"] == found["pku_forget"]["harmless"] == found["pku_forget"]["n"]
    assert found["truthfulqa"]["harmless"] == found["truthfulqa"]["n"]
    commit = found["advbench"]["source"]["revision"]
    assert found[f"pinned {commit}"] == commit
    assert "AdvBench" in found["refused"]


# --- identity --------------------------------------------------------------------------------------------------------


def test_what_counts_as_the_same_prompt() -> None:
    assert normalise("  Straße\n IS long ") == "strasse is long"
    assert item_id("Who  are You?") == item_id("who are you?")
    assert item_id("who are you?") != item_id("who are you")
    assert len(item_id("x")) == 12


def test_the_digest_covers_all_of_an_item_and_their_order() -> None:
    one, two = Item("1", "a"), Item("2", "b")
    changed = [
        PromptSet("x", "ood", (one, two)),
        PromptSet("x", "ood", (two, one)),
        PromptSet("x", "ood", (one,)),
        PromptSet("x", "ood", (one, Item("2", "b", answer_prefix="well"))),
        PromptSet("x", "ood", (one, Item("2", "b", context="well"))),
        PromptSet("x", "ood", (one, Item("2", "b", harmful=("h",)))),
    ]
    assert len({c.digest for c in changed}) == len(changed)
    assert PromptSet("other", "benign", (one, two), "Title").digest == changed[0].digest
    assert TextSet("a", "retain", ("x", "y")).digest != TextSet("a", "retain", ("y", "x")).digest


def test_head() -> None:
    assert [i.prompt for i in forget_set().head(2).items] == ["prompt 0", "prompt 1"]
    assert forget_set().head(None) == forget_set()


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_a_share_is_held_back_the_same_in_every_run() -> None:
    forget = forget_set(50)
    rest, held = split_off(forget, name="validation", role="validation", share=0.1)
    assert (held.name, held.role, len(held.items), len(rest.items)) == ("validation", "validation", 5, 45)
    assert {i.id for i in rest.items} | {i.id for i in held.items} == {i.id for i in forget.items}
    assert not {i.id for i in rest.items} & {i.id for i in held.items}
    turned = PromptSet("forget", "forget", tuple(reversed(forget.items)))
    _, again = split_off(turned, name="validation", role="validation", share=0.1)
    assert {i.id for i in again.items} == {i.id for i in held.items}
    _, other = split_off(forget, name="in_domain", role="in_domain", share=0.1)
    assert {i.id for i in other.items} != {i.id for i in held.items}
    assert held.source["held_out_of"] == "forget"


def test_too_few_to_hold_some_back() -> None:
    with pytest.raises(UserError, match="only 1 prompts, too few"):
        split_off(forget_set(1), name="x", role="validation", share=0.1)
    rest, held = split_off(forget_set(2), name="x", role="validation", share=0.1)
    assert (len(rest.items), len(held.items)) == (1, 1)


def test_a_source_never_shows_a_home_folder(tmp_path: Path, write_jsonl: Write) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "a"}])
    assert str(tmp_path) not in json.dumps(dict(load(file).source))


def test_read_file_gives_plain_rows(tmp_path: Path, write_jsonl: Write) -> None:
    assert read_file(write_jsonl(tmp_path / "x.JSONL", [{"a": [1]}])) == [{"a": [1]}]
    assert Source(file="x").split == "train"
