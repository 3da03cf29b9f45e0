"""Export the trained models of a run to `RUN/models/`, as folders that transformers can load, each with a model card.

Weights are hard links to the artifacts in the store (copies if the file system has no links), so they need almost no
space. Small files are copied, because users edit them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wpn_bench.core.files import digest_of, write_json, write_text
from wpn_bench.core.paths import path_inside
from wpn_bench.jobs.store import MANIFEST, read_manifest
from wpn_bench.unlearn.lora import ADAPTER

MODELS = "models"
CARD = "README.md"
_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Export:
    """A trained model to export.

    Attributes:
        method: Method that trained it.
        seed: Seed of the training.
        folder: Its folder, relative to the run folder.
        artifact: Its folder in the store.
        files: SHA-256 of each file of the artifact, by file name.
    """

    method: str
    seed: int
    folder: str
    artifact: Path
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the weights. With several weight files, it is that of the list of their digests."""
        weights = {name: d for name, d in self.files.items() if name.endswith(_WEIGHTS) and "/" not in name}
        return next(iter(weights.values())) if len(weights) == 1 else digest_of(weights)


def collect(trained: Mapping[tuple[str, int], Path | None], seeds: Iterable[int]) -> list[Export]:
    """List the models to export. Folder names contain the seed if there are several seeds.

    Args:
        trained: Artifact of each (method, seed); None if training failed.
        seeds: All seeds of the run.

    Returns:
        One record per trained model.
    """
    several = len(list(seeds)) > 1
    found = []
    for (method, seed), path in trained.items():
        manifest = read_manifest(path) if path is not None else None
        if path is not None and manifest is not None:
            name = re.sub(r"[^\w.-]+", "-", method) + (f"-seed{seed}" if several else "")
            found.append(Export(method, seed, f"{MODELS}/{name}", path, manifest["files"]))
    return found


def write(out: Path, models: Iterable[Export], results: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Write the models. Models of an earlier run in the same folder, according to its manifest, are deleted.

    Args:
        out: The run folder.
        models: The models to export.
        results: Content of results.json.
        manifest: Manifest of the run.
    """
    from wpn_bench.analysis.metric_rows import training_of
    from wpn_bench.report.model_card import card

    for folder in _left_before(out):
        shutil.rmtree(folder, ignore_errors=True)
    for one in models:
        target = path_inside(out, one.folder)
        partial = target.with_name(f".{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        for name in _of_the_model(one.files):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            _put(one.artifact / name, partial / name)
        _name_base(partial / ADAPTER / "adapter_config.json", results)
        write_text(partial / CARD, card(results, manifest, training_of(one.artifact), one.method, one.seed, one.digest))
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)


def _of_the_model(files: Iterable[str]) -> list[str]:
    """Return the files of the model. Snapshots of earlier steps, which are in subfolders, are left out."""
    return [name for name in files if "/" not in name or name.startswith(f"{ADAPTER}/")]


def _left_before(out: Path) -> list[Path]:
    try:
        before = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["models"]
        folders = [out / entry["folder"] for seeds in before.values() for entry in seeds.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    # The manifest may come from an untrusted source, so delete only folders directly in models/ and no links.
    return [f for f in folders if f.parent == out / MODELS and f.resolve() == out.resolve() / MODELS / f.name]


def _put(source: Path, target: Path) -> None:
    if source.suffix == _WEIGHTS:
        try:
            os.link(source, target)
        except OSError:  # the run folder is on another file system, or on one without links
            shutil.copyfile(source, target)
    else:
        shutil.copyfile(source, target)
    os.chmod(target, 0o644)  # transformers writes weights that only the owner may read


def _name_base(adapter: Path, results: dict[str, Any]) -> None:
    """Write the name of the base model into the adapter's settings if the name is public, so that peft finds it."""
    if adapter.is_file() and results["run"]["revision"]:
        settings = json.loads(adapter.read_text(encoding="utf-8"))
        named = {"base_model_name_or_path": results["run"]["model"], "revision": results["run"]["revision"]}
        write_json(adapter, settings | named)
