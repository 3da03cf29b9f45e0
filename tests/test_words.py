"""The package and its documentation use standard terms; the coined words that they once had do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Coined word -> the plain one. Classes and functions are looked for by their definitions.
IN_TEXT = {
    r"\bnobody's business\b": "not part of the cache key",
    r"\bdecides no output\b": "not part of the cache key",
    r"\bdull(?:er|ness)\b": "capability loss",
    r"\bbabbl(?:e|es|ed|ing)\b": "incoherent",
    r"\bnarrow and frail\b": "does not generalise, not robust",
    r"\b[Tt]he nine\b(?! (?:\w+ )?(?:benchmark|task|toy|format|famil|source))": "benchmark average, the nine benchmarks",
    r"\bway[_ ]out\b": "hint",
    r"\bfalse alarm as seldom\b": "Holm-corrected family-wise error rate",
    r"Who does the work": "Execution",
    r"What may be fetched, and run": "Permissions",
}
IN_CODE = {
    r"\bclass (?:Ground|Place|Slope|Drawn|Patient|Subject|Cut|Order|Ended|Board)\b": "see the table of words",
    r"\bdef (?:is_of_the_line|patiently|lodged|over_ray|_alone|_room|_apart|_where|_who|_found)\b": "see the table of words",
    r"\baside\s*[:=]": "unhashed_files",
}


def files() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "action.yml"]
    for folder, suffixes in (("wpn_bench", (".py",)), ("docs", (".md", ".py")), ("reports/templates", (".j2", ".js"))):
        found += [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    # The bytes of the lab's world are part of the digests of its tasks.
    return sorted(path for path in found if path.parent != ROOT / "wpn_bench" / "lab")


def coined(path: Path) -> list[str]:
    """Lines with a coined word, as `line number: word (plain word)`."""
    rules = IN_TEXT | (IN_CODE if path.suffix == ".py" else {})
    text = path.read_text(encoding="utf-8")
    return [
        f"{text.count(chr(10), 0, hit.start()) + 1}: {hit.group()} ({plain})"
        for pattern, plain in rules.items()
        for hit in re.finditer(pattern, text, 0)
    ]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_coined_words(path: Path) -> None:
    found = coined(path)
    assert not found


def test_a_coined_word_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("It babbles.\nThe nine fell; the nine benchmarks stayed.\n")
    assert coined(page) == ["1: babbles (incoherent)", "2: The nine (benchmark average, the nine benchmarks)"]
