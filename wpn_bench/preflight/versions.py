"""Compare the installed versions of libraries with those with which wpn-bench was tested."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

# Libraries on which results depend.
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "datasets",
    "lm-eval",
    "detoxify",
    "huggingface-hub",
    "pandas",
)


def pinned_versions() -> dict[str, str]:
    """Return the versions in constraints.txt, with which the tests run, by normalised package name."""
    package = Path(__file__).resolve().parents[1]
    # In a wheel, the file is in the package. In a git checkout, it is next to the package.
    files = [f for f in (package / "_constraints.txt", package.parent / "constraints.txt") if f.is_file()]
    lines = files[0].read_text(encoding="utf-8").splitlines() if files else []
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {normal_name(name): pin for name, _, pin in pairs}


def notes_on_versions() -> list[str]:
    """Return a note if libraries are installed in versions that were not tested. Other patch releases are accepted."""
    pins = pinned_versions()
    found = []
    for name in (name for name in LIBRARIES if name in pins):
        try:
            installed = Version(version(name))
        except PackageNotFoundError:
            continue
        pin = Version(pins[name])
        if installed.release[:2] != pin.release[:2]:
            found.append(f"{name} {installed.public} (tested: {pin})")
    if not found:
        return []
    return [f"results may differ: wpn-bench was not tested with {', '.join(found)}"]


def normal_name(name: str) -> str:
    """Return the normalised name of a package, as PEP 503 defines it."""
    return re.sub(r"[-_.]+", "-", name).lower()
