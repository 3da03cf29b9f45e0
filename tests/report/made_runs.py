"""Small runs whose rows are counted from their own items, so that two of them can be paired and checked by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from wpn_bench.analysis import benchmark_rows, metric_rows

SETS = {
    "in_domain": "harmless",
    "far": "ood",
    "further": "ood",
    "typos": "attack",
    "role_play": "attack",
    "tea": "benign",
}
NOT_TO_REFUSE = [("benign", "tea")]
TASKS = ("copa", "piqa")
ITEMS, DOCUMENTS = 40, 50


@dataclass
class Made:
    """What a made-up run answers. `harmless`: (model, seed) -> items answered harmlessly, in every set; `right`: the same for
    documents. `manifest` and `about` go over what the run says of itself."""

    harmless: dict[tuple[str, int | None], set[int]]
    right: dict[tuple[str, int | None], set[int]]
    incoherent: set[int] = field(default_factory=set)  # items of which no answer is coherent
    base_says: str = "no"
    manifest: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 1e-4

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed in self.harmless if seed is not None})

    def write(self, folder: Path) -> Path:
        samples, documents = self._samples(), self._documents()
        rows = [*metric_rows.prompt_rows(samples, 0.5, NOT_TO_REFUSE), *metric_rows.worst_case_rows(samples, 0.5)]
        rows += benchmark_rows.benchmark_rows(documents)
        models = {
            name: {
                "title": {"base": "Base model", "wpn": "WPN", "sft": "Fine-tuning"}.get(name, name),
                "method": None if name == "base" else name,
                "status": "ok",
                "config": {} if name == "base" else {"steps": 100, "lr": self.lr},
            }
            for name in dict.fromkeys(name for name, _ in self.harmless)
        }
        run = {
            "name": folder.name, "created": "2026-11-21T10:02:11+00:00", "model": "a/model", "seeds": self.seeds,
            "preset": "paper", "limit": None, "threshold": 0.5, "judge": "detoxify:original", "template": "{prompt}",
            "decoding": {"max_new_tokens": 40, "batch_size": 8}, "margin_points": 2.0, "failed": [], "skipped": [],
        }  # fmt: skip
        results = {"schema_version": 1, "run": run | dict(self.about), "models": models}
        results["metrics"] = [row.json() for row in metric_rows.sum_up(rows)]
        manifest = {
            "wpn_bench": "0.1.0", "model": {"digest": "ab" * 32}, "judge": {"digest": "cd" * 32},
            "config": {"preset": "paper", "device": "cpu"}, "versions": {"torch": "2.13.0"},
            "prompt_sets": {name: {"suite": suite, "n": ITEMS, "digest": f"{i}e" * 32} for i, (name, suite) in enumerate(SETS.items())},
            "tasks": {name: {"task": f"wpn_{name}", "digest": f"{i}f" * 32} for i, name in enumerate(TASKS)},
        }  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        (folder / "manifest.json").write_text(json.dumps(manifest | dict(self.manifest)), encoding="utf-8")
        samples.to_parquet(folder / "samples.parquet", index=False)
        documents.to_parquet(folder / "documents.parquet", index=False)
        return folder

    def _samples(self) -> pd.DataFrame:
        rows = [
            {
                "model": model, "seed": seed, "suite": suite, "set": name, "item_id": f"{name}-{i}" if suite != "attack" else f"p{i}",
                "response": self.base_says if model == "base" else f"{i in good}", "score": 0.1 if i in good else 0.9,
                "harmless": i in good, "coherent": i not in self.incoherent, "refusal": False, "prompt": "p",
            }
            for (model, seed), good in self.harmless.items()
            for name, suite in SETS.items()
            for i in range(ITEMS)
        ]  # fmt: skip
        return pd.DataFrame(rows).astype({"seed": "Int64", "harmless": "boolean", "coherent": "boolean"})

    def _documents(self) -> pd.DataFrame:
        rows = [
            {"model": model, "seed": seed, "task": task, "doc_id": i, "doc_hash": f"{task}{i}", "correct": i in right}
            for (model, seed), right in self.right.items()
            for task in TASKS
            for i in range(DOCUMENTS)
        ]
        return pd.DataFrame(rows).astype({"seed": "Int64"})


def made(
    good: int, right: int = 30, *, seeds: tuple[int, ...] = (0,), models: tuple[str, ...] = ("wpn",), **more: Any
) -> Made:
    """A run whose methods answer the first `good` items harmlessly (one more with each seed) and `right` documents rightly;
    the base 4 and 30."""
    harmless: dict[tuple[str, int | None], set[int]] = {("base", None): set(range(4))}
    right_ones: dict[tuple[str, int | None], set[int]] = {("base", None): set(range(30))}
    for model in models:
        for seed in seeds:
            harmless[model, seed] = set(range(good + seed))
            right_ones[model, seed] = set(range(right))
    return Made(harmless, right_ones, **more)
