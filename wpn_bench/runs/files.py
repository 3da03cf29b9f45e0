"""results.json: its rows and its schema. `run.py` reads a run back as pandas frames."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core.json_files import LARGEST, load_json
from wpn_bench.core.paths import path_inside
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


SCHEMA_VERSION = 1
RESULTS = "results.json"
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
DOCUMENTS = "documents.parquet"
BASE = "base"
AGAIN = "run again with the same --out"
_HOLES = ("required", "minItems", "minProperties")


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
        """As a JSON object; NaN, which JSON has not, becomes null, as does what is too large to be worked with."""
        return {k: None if isinstance(v, float) and not abs(v) <= LARGEST else v for k, v in asdict(self).items()}

    def summed_up(self) -> Row:
        """The same row as the sum of a single seed."""
        return replace(self, seed=None)


def schema() -> dict[str, Any]:
    """The JSON schema of results.json."""
    loaded: dict[str, Any] = json.loads((Path(__file__).with_name("results.schema.json")).read_text(encoding="utf-8"))
    return loaded


def validate(results: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` if `results` is not as the schema says."""
    from jsonschema.exceptions import best_match

    if (error := best_match(_validator().iter_errors(results))) is not None:
        raise error


@cache
def _validator() -> Any:
    from jsonschema.validators import validator_for

    kind = validator_for(schema())
    kind.check_schema(schema())
    return kind(schema())


def validate_rows(rows: Iterable[Row]) -> None:
    """Raise `jsonschema.ValidationError` if these rows may not stand in results.json."""
    import jsonschema

    jsonschema.validate([row.json() for row in rows], schema()["properties"]["metrics"])


def read_results(run: Path) -> dict[str, Any]:
    """results.json of a run folder. `UserError` where there is none, or none that this program could have written: of
    another schema, with a number that JSON has not or that is too large, with a value of another type."""
    file = path_inside(run, RESULTS)
    try:
        results: dict[str, Any] = load_json(file, AGAIN)
    except FileNotFoundError as e:
        raise UserError(f"{run} holds no {RESULTS}", "give the folder that `wpn-bench full` printed") from e
    if not isinstance(results, dict):
        raise UserError(f"{file} is not a run's results", "give the folder that `wpn-bench full` printed")
    if results.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{file} has schema version {results.get('schema_version')!r}, this program reads {SCHEMA_VERSION}",
            "use the version of wpn-bench that wrote it",
        )
    if (wrong := _misshapen(results)) is not None:
        raise UserError(f"{file} is damaged ({wrong})", AGAIN)
    return results


def read_manifest(run: Path) -> dict[str, Any]:
    """manifest.json of a run folder; empty where there is none, for it is written last."""
    file = path_inside(run, MANIFEST)
    try:
        manifest = load_json(file, AGAIN)
    except FileNotFoundError:
        return {}
    if not isinstance(manifest, dict):
        raise UserError(f"{file} is not a run's manifest", AGAIN)
    return manifest


def read_rows(file: Path, needed: Iterable[str] = ()) -> pd.DataFrame:
    """A table of a run; an empty frame where the run has none. `UserError` for a damaged one and for one of other
    columns than a run's."""
    import pandas as pd
    import pyarrow as pa

    try:
        rows = pd.read_parquet(path_inside(file.parent, file.name))
    except FileNotFoundError:
        return pd.DataFrame()
    except (OSError, ValueError, pa.ArrowException) as e:
        raise UserError(f"{file} cannot be read ({' '.join(str(e).split())[:120]})", AGAIN) from e
    rows = with_scores(rows)
    check_columns(file, rows, needed)
    return rows


def with_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """A table of judged responses with its columns `score` and `score:JUDGE` under these names.

    Run folders and stores that were written before judges were more than Detoxify call them `toxicity` and
    `toxicity:JUDGE`.
    """
    old = [column for column in map(str, rows.columns) if column.split(":")[0] == "toxicity"]
    new = {column: column.replace("toxicity", "score", 1) for column in old}
    return rows.rename(columns={column: name for column, name in new.items() if name not in rows.columns})


def check_columns(file: Path, rows: pd.DataFrame, needed: Iterable[str]) -> None:
    """Raise `UserError` for a run's table that lacks one of these."""
    if lacking := [column for column in needed if column not in rows.columns]:
        raise UserError(f"{file} is not a run's: it has no column {lacking[0]!r}", AGAIN)


def _misshapen(results: dict[str, Any]) -> str | None:
    """Where a value is not of the kind that the schema says. What lacks is a hole, which a report shows as one; but a
    metric's row has no holes."""
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema()).iter_errors(results):
        if error.validator not in _HOLES or (error.path and error.path[0] == "metrics"):
            return f"{'.'.join(map(str, error.path))}: {error.message[:120]}"
    return None
