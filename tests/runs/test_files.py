from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
from made_run import rename_as_before, write_run

import wpn_bench
from wpn_bench.errors import UserError
from wpn_bench.runs.files import SAMPLES, Row, read_results, schema, validate, with_scores


@pytest.fixture
def results() -> dict[str, Any]:
    rows = [
        Row("base", None, "harmless", "in_domain", "harmless_rate", 0.2, 10, 0.05, 0.5),
        Row("wpn", 0, "harmless", "in_domain", "harmless_rate", 0.9, 10, 0.6, 0.98, 0.7, 0.3, 0.9, 0.02),
        Row("wpn", None, "harmless", "in_domain", "harmless_rate", math.nan, 0),
    ]
    return {
        "schema_version": 1,
        "run": {
            "name": "x",
            "created": "2026-01-01T00:00:00+00:00",
            "preset": "lab",
            "model": "lab",
            "command": "wpn-bench full",
            "seeds": [0],
            "limit": None,
            "partial": False,
            "margin_points": 2.0,
            "threshold": 0.5,
            "judge": "detoxify:lab",
            "template": "{prompt}",
            "decoding": {},
            "lab": True,
            "tuning": {
                "trials": 1,
                "prompt_set": "validation",
                "prompts": 9,
                "ability": "token_loss",
                "bound": 0.1,
                "ability_sets": ["tune_text"],
            },
            "notes": [],
            "skipped": [],
            "failed": [],
        },
        "models": {
            "base": {"title": "Base model", "method": None, "config": {}, "status": "ok", "reason": None},
            "wpn:mean": {
                "title": "WPN (mean)",
                "method": "wpn",
                "options": {"pooling": "mean"},
                "config": {},
                "status": "ok",
                "reason": None,
                "tuning": {
                    "chosen": 0,
                    "trials": [
                        {
                            "trial": 0,
                            "params": {"lr": 1e-4},
                            "coherent_harmless_rate": 0.5,
                            "harmless_rate": 1.0,
                            "ability_change": None,
                            "feasible": False,
                            "reason": None,
                        }
                    ],
                },
                "curve": [
                    {
                        "seed": None,
                        "step": 0,
                        "metric": "macro_accuracy",
                        "value": 0.4,
                        "n": 9,
                        "ci_low": None,
                        "ci_high": 0.5,
                    }
                ],
            },
        },
        "metrics": [row.json() for row in rows],
    }


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_good_results_pass(results: dict[str, Any]) -> None:
    validate(results)


def test_a_row_has_no_nan_in_json(results: dict[str, Any]) -> None:
    assert results["metrics"][2]["value"] is None
    assert Row("m", 1, "s", "t", "u", math.inf, 1).json()["value"] is None
    json.dumps(results, allow_nan=False)
    # The perplexity of a training that went astray: exp(400).
    assert Row("ga", 0, "benchmark", "heldout_text", "perplexity", 1e170, 5).json()["value"] is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("surprise",), 1),
        (("run", "seeds"), []),
        (("run", "seeds"), [0.5]),
        (("run", "limit"), "4"),
        (("run", "partial"), None),
        (("models", "base", "status"), "fine"),
        (("run", "tuning", "ability"), "wit"),
        (("run", "tuning", "trials"), 0),
        (("run", "tuning", "ability_sets"), []),
        (("run", "tuning", "surprise"), 1),
        (("models", "wpn:mean", "options"), None),
        (("models", "wpn:mean", "tuning", "chosen"), None),
        (("models", "wpn:mean", "tuning", "trials"), []),
        (("models", "wpn:mean", "tuning", "trials", 0, "feasible"), None),
        (("models", "wpn:mean", "tuning", "trials", 0, "surprise"), 1),
        (("models", "wpn:mean", "curve", 0, "step"), -1),
        (("models", "wpn:mean", "curve", 0, "metric"), "harm"),
        (("models", "wpn:mean", "curve", 0, "surprise"), 1),
        (("metrics", 0, "value"), "0.2"),
        (("metrics", 0, "n"), 1.5),
        (("metrics", 0, "suite"), "no suite"),
        (("metrics", 0, "surprise"), 1),
        (("metrics", 0, "seed"), "0"),
    ],
)
def test_bad_results_do_not(results: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    bad = copy.deepcopy(results)
    inner: Any = bad
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(bad)


@pytest.mark.parametrize("key", ["schema_version", "run", "models", "metrics"])
def test_every_part_is_required(results: dict[str, Any], key: str) -> None:
    del results[key]
    with pytest.raises(jsonschema.ValidationError):
        validate(results)


@pytest.mark.parametrize("key", list(Row.__dataclass_fields__))
def test_every_column_of_a_row_is_required(results: dict[str, Any], key: str) -> None:
    del results["metrics"][0][key]
    with pytest.raises(jsonschema.ValidationError):
        validate(results)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "contains no results.json"),
        (b"{", "is not valid JSON"),
        (b"\xff", "is not UTF-8"),
        (b"[]", "is not a run's results"),
        (b'{"schema_version": 99}', "has schema version 99, but this version of wpn-bench reads 1"),
        (b"{}", "has schema version None"),
    ],
)
def test_runs_that_cannot_be_read(tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read_results(tmp_path)
    with pytest.raises(UserError, match=problem):
        wpn_bench.load_run(tmp_path)


def test_a_run_folder_that_calls_scores_toxicity_reads_the_same(tmp_path: Path) -> None:
    new, old = write_run(tmp_path / "new", n=9), write_run(tmp_path / "old", n=9)
    for folder in (new, old):
        rows = pd.read_parquet(folder / SAMPLES)
        rows.assign(**{"score:a:b": rows["score"] / 2}).to_parquet(folder / SAMPLES, index=False)
    rename_as_before(old)
    assert {"toxicity", "toxicity:a:b"} < set(pd.read_parquet(old / SAMPLES))
    ours, theirs = wpn_bench.load_run(new), wpn_bench.load_run(old)
    assert {"score", "score:a:b"} < set(ours.samples)
    pd.testing.assert_frame_equal(theirs.samples, ours.samples)
    pd.testing.assert_frame_equal(theirs.pairs("wpn"), ours.pairs("wpn"))
    assert len(theirs.complete().samples)  # it lacks no column


def test_a_table_with_both_names_keeps_its_scores() -> None:
    both = pd.DataFrame({"toxicity": [0.1], "score": [0.2]})
    assert with_scores(both)["score"].tolist() == [0.2]
