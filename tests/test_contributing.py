"""CONTRIBUTING shows the layers that import-linter holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_layers_are_those_of_the_contract() -> None:
    (block,) = re.findall(r"```layers\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
    shown = [re.split(r"\s{2,}", line)[0] for line in block.splitlines()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert shown == layers


def test_the_files_that_it_names_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:wpn_bench|tests|tasks)/[\w/.]+)`", text)) - {"wpn_bench/unlearn/methods/yours.py"}
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]
