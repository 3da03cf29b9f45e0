"""The artifact store: what a stage leaves, addressed by the digest of all that went into it.

Layout: `<store>/<stage>/<digest>/` holds the files of one artifact and, written last, `manifest.json` with the
SHA-256 of each. An artifact is built in `<store>/tmp/` and moved into place by one rename, so a reader sees all of it
or nothing. A file whose digest no longer fits makes the artifact absent, and it is computed again; so does a need whose
content is no longer what the artifact was made from. What an unfinished stage wants to find again after a crash lies in
`<store>/scratch/`. `<store>/locks/` says who is at which job; these locks are the kernel's and die with their owner.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import platformdirs

from wpn_bench.core.files import digest_file, digest_of, fsync_path, try_lock, try_lock_temporary, write_json
from wpn_bench.errors import UserError

MANIFEST = "manifest.json"
SCRATCH_DAYS = 30  # what nobody came back for in this time goes
UNTOUCHED_SECONDS = 60  # after which a folder that nobody holds was left by a process that is no more


def default_store() -> Path:
    """`WPN_BENCH_STORE`, else the user's cache folder."""
    from_env = os.environ.get("WPN_BENCH_STORE")
    return Path(from_env) if from_env else Path(platformdirs.user_cache_dir("wpn-bench")) / "store"


class Store:
    """A folder of artifacts shared by runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            (root / "tmp").mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=root / "tmp", prefix=".probe-"):
                pass
        except OSError as e:
            raise UserError(
                f"the store {root} cannot be written ({e.strerror})", "give another with --store DIR"
            ) from e
        self._verified: set[Path] = set()
        self._sweep()

    def path(self, stage: str, digest: str) -> Path:
        return self.root / stage / digest

    def find(self, stage: str, digest: str) -> Path | None:
        """The artifact's folder if it is there and whole, else None.

        Every file is checked against its digest once per process; a damaged artifact is moved out of the way.
        """
        folder = self.path(stage, digest)
        if folder in self._verified and folder.is_dir():
            return folder
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        for name, recorded in manifest["files"].items():
            file = folder / name
            if not file.is_file() or digest_file(file) != recorded:
                self._discard(folder)
                return None
        self._verified.add(folder)
        return folder

    @contextmanager
    def build(
        self,
        stage: str,
        digest: str,
        inputs: Mapping[str, Any],
        made_from: Mapping[str, str] = MappingProxyType({}),
        aside: Collection[str] = (),
        about: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[Path]:
        """Yield an empty folder to fill; on success it becomes the artifact, on an error it is removed.

        `made_from`: the content of each artifact it is made from. `aside`: files that no other stage reads, and that may
        differ when the same is made again (they tell how long it took). `about`: more for the manifest, read when all is done;
        `seconds` there are added to those it took. If another process finished the same artifact
        meanwhile, its copy is kept: both are the same by construction.
        """
        with self.workplace(stage) as work:
            started = time.monotonic()
            yield work
            found = [p for p in sorted(work.rglob("*")) if p.is_file()]
            for file in found:
                fsync_path(file)
            files = {str(p.relative_to(work)): digest_file(p) for p in found}
            manifest = {
                "stage": stage,
                "digest": digest,
                "inputs": dict(inputs),
                "made_from": dict(made_from),
                "files": files,
                "content": digest_of({name: found for name, found in files.items() if name not in aside}),
                **about,
                "seconds": round(time.monotonic() - started + about.get("seconds", 0.0), 3),
            }
            write_json(work / MANIFEST, manifest)
            target = self.path(stage, digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and read_manifest(target) is None:
                self._discard(target)
            try:
                os.rename(work, target)
            except OSError:
                if read_manifest(target) is None:
                    raise
            fsync_path(target.parent)
            self._verified.add(target)

    def content(self, folder: Path) -> str:
        """SHA-256 of what an artifact holds, as its manifest says; of two makings of the same job it is the same, unless
        the machine computed something else. Empty for what is no artifact of this store."""
        manifest = read_manifest(folder) if folder.parent.parent == self.root else None
        return str((manifest or {}).get("content", ""))

    def discard(self, folder: Path) -> None:
        """Take an artifact out of the store."""
        self._verified.discard(folder)
        self._discard(folder)

    @contextmanager
    def claim(self, stage: str, digest: str) -> Iterator[bool]:
        """Yields whether this process may work at the job: no other one is at it. The claim dies with the process."""
        with try_lock_temporary(self.root / "locks" / f"{stage}-{digest}") as free:
            yield free

    @contextmanager
    def workplace(self, stage: str) -> Iterator[Path]:
        """An empty folder in `tmp/`, held by this process and removed afterwards."""
        place = Path(tempfile.mkdtemp(prefix=f"{stage}-", dir=self.root / "tmp"))
        with try_lock(place) as _:
            work = place / "artifact"
            work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(place, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed processes left in `tmp/`: folders that nobody holds."""
        for place in (self.root / "tmp").glob("*-*"):
            with suppress(OSError):
                if not place.is_dir() or time.time() - place.stat().st_mtime < UNTOUCHED_SECONDS:
                    continue  # its maker may not hold it yet
                with try_lock(place) as free:
                    if free:
                        shutil.rmtree(place, ignore_errors=True)

    def scratch(self, stage: str, digest: str) -> Path:
        """A folder of the job that outlives a crash (the stage makes it, under `held`); `clear_scratch` removes it."""
        return self.root / "scratch" / f"{stage}-{digest}"

    def clear_scratch(self, stage: str, digest: str) -> None:
        """Remove the job's scratch folder, and those that nobody came back for; not what another process holds."""
        mine = self.scratch(stage, digest)
        for folder in (self.root / "scratch").glob("*-*"):
            with suppress(OSError):
                if folder == mine or time.time() - folder.stat().st_mtime > SCRATCH_DAYS * 86400:
                    with try_lock(folder) as free:
                        if free:
                            shutil.rmtree(folder, ignore_errors=True)

    def _discard(self, folder: Path) -> None:
        # Renamed before it is removed, so that a half-removed artifact is never taken for a whole one.
        grave = Path(tempfile.mkdtemp(prefix="damaged-", dir=self.root / "tmp"))
        with suppress(FileNotFoundError):  # another process was faster
            os.rename(folder, grave / "artifact")
        shutil.rmtree(grave, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an artifact folder; None if there is none or it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None
