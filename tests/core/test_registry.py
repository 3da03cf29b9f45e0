from __future__ import annotations

import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from wpn_bench.core import registry
from wpn_bench.core.registry import Registry, close_matches, source_digest, unknown_name
from wpn_bench.errors import UserError

PARTS = {"ordered": "collections:OrderedDict", "counter": "collections:Counter", "broken": "no_such_module:thing"}


def test_get_returns_the_part() -> None:
    from collections import Counter

    assert Registry("part", PARTS).get("counter") is Counter


def test_names_keep_their_order_and_import_nothing() -> None:
    parts: Registry[object] = Registry("part", PARTS)
    assert parts.names() == list(parts) == ["ordered", "counter", "broken"]
    assert "broken" in parts  # its module does not exist, but it was not imported
    assert "other" not in parts


@pytest.mark.parametrize(
    ("slip", "meant"), [("conter", "counter"), ("COUNTER", "counter"), ("orderd", "ordered"), ("brokn", "broken")]
)
def test_an_unknown_name_suggests_similar_ones(slip: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        Registry("part", PARTS).get(slip)
    assert caught.value.problem == f"unknown part {slip!r}"
    assert f"did you mean {meant!r}" in caught.value.hint


def test_a_name_without_similar_ones_lists_all() -> None:
    assert "known: broken, counter, ordered" in unknown_name("part", "zzz", PARTS).hint


def test_close_matches_are_sorted_and_at_most_three() -> None:
    names = ["arc_easy", "arc_easier", "arc_eas", "arc_ease", "piqa"]
    found = close_matches("arc_easy", names)
    assert found[0] == "arc_easy"
    assert len(found) == 3
    assert "piqa" not in found


def test_plug_ins_are_found_and_do_not_replace_built_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert asked == ["wpn_bench.parts"]  # once, at the first access


@pytest.mark.parametrize("module", ["wpn_bench.unlearn.methods", "wpn_bench.harmless.judges", "wpn_bench.attacks"])
def test_the_registries_of_the_package_are_lazy(module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'torch', 'transformers', 'pandas', 'detoxify'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("value", ["a_package_nobody_has:x", "collections:nothing"])
def test_the_error_names_a_plug_in_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [EntryPoint("mine", value, group)])
    parts: Registry[object] = Registry("part", PARTS)
    module = value.partition(":")[0]
    with pytest.raises(UserError, match=f"the part 'mine' of the plug-in {module} cannot be loaded .*; fix or"):
        parts.get("mine")


# --- the digest of a plug-in's source ---------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Create a package `outside` with a class in a subpackage, a single module and a namespace package."""
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "__init__.py").write_text("")
    (tmp_path / "outside" / "helper.py").write_text("x = 1\n")
    (tmp_path / "outside" / "deep" / "__init__.py").write_text("")
    (tmp_path / "outside" / "deep" / "part.py").write_text("class Part: pass\n")
    (tmp_path / "outside" / "data.txt").write_text("data")
    (tmp_path / "outside_alone.py").write_text("class Part: pass\n")
    (tmp_path / "outside_space" / "mine").mkdir(parents=True)
    (tmp_path / "outside_space" / "mine" / "__init__.py").write_text("class Part: pass\n")
    (tmp_path / "outside_space" / "theirs.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("outside")]:
        del sys.modules[name]


def test_built_in_parts_have_no_source_digest() -> None:
    assert source_digest(Registry) is None


def test_source_digest_covers_all_code_of_the_package_and_nothing_else(package: Path) -> None:
    from importlib import import_module

    part = import_module("outside.deep.part").Part
    seen = [source_digest(part)]
    (package / "outside" / "data.txt").write_text("others")
    (package / "outside_alone.py").write_text("")
    assert source_digest(part) == seen[0]
    for name, text in (("helper.py", "x = 2\n"), ("deep/part.py", "class Part: ...\n"), ("new.py", "")):
        (package / "outside" / name).write_text(text)
        seen.append(source_digest(part))
    assert None not in seen
    assert len(set(seen)) == 4


def test_source_digest_is_independent_of_the_path(package: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from importlib import import_module

    module = import_module("outside.deep.part")
    before = source_digest(module.Part)
    copy = shutil.copytree(package / "outside", tmp_path_factory.mktemp("other") / "outside")
    sys.modules["outside"].__file__ = str(copy / "__init__.py")
    assert source_digest(module.Part) == before


def test_source_digest_of_a_module_and_of_a_namespace_package(package: Path) -> None:
    from importlib import import_module

    alone, spaced = import_module("outside_alone").Part, import_module("outside_space.mine").Part
    before = source_digest(alone), source_digest(spaced)
    assert None not in before
    (package / "outside_space" / "theirs.py").write_text("x = 2\n")  # of another distribution
    assert (source_digest(alone), source_digest(spaced)) == before
    (package / "outside_alone.py").write_text("class Part: ...\n")
    (package / "outside_space" / "mine" / "__init__.py").write_text("class Part: ...\n")
    after = source_digest(alone), source_digest(spaced)
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_a_part_without_a_file_has_no_source_digest() -> None:
    part = type("Part", (), {"__module__": "nowhere_at_all"})
    sys.modules["nowhere_at_all"] = types.ModuleType("nowhere_at_all")
    try:
        assert source_digest(part) is None
    finally:
        del sys.modules["nowhere_at_all"]
