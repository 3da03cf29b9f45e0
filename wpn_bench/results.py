"""results.json: its rows and its schema. `run.py` reads a run back as pandas frames."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError

SCHEMA_VERSION = 1
RESULTS = "results.json"
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
DOCUMENTS = "documents.parquet"
BASE = "base"
SUCCESS = "attack_success_rate"
WORST_CASE = "worst_case"  # over all attacks, prompt by prompt: no attack of its own


@dataclass(frozen=True)
class Row:
    """One metric of one model on one set. Rates are fractions; `delta*` and `p_value` are against the base model on
    the same items and None for the base itself; `seed` None sums up all seeds."""

    model: str
    seed: int | None
    suite: str
    set: str
    metric: str
    value: float | None
    n: int
    ci_low: float | None = None
    ci_high: float | None = None
    delta: float | None = None
    delta_ci_low: float | None = None
    delta_ci_high: float | None = None
    p_value: float | None = None

    def json(self) -> dict[str, Any]:
        """As a JSON object; NaN, which JSON has not, becomes null."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    def summed_up(self) -> Row:
        """The same row as the sum of a single seed."""
        return replace(self, seed=None)


def schema() -> dict[str, Any]:
    """The JSON schema of results.json."""
    loaded: dict[str, Any] = json.loads((Path(__file__).with_name("results.schema.json")).read_text(encoding="utf-8"))
    return loaded


def validate(results: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` if `results` is not as the schema says."""
    import jsonschema

    jsonschema.validate(results, schema())


def read_results(run: Path) -> dict[str, Any]:
    """results.json of a run folder."""
    file = run / RESULTS
    try:
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UserError(f"{run} holds no {RESULTS}", "give the folder that `wpn-bench full` printed") from e
    except (OSError, ValueError) as e:
        raise UserError(
            f"{file} cannot be read ({' '.join(str(e).split())[:120]})", "run again with the same --out"
        ) from e
    if not isinstance(results, dict):
        raise UserError(f"{file} is not a run's results", "give the folder that `wpn-bench full` printed")
    if results.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{file} has schema version {results.get('schema_version')!r}, this program reads {SCHEMA_VERSION}",
            "use the version of wpn-bench that wrote it",
        )
    return results
