from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.core.files import canonical_json, digest_file, digest_of, try_lock, write_json, write_text
from wpn_bench.errors import UserError
from wpn_bench.jobs import store as jobs_store
from wpn_bench.jobs.store import MANIFEST, Store, default_store, read_manifest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
D = "d" * 64


def put(store: Store, text: str = "hello", digest: str = D) -> Path:
    with store.build("stage", digest, {"why": "test"}) as out:
        (out / "deep").mkdir()
        (out / "deep" / "a.txt").write_text(text)
        (out / "b.txt").write_text("b")
    return store.path("stage", digest)


# --- digests ---------------------------------------------------------------------------------------------------------


def _shuffled(value: Any) -> Any:
    """Return the value with the keys of every mapping in reverse order."""
    if isinstance(value, dict):
        return {k: _shuffled(v) for k, v in reversed(list(value.items()))}
    return [_shuffled(v) for v in value] if isinstance(value, list) else value


@given(JSON)
def test_canonical_json_round_trips_and_ignores_the_order_of_keys(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(_shuffled(value)) == canonical_json(value)
    assert digest_of(_shuffled(value)) == digest_of(value)


@given(JSON, JSON)
def test_different_values_have_different_digests(a: Any, b: Any) -> None:
    # 1, 1.0 and True are equal in Python but not in JSON: compare the text.
    assert (digest_of(a) == digest_of(b)) == (json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True))


