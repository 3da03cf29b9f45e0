from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from wpn_bench import registry
from wpn_bench.errors import UserError
from wpn_bench.registry import Registry, nearest, unknown

PARTS = {"ordered": "collections:OrderedDict", "counter": "collections:Counter", "broken": "no_such_module:thing"}


def test_a_name_gives_its_part() -> None:
    from collections import Counter

    assert Registry("part", PARTS).get("counter") is Counter


def test_names_keep_their_order_and_import_nothing() -> None:
    parts: Registry[object] = Registry("part", PARTS)
    assert parts.names() == list(parts) == ["ordered", "counter", "broken"]
    assert "broken" in parts  # its module does not exist, and nobody noticed
    assert "other" not in parts


@pytest.mark.parametrize(
    ("slip", "meant"), [("conter", "counter"), ("COUNTER", "counter"), ("orderd", "ordered"), ("brokn", "broken")]
)
def test_an_unknown_name_is_answered_with_the_nearest(slip: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        Registry("part", PARTS).get(slip)
    assert caught.value.problem == f"unknown part {slip!r}"
    assert f"did you mean {meant!r}" in caught.value.way_out


def test_a_name_like_no_other_lists_them_all() -> None:
    assert "known: broken, counter, ordered" in unknown("part", "zzz", PARTS).way_out


def test_nearest_is_best_first_and_at_most_three() -> None:
    names = ["arc_easy", "arc_easier", "arc_eas", "arc_ease", "piqa"]
    found = nearest("arc_easy", names)
    assert found[0] == "arc_easy"
    assert len(found) == 3
    assert "piqa" not in found


def test_plug_ins_are_found_and_replace_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def points(*, group: str) -> list[EntryPoint]:
        asked.append(group)
        return [
            EntryPoint("mine", "collections:deque", group),
            EntryPoint("counter", "collections:deque", group),
        ]

    monkeypatch.setattr(registry, "entry_points", points)
    from collections import Counter, deque

    parts: Registry[object] = Registry("part", PARTS)
    assert parts.get("mine") is deque
    assert parts.get("counter") is Counter
    assert parts.names() == ["ordered", "counter", "broken", "mine"]
    assert asked == ["wpn_bench.parts"]  # once, and only when somebody looks


@pytest.mark.parametrize("module", ["wpn_bench.unlearn.methods", "wpn_bench.harmless.judges", "wpn_bench.attacks"])
def test_the_registries_of_the_package_are_lazy(module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'torch', 'transformers', 'pandas', 'detoxify'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
