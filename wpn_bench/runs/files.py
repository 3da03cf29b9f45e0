"""Read and validate the files of a run folder.

`finished.py` reads a whole run as pandas frames.
"""

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
LOG = "log.txt"  # progress of all runs that wrote to this folder
DOCUMENTS = "documents.parquet"
BASE = "base"
ORACLE = "oracle"  # a model that never saw the harm: a reference as the base is, and no method
AGAIN = "run again with the same --out"
_HOLES = ("required", "minItems", "minProperties")


@dataclass(frozen=True)
class Row:
    """One metric of one model on one set.

    Rates are fractions. `delta*` and `p_value` compare the model with the base model on the same items. They are None
    for the base itself. A row whose `seed` is None summarises all seeds.
    """

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
        """Convert the row to a JSON object.

        JSON cannot hold NaN, infinite and too large numbers, so they become null.
        """
        return {k: None if isinstance(v, float) and not abs(v) <= LARGEST else v for k, v in asdict(self).items()}

    def summed_up(self) -> Row:
        """Return a copy of this row without a seed, as the summary of a run with a single seed."""
        return replace(self, seed=None)


def schema() -> dict[str, Any]:
    """Return the JSON schema of results.json."""
    loaded: dict[str, Any] = json.loads((Path(__file__).with_name("results.schema.json")).read_text(encoding="utf-8"))
    return loaded


def validate(results: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` if `results` does not match the schema."""
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
    """Raise `jsonschema.ValidationError` if the rows do not match the schema of results.json."""
    import jsonschema

    jsonschema.validate([row.json() for row in rows], schema()["properties"]["metrics"])


def read_results(run: Path) -> dict[str, Any]:
    """Read results.json from a run folder.

    Raises `UserError` if the file is missing or is not valid. It is not valid if it has another schema version, a value
    of a wrong type, or a number that is too large or not valid JSON.
    """
    file = path_inside(run, RESULTS)
    try:
        results: dict[str, Any] = load_json(file, AGAIN)
    except FileNotFoundError as e:
        raise UserError(f"{run} contains no {RESULTS}", "give the folder that `wpn-bench full` printed") from e
    if not isinstance(results, dict):
        raise UserError(f"{file} is not a run's results", "give the folder that `wpn-bench full` printed")
    if results.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{file} has schema version {results.get('schema_version')!r}, but this version of wpn-bench reads {SCHEMA_VERSION}",
            "use the version of wpn-bench that wrote it",
        )
    if (wrong := _misshapen(results)) is not None:
        raise UserError(f"{file} is damaged ({wrong})", AGAIN)
    return results


def read_manifest(run: Path) -> dict[str, Any]:
    """Read manifest.json from a run folder.

    Returns an empty dict if there is none. The manifest is written last, so an unfinished run has none.
    """
    file = path_inside(run, MANIFEST)
    try:
        manifest = load_json(file, AGAIN)
    except FileNotFoundError:
        return {}
    if not isinstance(manifest, dict):
        raise UserError(f"{file} is not a run's manifest", AGAIN)
    return manifest


def read_rows(file: Path, needed: Iterable[str] = ()) -> pd.DataFrame:
    """Read a table of a run.

    Args:
        file: The Parquet file.
        needed: Names of the columns that the table must have.

    Returns:
        The table; an empty frame if the file does not exist.

    Raises:
        UserError: The file is damaged or lacks a column.
    """
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
    """Rename the score columns of older run folders and stores to `score` and `score:JUDGE`.

    These columns were called `toxicity` and `toxicity:JUDGE` when Detoxify was the only judge.
    """
    old = [column for column in map(str, rows.columns) if column.split(":")[0] == "toxicity"]
    new = {column: column.replace("toxicity", "score", 1) for column in old}
    return rows.rename(columns={column: name for column, name in new.items() if name not in rows.columns})


def check_columns(file: Path, rows: pd.DataFrame, needed: Iterable[str]) -> None:
    """Check that a table has all columns that are needed.

    Args:
        file: File of the table, which the message names.
        rows: The table.
        needed: Names of the columns that it must have.

    Raises:
        UserError: A column is missing.
    """
    if lacking := [column for column in needed if column not in rows.columns]:
        raise UserError(f"{file} is not a valid table of a run: it has no column {lacking[0]!r}", AGAIN)


def _misshapen(results: dict[str, Any]) -> str | None:
    """Describe the first value that does not match the schema, or return None.

    Missing values are allowed outside the rows of metrics, because reports can show them as missing.
    """
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema()).iter_errors(results):
        if error.validator not in _HOLES or (error.path and error.path[0] == "metrics"):
            return f"{'.'.join(map(str, error.path))}: {error.message[:120]}"
    return None
