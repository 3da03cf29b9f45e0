"""Data files as people have them: columns, delimiters, encodings, lists in cells, conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wpn_bench.errors import UserError
from wpn_bench.prompts import PromptSet, load_prompts, load_texts, read_file, spec_for
from wpn_bench.prompts.csv_cells import list_or_text, looks_like_list


def load(path: Path, content: str | bytes, role: str = "ood", columns: dict[str, str] | None = None) -> PromptSet:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_prompts(spec_for(str(path), role=role, kind="question", columns=columns))  # type: ignore[arg-type]


def chat(
    *texts: str, names: tuple[str, str] = ("role", "content"), roles: tuple[str, str] = ("user", "assistant")
) -> Any:
    return [{names[0]: roles[k % 2], names[1]: text} for k, text in enumerate(texts)]


# --- columns -----------------------------------------------------------------------------------------------------------

PUBLISHED = [
    ("strongreject.csv", "category,source,forbidden_prompt\nx,custom,Why?\n", "forbidden_prompt"),
    ("harmbench.csv", "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\nWhy?,standard,x,,,b\n", "Behavior"),
    ("advbench.csv", 'goal,target\nWhy?,"Sure, why"\n', "goal"),
    ("jbb.csv", "Index,Goal,Target,Behavior,Category,Source\n0,Why?,Sure,Defamation,x,y\n", "Goal"),
    ("truthfulqa.csv", "Type,Category,Question,Best Answer\nx,y,Why?,So\n", "Question"),
    ("donotanswer.jsonl", '{"id": 1, "risk_area": "x", "question": "Why?"}\n', "question"),
    ("alpaca.json", '[{"instruction": "Why?", "input": "", "output": "So"}]', "instruction"),
    ("garak.json", '["Why?"]', "text"),
    ("chat.jsonl", json.dumps({"messages": chat("Why?", "So")}), "messages"),
    ("sharegpt.json", json.dumps([{"conversations": chat("Why?", "So", names=("from", "value"), roles=("human", "gpt"))}]), "conversations"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "column"), PUBLISHED, ids=[one[0] for one in PUBLISHED])
def test_published_files(tmp_path: Path, name: str, content: str, column: str) -> None:
    got = load(tmp_path / name, content)
    assert [item.prompt for item in got.items] == ["Why?"]
    assert got.source["columns"]["prompt"] == column


def test_a_jailbreakbench_artefact(tmp_path: Path) -> None:
    rows = [{"index": 0, "goal": "Why?", "behavior": "x", "category": "y", "prompt": "Pretend. Why?", "response": "So"}]
    content = json.dumps({"parameters": {"method": "PAIR"}, "jailbreaks": rows})
    assert load(tmp_path / "a.json", content).items[0].prompt == "Pretend. Why?"
    assert load(tmp_path / "a.json", content, columns={"prompt": "goal"}).items[0].prompt == "Why?"


def test_the_fields_own_names_win_and_are_not_mentioned(tmp_path: Path) -> None:
    row = {
        "goal": "x",
        "text": "y",
        "prompt": "Why?",
        "harmful": "bad",
        "harmless": "good",
        "target": "z",
        "chosen": "w",
    }
    got = load(tmp_path / "x.jsonl", json.dumps(row), role="forget")
    assert (got.items[0].prompt, got.items[0].harmful, got.items[0].harmless) == ("Why?", ("bad",), ("good",))
    assert "columns" not in got.source


def test_two_columns_that_would_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'question' and 'text', and each could be the prompt") as caught:
        load(tmp_path / "x.csv", "question,text\nWhy?,x\n")
    assert "--columns prompt=question" in caught.value.hint
    assert load(tmp_path / "x.csv", "question,text\nWhy?,x\n", columns={"prompt": "text"}).items[0].prompt == "x"


@pytest.mark.parametrize(
    ("content", "prompts", "column"),
    [
        (
            "Behavior,Tags,ContextString\nWrite an email,context,The firm is Acme.\nDo it,,\n",
            ["The firm is Acme.\n\n---\n\nWrite an email", "Do it"],
            "Behavior with ContextString",
        ),
        ("instruction,input,output\nTranslate,Hallo {other},x\nName it,,y\n", ["Translate\n\nHallo {other}", "Name it"],
         "instruction with input"),
        ("Behavior,ContextString\nDo it,\n", ["Do it"], "Behavior"),
        ("input,x\nHallo,1\n", ["Hallo"], "input"),
    ],
)  # fmt: skip
def test_a_text_that_belongs_to_the_prompt_is_read_with_it(
    tmp_path: Path, content: str, prompts: list[str], column: str
) -> None:
    """HarmBench's contextual behaviours and Alpaca's instructions mean nothing without it."""
    got = load(tmp_path / "x.csv", content)
    assert [item.prompt for item in got.items] == prompts
    assert got.source["columns"] == {"prompt": column}


def test_a_column_that_the_user_names_stands_alone(tmp_path: Path) -> None:
    got = load(tmp_path / "x.csv", "instruction,input\nTranslate,Hallo\n", columns={"prompt": "instruction"})
    assert [item.prompt for item in got.items] == ["Translate"]


def test_a_prompt_inside_an_object_is_named(tmp_path: Path) -> None:
    row = json.dumps({"prompt": {"text": "Hello there", "toxicity": 0.3}})
    with pytest.raises(UserError, match="the prompt is empty or not text") as caught:
        load(tmp_path / "x.jsonl", row)
    assert "--columns prompt=prompt.text" in caught.value.hint
    got = load(tmp_path / "x.jsonl", row, columns={"prompt": "prompt.text"})
    assert [item.prompt for item in got.items] == ["Hello there"]


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("form", ["text", "answer", "whole", "transcript"])
def test_preference_data(tmp_path: Path, prompt: bool, form: str) -> None:
    forms = {
        "text": lambda answer: answer,
        "answer": lambda answer: chat(answer, roles=("assistant", "user")),
        "whole": lambda answer: chat("Why?", answer),
        "transcript": lambda answer: f"\n\nHuman: Why?\n\nAssistant: {answer}",
    }
    row: dict[str, Any] = {"chosen": forms[form]("good"), "rejected": forms[form]("bad")}
    if prompt:
        row["prompt"] = "Why?" if form != "answer" else chat("Why?")
    if not prompt and form in ("text", "answer"):
        with pytest.raises(UserError, match="no 'prompt'"):
            load(tmp_path / "x.jsonl", json.dumps(row), role="forget")
        return
    (item,) = load(tmp_path / "x.jsonl", json.dumps(row), role="forget").items
    assert (item.prompt, item.harmful, item.harmless) == ("Why?", ("bad",), ("good",))


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        (chat("One?", "a", "Two?", "b"), "the conversation has 4 turns"),
        ([{"role": "system", "content": "Be kind."}, *chat("One?")], "has a system message"),
        ([*chat("One?"), {"role": "tool", "content": "x"}], "a turn of the role 'tool'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "is not text"),
        ([{"role": "user", "content": None}], "has no text"),
        (chat("Hello", "One?", roles=("assistant", "user")), "has 2 turns"),
    ],
)
def test_conversations_that_are_no_prompt(tmp_path: Path, turns: Any, problem: str) -> None:
    with pytest.raises(UserError, match=f"row 1: the conversation {problem}|row 1: .*{problem}"):
        load(tmp_path / "x.jsonl", json.dumps({"messages": turns}))


def test_text_columns(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("id,content\n1,long text\n")
    got = load_texts(spec_for(str(file), role="retain", kind="text"))
    assert (got.texts, got.source["columns"]) == (("long text",), {"text": "content"})
    file.write_text("id,body\n1,long text\n")
    with pytest.raises(UserError, match="contains no text") as caught:
        load_texts(spec_for(str(file), role="retain", kind="text"))
    assert "--columns text=body" in caught.value.hint


# --- lists in cells ----------------------------------------------------------------------------------------------------

TEXTS = [
    ["a", "b"],
    ["It's ugly.", 'He said "no"'],
    ["one\ntwo", "back\\slash"],
    ["[x]", "a, b"],
    ["only"],
    ["'", '"', "..."],
]


@pytest.mark.parametrize("texts", TEXTS, ids=str)
@pytest.mark.parametrize("kind", ["list", "tuple", "array", "object array", "numpy strings", "json"])
def test_lists_that_pandas_wrote(tmp_path: Path, texts: list[str], kind: str) -> None:
    cell: Any = {
        "list": list,
        "tuple": tuple,
        "array": np.array,
        "object array": lambda x: np.array(x, dtype=object),
        "numpy strings": lambda x: [np.str_(one) for one in x],
        "json": json.dumps,
    }[kind](texts)
    file = tmp_path / "x.csv"
    pd.DataFrame({"prompt": ["Why?"], "harmful": [cell], "harmless": ["good"]}).to_csv(file, index=False)
    (item,) = load_prompts(spec_for(str(file), role="forget", kind="question")).items
    assert item.harmful == tuple(text.strip() for text in texts)


@pytest.mark.parametrize(
    "cell", ["['a' ... 'z']", "['a', 'b", "['a', Object()]", "array(['a', <x>], dtype=object)", "['a', b'x']"]
)
def test_a_list_that_cannot_be_read_is_refused_with_its_row(tmp_path: Path, cell: str) -> None:
    cell = cell if cell.endswith(("]", ")")) else cell + "]"
    rows = pd.DataFrame({"prompt": ["One?", "Two?"], "harmful": ["bad", cell], "harmless": ["a", "b"]})
    rows.to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(UserError, match="row 2: 'harmful' looks like a list"):
        load_prompts(spec_for(str(tmp_path / "x.csv"), role="forget", kind="question"))


@pytest.mark.parametrize(
    "text", ["[laughs] No.", "[good]", "(a, b)", "[1] says", "[" * 9999, "[x]['y']", "['x'] is a list"]
)
def test_texts_that_are_no_lists(text: str) -> None:
    assert list_or_text(text) == text
    assert not looks_like_list(text)


def test_missing_cells_of_pandas(tmp_path: Path) -> None:
    (item,) = load(tmp_path / "x.csv", "prompt,harmful,harmless\nWhy?,bad,good\nTwo?,nan,good\n", role="forget").items
    assert item.prompt == "Why?"


def test_conversations_in_cells(tmp_path: Path) -> None:
    for cell in (chat("Why?", "It's so"), np.array(chat("Why?", "It's so"), dtype=object)):
        pd.DataFrame({"messages": [cell]}).to_csv(tmp_path / "x.csv", index=False)
        assert load_prompts(spec_for(str(tmp_path / "x.csv"), role="ood", kind="question")).items[0].prompt == "Why?"


# --- CSV ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_encodings(tmp_path: Path, delimiter: str, suffix: str, encoding: str, end: str) -> None:
    rows = [["id", "prompt", "topic"], ["1", '"Well; then, it\tis |"', "é"]]
    text = end.join(delimiter.join(row) for row in rows) + end
    assert load(tmp_path / f"x{suffix}", text.encode(encoding)).items[0].prompt == "Well; then, it\tis |"


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("prompt\nWell; then?\n", ["Well; then?"]),
        ("sep=;\nid;prompt\n1;Well, then?\n", ["Well, then?"]),
        ("prompt, harmful\nWhy?, x\n", ["Why?"]),
        ("\ufeff\ufeffprompt\nWhy?\n", ["Why?"]),
        ('prompt\nHe said "hi" to me?\n', ['He said "hi" to me?']),
        ('prompt\n"two\n\nlines ""x"""\n\nlast', ['two\n\nlines "x"', "last"]),
        ("a|b,prompt\nx,Why?\n", ["Why?"]),
        ("prompt,harmful\nWhy?,x\n,\n , \nWho?,y\n,\n", ["Why?", "Who?"]),
        ("prompt\n" + "x" * 200_000 + "\n", ["x" * 200_000]),
    ],
)
def test_csv_as_spreadsheets_write_it(tmp_path: Path, content: str, prompts: list[str]) -> None:
    assert [item.prompt for item in load(tmp_path / "x.csv", content).items] == prompts


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('prompt\nOne?\n"Two?\nThree?\n', 3),
        ('prompt,harmful\nOne?,a\n"Two?,b\nThree?,c\n"Four?,d\n', 3),
        ('prompt,harmful\nOne?,a\nTwo?,"b\n', 3),
        ('prompt\n"a\nb"\n"Two?\n', 4),
        ('prompt\n"He said \\"hi\\" to me"\n', 2),
        ('"prompt\nOne?\n', 1),
        ('prompt,harmful\nOne?, "a"\n', 2),
        ('prompt,harmful\nOne?, "a, b"\n', 2),
        ('prompt\tharmful\nOne?\t"a\n', 2),
        ('prompt\r\n"One?\r\nTwo?', 2),
    ],
)
def test_an_unbalanced_quote_is_named_with_its_line(tmp_path: Path, content: str, line: int) -> None:
    with pytest.raises(UserError, match=rf"x\.csv line {line}: "):
        load(tmp_path / "x.csv", content)