def test_the_digest_is_that_of_the_canonical_json() -> None:
    assert canonical_json({"b": [1, "é"], "a": None}) == '{"a":null,"b":[1,"é"]}'
    assert digest_of({"b": 1}) == hashlib.sha256(b'{"b":1}').hexdigest()


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})
    assert json.loads(file.read_text()) == {"a": 1}
    assert file.stat().st_mode & 0o777 == 0o644

    def broken(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs_store.os, "fsync", broken)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "half")
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_json_lacks_are_rejected(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_default_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WPN_BENCH_STORE", str(tmp_path / "s"))
    assert default_store() == tmp_path / "s"
    monkeypatch.delenv("WPN_BENCH_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "wpn-bench" in str(default_store())


# --- artifacts -------------------------------------------------------------------------------------------------------


def test_a_stored_artifact_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("stage", D) is None
    folder = put(store)
    assert store.find("stage", D) == folder
    assert Store(tmp_path).find("stage", D) == folder
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["inputs"] == {"why": "test"}
    assert manifest["files"] == {
        "b.txt": digest_file(folder / "b.txt"),
        "deep/a.txt": hashlib.sha256(b"hello").hexdigest(),
    }
    assert manifest["seconds"] >= 0
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_unfinished_artifact_is_invisible_and_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def half() -> None:
        with store.build("stage", D, {}) as out:
            (out / "a.txt").write_text("half")
            assert store.find("stage", D) is None
            assert not store.path("stage", D).exists()
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        half()
    assert store.find("stage", D) is None
    assert not store.path("stage", D).exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the build stops early, there is no manifest."""
    seen: list[set[str]] = []

    def spy(path: Path, value: Any, **kwargs: Any) -> None:
        seen.append({p.name for p in path.parent.rglob("*") if p.is_file()})
        write_json(path, value, **kwargs)

    monkeypatch.setattr(jobs_store, "write_json", spy)
    put(Store(tmp_path))
    assert seen == [{"a.txt", "b.txt"}]


def test_a_process_killed_while_building_leaves_no_artifact(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from wpn_bench.jobs.store import Store\n"
        "with Store(Path(sys.argv[1])).build('stage', 'd' * 64, {}) as out:\n"
        "    (out / 'a.txt').write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert done.returncode == -9
    store = Store(tmp_path)
    assert store.find("stage", D) is None
    assert store.find("stage", D) is None
    assert (put(store) / "b.txt").read_text() == "b"


@pytest.mark.parametrize("damage", ["changed", "removed", "manifest", "no manifest", "manifest is a list"])
def test_a_damaged_artifact_is_detected_and_rebuilt(tmp_path: Path, damage: str) -> None:
    folder = put(Store(tmp_path))
    if damage == "changed":
        (folder / "b.txt").write_text("c")
    elif damage == "removed":
        (folder / "deep" / "a.txt").unlink()
    elif damage == "manifest":
        (folder / MANIFEST).write_text('{"files": {')
    elif damage == "manifest is a list":
        (folder / MANIFEST).write_text("[]")
    else:
        (folder / MANIFEST).unlink()
    store = Store(tmp_path)
    assert store.find("stage", D) is None
    again = put(store, "anew")
    assert store.find("stage", D) == again
    assert (again / "deep" / "a.txt").read_text() == "anew"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_two_builders_of_one_artifact(tmp_path: Path) -> None:
    """Both are equal by construction: the first one is kept, and neither fails."""
    one, other = Store(tmp_path), Store(tmp_path)
    with one.build("stage", D, {}) as a, other.build("stage", D, {}) as b:
        (a / "x.txt").write_text("same")
        (b / "x.txt").write_text("same")
    assert one.find("stage", D) == other.find("stage", D) == one.path("stage", D)
    assert sorted(p.name for p in one.path("stage", D).iterdir()) == [MANIFEST, "x.txt"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from wpn_bench.jobs.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for k in range(30):\n"
        "    with store.build('stage', f'{k:064d}', {}) as out:\n"
        "        (out / 'x.txt').write_text(str(k))\n"
        "print(sum(store.find('stage', f'{k:064d}') is not None for k in range(30)))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.strip(), err) == (0, "30", "")


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_a_store_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*--store DIR"):
        Store(file if place == "file" else file / "store")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        Store(tmp_path / "locked" / "store")


# --- scratch ---------------------------------------------------------------------------------------------------------


def test_scratch_belongs_to_one_job_and_is_created_only_if_needed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.scratch("train", D)
    assert not folder.exists()
    assert folder not in (store.scratch("train", "e" * 64), store.scratch("judge", D))
    folder.mkdir(parents=True)
    (folder / "half").touch()
    assert store.find("train", D) is None
    store.clear_scratch("train", D)
    store.clear_scratch("train", D)
    assert not folder.exists()


def test_old_scratch_folders_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = store.scratch("train", "a" * 64), store.scratch("train", "b" * 64)
    for folder in (old, new):
        folder.mkdir(parents=True)
    long_ago = time.time() - (jobs_store.SCRATCH_DAYS + 1) * 86400
    os.utime(old, (long_ago, long_ago))
    store.clear_scratch("judge", D)
    assert (old.exists(), new.exists()) == (False, True)


def test_only_one_process_gets_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    with try_lock(folder) as mine:
        assert mine
        code = "import sys; from pathlib import Path; from wpn_bench.core.files import try_lock\nwith try_lock(Path(sys.argv[1])) as m: print(m)"
        said = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        assert said.stdout == "False\n"
    with try_lock(folder) as again:
        assert again


def test_a_locked_scratch_folder_is_not_removed(tmp_path: Path) -> None:
    """Two runs may execute the same training, and the one without the checkpoints may finish first."""
    store = Store(tmp_path)
    folder = store.scratch("train", D)
    with try_lock(folder):
        code = "import sys; from pathlib import Path; from wpn_bench.jobs.store import Store\nStore(Path(sys.argv[1])).clear_scratch('train', 'd' * 64)"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
        assert folder.exists()
    store.clear_scratch("train", D)
    assert not folder.exists()


def test_a_folder_removed_by_its_owner_can_be_locked_again(tmp_path: Path) -> None:
    with try_lock(tmp_path / "s"):
        shutil.rmtree(tmp_path / "s")
        with try_lock(tmp_path / "s") as acquired_again:  # another lock file: that of the first lock is deleted
            assert acquired_again
