from __future__ import annotations

from pathlib import Path

import pytest

from wpn_bench.core.json_files import load_json
from wpn_bench.errors import UserError


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff{}", r"is not UTF-8 \(byte 0\)"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"9" * 5000, "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[NaN]", r"is not valid JSON \(NaN is not a number"),
        (b"[-Infinity]", r"is not valid JSON \(-Infinity is not a number"),
        (b"[1e400]", r"is not valid JSON \(1e400 is not a number"),
        (b"[1e308]", r"is not valid JSON \(1e308 is not a number"),
        (b'{"a": 1, "b": {"a": 1, "a": 2}}', r"is not valid JSON \(the key 'a' occurs twice"),
        (b"9" * 300, r"is not valid JSON \(9{20}\.\.\. is not a number"),
    ],
)
def test_invalid_json_is_rejected(tmp_path: Path, raw: bytes, problem: str) -> None:
    (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(UserError, match=rf"x\.json {problem}.*; fetch it again$"):
        load_json(tmp_path / "x.json", "fetch it again")


def test_valid_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": "\u00e9"}', encoding="utf-8")
    assert load_json(tmp_path / "x.json", "") == {"a": "\u00e9"}
    with pytest.raises(FileNotFoundError):
        load_json(tmp_path / "y.json", "")
    with pytest.raises(UserError, match=r"cannot be read .Is a directory"):
        load_json(tmp_path, "give a file")
