from __future__ import annotations

from pathlib import Path

import pytest

from wpn_bench.benchmarks.definitions import read_folders, short_name, task_folders
from wpn_bench.benchmarks.run import describe
from wpn_bench.benchmarks.selection import select
from wpn_bench.errors import UserError

NINE = [
    "lambada",
    "hellaswag",
    "winogrande",
    "copa",
    "arc_easy",
    "arc_challenge",
    "piqa",
    "mathqa",
    "pubmedqa",
]


@pytest.fixture
def shipped() -> tuple[Path, ...]:
    return task_folders(["benchmarks"])


def test_the_group_of_nine_expands_in_order(shipped: tuple[Path, ...]) -> None:
    assert [short_name(t) for t in select(["wpn_nine"], shipped).tasks] == NINE
    assert select(["wpn_copa", "wpn_nine", "boolq"], shipped).tasks[-1] == "boolq"
    assert len(select(["wpn_copa", "wpn_nine"], shipped).tasks) == 9


@pytest.mark.parametrize("name", NINE)
def test_every_task_says_what_it_is(name: str, shipped: tuple[Path, ...]) -> None:
    info = describe(f"wpn_{name}", shipped, resolve=False)
    assert info.short == name
    assert info.revision is None
    assert info.title
    assert info.licence
    assert info.citation.startswith("https://")
    assert info.chance is not None
    assert 0 <= info.chance < 1
    files = {p.name for p in read_folders(shipped)[f"wpn_{name}"].sources}
    assert files == {f"{name}.yaml", "formats.py"}


def test_an_unknown_task_answers_with_the_nearest(shipped: tuple[Path, ...]) -> None:
    with pytest.raises(UserError, match="did you mean 'wpn_hellaswag'"):
        describe("wpn_helaswag", shipped)


@pytest.mark.slow
def test_lm_evals_own_tasks_are_known_by_name(shipped: tuple[Path, ...]) -> None:
    info = describe("boolq", shipped, resolve=False)
    assert (info.short, info.dataset_path) == ("boolq", "aps/super_glue")
    with pytest.raises(UserError, match=r"unknown task 'bolq'.*'boolq'"):
        describe("bolq", shipped)


def test_a_group_is_no_task(shipped: tuple[Path, ...]) -> None:
    with pytest.raises(UserError, match="is a group of tasks; give the names of its tasks instead"):
        describe("wpn_nine", shipped)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(UserError, match="no folder of tasks at nowhere"):
        task_folders(["nowhere"])


def test_a_broken_task_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("task: [unclosed")
    with pytest.raises(UserError, match=r"bad\.yaml cannot be read"):
        read_folders((tmp_path,))


def test_the_digest_covers_the_helper_and_not_the_place(task_folder: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        read_folders.cache_clear()
        return read_folders((folder,))["wpn_colours"].digest

    before = digest(task_folder)
    moved = tmp_path / "moved"
    task_folder.rename(moved)
    assert digest(moved) == before
    helper = moved / "helper.py"
    helper.write_text(helper.read_text() + "# changed\n")
    after = digest(moved)
    assert after != before
    yaml = moved / "colours.yaml"
    yaml.write_text(yaml.read_text().replace("Q: ", "Question: "))
    assert digest(moved) not in (before, after)


def test_the_digest_covers_what_the_helper_imports_from_this_package(task_folder: Path) -> None:
    (task_folder / "helper.py").write_text(
        "from wpn_bench import errors\nfrom wpn_bench.analysis.stats import wilson\n"
    )
    read_folders.cache_clear()
    names = [p.name for p in read_folders((task_folder,))["wpn_colours"].sources]
    assert names[:2] == ["colours.yaml", "helper.py"]
    assert {"errors.py", "stats.py"} <= set(names)


def test_an_included_file_counts(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("task: base\ndataset_path: json\nmetadata: {title: Base}\n")
    (tmp_path / "derived.yaml").write_text("include: base.yaml\ntask: derived\n")
    found = read_folders((tmp_path,))["derived"]
    assert found.fields["dataset_path"] == "json"
    assert [p.name for p in found.sources] == ["derived.yaml", "base.yaml"]
