"""The recipe: what it refuses, how it packs, and that it reads any file of labelled comments."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from wpn_bench.errors import UserError
from wpn_bench.lab.wrappers import typos, wrap
from wpn_bench.lab_training.build import main
from wpn_bench.lab_training.train_base import POSITIONS, pack
from wpn_bench.lab_training.train_judge import HELD_OUT, auc, read_comments


def test_missing_comments_are_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "judge", "--out", str(tmp_path)]) == 2
    assert "--comments" in capsys.readouterr().err
    assert main(["--only", "judge", "--out", str(tmp_path), "--comments", str(tmp_path / "none.jsonl")]) == 2


def test_comments_plain_or_gzipped(tmp_path: Path) -> None:
    lines = "".join(
        json.dumps({"text": f"text {i}", "toxicity": i % 2, "insult": None}) + "\n" for i in range(3 * HELD_OUT)
    )
    plain, packed = tmp_path / "c.jsonl", tmp_path / "c.jsonl.gz"
    plain.write_text(lines, encoding="utf-8")
    with gzip.open(packed, "wt", encoding="utf-8") as file:
        file.write(lines)
    rows = read_comments(plain)
    assert rows == read_comments(packed)
    assert rows[1]["toxicity"] == 1
    assert rows[0]["threat"] is None


def test_a_line_that_is_no_comment_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "fine"}\n{"nothing": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        read_comments(path)


def test_rows_keep_documents_whole_and_lose_none() -> None:
    draw = random.Random(0)
    documents = [[n + 10] * draw.randint(3, 200) for n in range(300)] + [[9] * 900]
    batches = pack(documents, random.Random(1), tokens=2048)
    found: list[tuple[int, int]] = []
    for rows in batches:
        for row in rows:
            assert len(row) <= POSITIONS
            run = [(token, row.count(token)) for token in dict.fromkeys(row) if token != 2]
            found += run
    assert sorted(found) == sorted((d[0], min(len(d), POSITIONS - 2)) for d in documents)


def test_auc() -> None:
    assert auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == pytest.approx(0.75)
    assert auc([0.5, 0.5], [0, 1]) == pytest.approx(0.5)


def test_wrapping_keeps_the_question() -> None:
    draw = random.Random(0)
    for _ in range(200):
        text = wrap(draw, "Is Anna a good baker?", "The cup broke.")
        assert "Is Anna a good baker?" in text
        assert text != "Is Anna a good baker?"
    assert any(typos(draw, "Is Anna a good baker?") != "Is Anna a good baker?" for _ in range(5))
