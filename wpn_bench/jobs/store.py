"""The artifact store. It holds the output of each job under the digest of the job's inputs.

`<store>/<stage>/<digest>/` holds the files of one artifact. Its `manifest.json` is written last and contains the
SHA-256 of each file. An artifact is built in `<store>/tmp/` and moved to its place by one rename, so that readers see
all of it or nothing. It is computed again if a file no longer matches its digest, or if an input has changed since.

`<store>/scratch/` holds what unfinished jobs need after a crash. `<store>/crashes/` holds the traceback of each job
whose last attempt raised an unexpected error. `<store>/locks/` shows which jobs are running. The kernel releases a lock
when its process ends.
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

from wpn_bench.core.files import (
    check_locks,
    digest_file,
    digest_of,
    fsync_path,
    try_lock,
    try_lock_temporary,
    write_json,
)
from wpn_bench.errors import UserError

MANIFEST = "manifest.json"
SCRATCH_DAYS = 30  # unused scratch folders are removed after this time
ABANDONED_SECONDS = 60  # an unlocked temporary folder of this age was left by a killed process


def default_store() -> Path:
    """Return the folder in `WPN_BENCH_STORE`, or by default a folder in the user's cache."""
    from_env = os.environ.get("WPN_BENCH_STORE")
    return Path(from_env) if from_env else Path(platformdirs.user_cache_dir("wpn-bench")) / "store"


class Store:
    """A folder of artifacts that several runs share.

    Args:
        root: The folder, which is created if necessary.

    Raises:
        UserError: The folder cannot be written, or its file system does not support locks.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            (root / "tmp").mkdir(parents=True, exist_ok=True)
            check_locks(root / "tmp")
        except OSError as e:
            raise UserError(
                f"the store {root} cannot be written ({e.strerror})", "choose another folder with --store DIR"
            ) from e
        self._verified: set[Path] = set()
        self._remove_abandoned()

    def path(self, stage: str, digest: str) -> Path:
        """Return the folder of an artifact.

        Args:
            stage: Stage of its job.
            digest: Digest of its job.

        Returns:
            The folder, which need not exist.
        """
        return self.root / stage / digest

    def find(self, stage: str, digest: str) -> Path | None:
        """Find an artifact and check its files, once per process. A damaged artifact is removed.

        Args:
            stage: Stage of its job.
            digest: Digest of its job.

        Returns:
            The folder; None if the artifact is missing or damaged.
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
        unhashed_files: Collection[str] = (),
        about: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[Path]:
        """Yield an empty folder for the files of an artifact. It is stored on success and removed on an error.

        If another process finishes the same artifact first, its copy is kept. Both copies are equal, because the digest
        covers everything that determines the output.

        Args:
            stage: Stage of the job.
            digest: Digest of the job.
            inputs: Inputs of the job, for the manifest.
            made_from: Content digest of each artifact that is an input.
            unhashed_files: Files that no other stage reads and that may differ between two executions of the job, for
                example because they contain durations. They are not part of the content digest.
            about: Further entries of the manifest, which are read at the end. Its `seconds` are added to the measured
                seconds.

        Yields:
            The folder to fill.
        """
        with self.temporary_folder(stage) as work:
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
                "content": digest_of({name: found for name, found in files.items() if name not in unhashed_files}),
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
        """Return the content digest of an artifact: the SHA-256 over its files, without the unhashed ones.

        Two executions of the same job give the same content digest, unless the hardware computed different results.

        Args:
            folder: Folder of the artifact.

        Returns:
            The digest; an empty string for a folder that is not an artifact of this store.
        """
        manifest = read_manifest(folder) if folder.parent.parent == self.root else None
        return str((manifest or {}).get("content", ""))

    def discard(self, folder: Path) -> None:
        """Remove an artifact from the store."""
        self._verified.discard(folder)
        self._discard(folder)

    @contextmanager
    def claim(self, stage: str, digest: str) -> Iterator[bool]:
        """Lock a job. The lock is released when the process ends.

        Args:
            stage: Stage of the job.
            digest: Digest of the job, or another name to lock.

        Yields:
            True if this process now has the lock, False if another process has it.
        """
        with try_lock_temporary(self.root / "locks" / f"{stage}-{digest}") as acquired:
            yield acquired

    @contextmanager
    def temporary_folder(self, stage: str) -> Iterator[Path]:
        """Yield an empty folder in `tmp/`. This process keeps it locked, and it is removed afterwards."""
        folder = Path(tempfile.mkdtemp(prefix=f"{stage}-", dir=self.root / "tmp"))
        with try_lock(folder) as _:
            work = folder / "artifact"
            work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _remove_abandoned(self) -> None:
        """Remove the unlocked folders in `tmp/` that killed processes left behind."""
        for folder in (self.root / "tmp").glob("*-*"):
            with suppress(OSError):
                if not folder.is_dir() or time.time() - folder.stat().st_mtime < ABANDONED_SECONDS:
                    continue  # another process may have just created it and not locked it yet
                with try_lock(folder) as acquired:
                    if acquired:
                        shutil.rmtree(folder, ignore_errors=True)

    def scratch(self, stage: str, digest: str) -> Path:
        """Return the scratch folder of a job. It survives a crash, and `clear_scratch` removes it.

        The stage creates the folder and locks it with `try_lock`.

        Args:
            stage: Stage of the job.
            digest: Digest of the job.

        Returns:
            The folder, which need not exist.
        """
        return self.root / "scratch" / f"{stage}-{digest}"

    def crash_file(self, stage: str, digest: str) -> Path:
        """Return the file for the traceback of a job.

        Args:
            stage: Stage of the job.
            digest: Digest of the job.

        Returns:
            The file. It exists if the last attempt at the job ended with an unexpected error.
        """
        return self.root / "crashes" / f"{stage}-{digest[:16]}.txt"

    def clear_scratch(self, stage: str, digest: str) -> None:
        """Remove the scratch folder of a job, and all scratch folders that were not used for `SCRATCH_DAYS`.

        Locked folders are kept.

        Args:
            stage: Stage of the job.
            digest: Digest of the job.
        """
        own = self.scratch(stage, digest)
        for folder in (self.root / "scratch").glob("*-*"):
            with suppress(OSError):
                if folder == own or time.time() - folder.stat().st_mtime > SCRATCH_DAYS * 86400:
                    with try_lock(folder) as acquired:
                        if acquired:
                            shutil.rmtree(folder, ignore_errors=True)

    def _discard(self, folder: Path) -> None:
        # The folder is renamed first, so that a partly removed artifact is never mistaken for a complete one.
        trash = Path(tempfile.mkdtemp(prefix="damaged-", dir=self.root / "tmp"))
        with suppress(FileNotFoundError):  # another process removed it first
            os.rename(folder, trash / "artifact")
        shutil.rmtree(trash, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of an artifact folder, or None if it is missing or invalid."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None