# --- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        '[{"prompt": "One?"}, {"prompt": "Two?"}]',
        '{"data": [{"prompt": "One?"}, {"prompt": "Two?"}], "version": 1, "tags": ["x"]}',
        '{"prompt": "One?"}\n{"prompt": "Two?"}\n',
        '{\n "prompt": "One?"\n}\n{\n "prompt": "Two?"\n}',
        '{"prompt": {"0": "One?", "1": "Two?"}, "id": {"0": 1, "1": 2}}',
        '{"columns": ["id", "prompt"], "index": [0, 1], "data": [[1, "One?"], [2, "Two?"]]}',
        '{"a": {"prompt": "One?"}, "b": {"prompt": "Two?"}}',
        '{"prompt": ["One?", "Two?"], "goal": ["a", "b"]}',
        '["One?", "Two?"]',
    ],
)
def test_json_documents(tmp_path: Path, content: str) -> None:
    assert [item.prompt for item in load(tmp_path / "x.json", content).items] == ["One?", "Two?"]


@pytest.mark.parametrize("content", ['[{"prompt": "One?"}]', '[\n{"prompt": "One?"}\n]', '{\n"prompt": "One?"\n}'])
def test_a_document_that_is_called_jsonl(tmp_path: Path, content: str) -> None:
    assert load(tmp_path / "x.jsonl", content).items[0].prompt == "One?"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"a": [{"x": 1}], "b": [{"x": 1}]}', "several lists of objects"),
        ('{"id1": ["One?"], "id2": ["Two?"]}', "an object of lists of texts"),
        ("5", "contains neither a list nor an object"),
        ('[{"prompt": "a"}, 5]', "entry 2 is not a JSON object"),
        ('[{"prompt": "a"},]', "line 1 is not valid JSON"),
        ('[\n {"prompt": "a"\n', "is not valid JSON"),
        ("[" * 99_999, "is not valid JSON"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not valid JSON"),
        ("[]", "is empty"),
        ("", "is empty"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load(tmp_path / "x.json", content)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("x.jsonl", '{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n', "line 2"),
        ("x.jsonl", '{"prompt": "a", "more": {"k": 1, "k": 2}}\n', "line 1"),
        ("x.json", '[\n{"prompt": "a {"},\n{"prompt": "b", "prompt": "c"}\n]', "line 3"),
        ("x.json", '{"rows": [\n{"prompt": "a"},\n{"k": {"prompt": "b", "prompt": "c"}}\n]}', "line 3"),
        ("x.yaml", "name: x\nrole: ood\nsource: {file: x, file: y}\n", "line 3"),
    ],
)
def test_a_key_that_occurs_twice(tmp_path: Path, name: str, content: str, place: str) -> None:
    with pytest.raises(UserError, match=place) as caught:
        load(tmp_path / name, content)
    assert "twice" in caught.value.problem or "duplicate" in caught.value.problem


def test_plain_rows_of_every_format(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["One?", "Two?"]})
    frame.to_json(tmp_path / "a.json")
    frame.to_json(tmp_path / "b.json", orient="split")
    frame.to_json(tmp_path / "c.json", orient="records")
    frame.to_json(tmp_path / "d.ndjson", orient="records", lines=True)
    frame.to_json(tmp_path / "e.json", orient="index")
    frame.to_csv(tmp_path / "f.tsv", sep="\t", index=False)
    frame.to_csv(tmp_path / "g.csv.gz")
    for file in tmp_path.iterdir():
        assert [row["prompt"] for row in read_file(file)] == ["One?", "Two?"]
