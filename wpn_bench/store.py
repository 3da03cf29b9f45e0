"""The artifact store: what a stage leaves, addressed by the digest of all that went into it.

Layout: `<store>/<stage>/<digest>/` holds the files of one artifact and, written last, `manifest.json` with the
SHA-256 of each. An artifact is built in `<store>/tmp/` and moved into place by one rename, so a reader sees all of it
or nothing. A file whose digest no longer fits makes the artifact absent, and it is computed again. What an unfinished
stage wants to find again after a crash lies in `<store>/scratch/`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from wpn_bench.errors import UserError

MANIFEST = "manifest.json"
SCRATCH_DAYS = 30  # what nobody came back for in this time goes


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically (a temporary file beside it, flushed to disk, then renamed)."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise


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
            probe = root / "tmp" / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as e:
            raise UserError(
                f"the store {root} cannot be written ({e.strerror})", "give another with --store DIR"
            ) from e
        self._verified: set[Path] = set()

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
    def build(self, stage: str, digest: str, inputs: Mapping[str, Any]) -> Iterator[Path]:
        """Yield an empty folder to fill; on success it becomes the artifact, on an error it is removed.

        If another process finished the same artifact meanwhile, its copy is kept: both are the same by construction.
        """
        work = Path(tempfile.mkdtemp(prefix=f"{stage}-", dir=self.root / "tmp"))
        started = time.monotonic()
        try:
            yield work
            files = {str(p.relative_to(work)): digest_file(p) for p in sorted(work.rglob("*")) if p.is_file()}
            manifest = {
                "stage": stage,
                "digest": digest,
                "inputs": dict(inputs),
                "files": files,
                "seconds": round(time.monotonic() - started, 3),
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
            self._verified.add(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def scratch(self, stage: str, digest: str) -> Path:
        """A folder of the job that outlives a crash (the stage makes it, under `held`); `clear_scratch` removes it."""
        return self.root / "scratch" / f"{stage}-{digest}"

    def clear_scratch(self, stage: str, digest: str) -> None:
        """Remove the job's scratch folder, and those that nobody came back for; not what another process holds."""
        mine = self.scratch(stage, digest)
        for folder in (self.root / "scratch").glob("*-*"):
            with suppress(OSError):
                if folder == mine or time.time() - folder.stat().st_mtime > SCRATCH_DAYS * 86400:
                    with held(folder) as free:
                        if free:
                            shutil.rmtree(folder, ignore_errors=True)

    def _discard(self, folder: Path) -> None:
        # Renamed before it is removed, so that a half-removed artifact is never taken for a whole one.
        grave = Path(tempfile.mkdtemp(prefix="damaged-", dir=self.root / "tmp"))
        os.rename(folder, grave / "artifact")
        shutil.rmtree(grave, ignore_errors=True)


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Make `folder` and hold it against other processes; yields False if one of them holds it.

    The lock is the kernel's, so it ends with the process however that ends.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / "lock"
        with lock.open("a") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            # Its former holder may have removed the folder since the file was opened: then this lock is of no file.
            if lock.exists() and lock.stat().st_ino == os.fstat(f.fileno()).st_ino:
                yield True
                return


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an artifact folder; None if there is none or it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None
