"""A small world for whole runs in seconds: a random model, prompt files, a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wpn_bench import config as configuration
from wpn_bench.core.progress import Reporter
from wpn_bench.pipeline import runner
from wpn_bench.runs.files import read_manifest


class Workshop:
    """A folder with a model, prompt files and a store; `run(...)` is a run there."""

    def __init__(self, folder: Path, model: Path, triples: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.notes: list[str] = []
        self.rows("forget.jsonl", triples)
        self.rows("other.jsonl", [{"prompt": f"Say something about number {k}."} for k in range(6)])
        self.rows("benign.jsonl", [{"prompt": f"Where is house number {k}?"} for k in range(5)])
        self.rows(
            "retain.jsonl", [{"text": f"The farmer sells {k} apples in the market of the town."} for k in range(9)]
        )
        self.rows(
            "heldout.jsonl", [{"text": f"The teacher came late to school {k} times this year."} for k in range(9)]
        )
        self.settings: dict[str, Any] = configuration.build("lab").model_dump() | {
            "model": str(model),
            "forget": str(folder / "forget.jsonl"),
            "validation": None,
            "in_domain": (),
            "ood": (f"other={folder / 'other.jsonl'}",),
            "benign": (str(folder / "benign.jsonl"),),
            "retain": str(folder / "retain.jsonl"),
            "heldout": str(folder / "heldout.jsonl"),
            "attacks": ("typos",),
            "benchmarks": ("lab_copa", "lab_piqa"),
            "decoding": {"max_new_tokens": 5, "batch_size": 8},
            "methods": {"sft": {"steps": 2, "batch_size": 2}},
            "limit": 4,
        }

    def rows(self, name: str, rows: list[dict[str, Any]]) -> str:
        file = self.folder / name
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(file)

    def run(self, name: str = "run", **changes: Any) -> dict[str, Any]:
        class Noting(Reporter):
            def note(reporter, text: str) -> None:
                self.notes.append(text)

        return runner.run(
            configuration.from_settings(self.settings | changes),
            out=self.folder / name,
            store=self.store,
            reporter=Noting(),
            command="wpn-bench full",
        )

    def statuses(self, name: str = "run") -> dict[str, str]:
        """label -> status of every job of a run."""
        return {s["label"]: s["status"] for s in read_manifest(self.folder / name)["stages"]}
