from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from wpn_bench.redact import HIDDEN, one_line, redact, redact_secrets


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("GET https://alice:geheim@hub.example/x failed", f"GET https://{HIDDEN}@hub.example/x failed"),
        ("token hf_abcdefghijklmnop is wrong", f"token {HIDDEN} is wrong"),
        ("cannot write '/srv/alice/store/tmp/x.json'", "cannot write 'x.json'"),
        ("1/2 of 3 GiB/s, see https://hub.example/a/b", "1/2 of 3 GiB/s, see https://hub.example/a/b"),
        ("no such file: ./a/b/c.txt", "no such file: ./a/b/c.txt"),
    ],
)
def test_redact(text: str, left: str) -> None:
    assert redact(text) == left


def test_secrets_in_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdef-123")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsehood")
    monkeypatch.setenv("DB_PASSWORD", "1")
    assert redact_secrets("abcdef-123, falsehood, 1") == f"{HIDDEN}, falsehood, 1"


def test_names_of_user_and_home_are_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "quintessa")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "gwendoline")
    assert redact("quintessa asked gwendoline, not quintessas") == f"{HIDDEN} asked {HIDDEN}, not quintessas"


def test_common_words_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    assert redact("the root cause") == "the root cause"


def test_one_line_removes_control_characters_and_shortens() -> None:
    line = one_line("the file \x1b[31mred\n\x07\ud800 " + "x" * 5000 + " end", 300)
    assert line.isprintable()
    assert len(line) == 300
    assert line.startswith("the file [31mred xxx")
    assert line.endswith("x end")
