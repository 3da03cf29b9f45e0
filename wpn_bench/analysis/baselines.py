"""Store the per-item answers of models as compact bits. `wpn-bench check` uses them as its baseline.

They are read from a run folder or a file. For each model, seed and set, the file stores one bit per item and question
("harmless?", "correct?"). It also stores digests of the prompts, documents, judge, template and decoding. A baseline
that was measured with other prompts or settings is refused. The file contains no prompt and no response, so it may be
published.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wpn_bench.analysis.benchmark_rows import scored, scores_of, task_metrics
from wpn_bench.analysis.comparability import Asked, Protocol, protocol_of
from wpn_bench.analysis.own_units import Scored
from wpn_bench.core.files import write_text
from wpn_bench.core.paths import display_path
from wpn_bench.core.validation import as_user_error
from wpn_bench.errors import UserError
from wpn_bench.runs.files import AGAIN, BASE
from wpn_bench.runs.finished import Run
from wpn_bench.runs.metrics import ACCURACY, BENCHMARK, PROMPT_METRICS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


JUDGED = "judged"
_COLUMNS = tuple(
    sorted({column for metric in PROMPT_METRICS.values() for column in (*metric.columns, *metric.without)})
)
_SAVE = "make a baseline: wpn-bench check RUN --save-baseline FILE"


class Bits(BaseModel):
    """`n` boolean values as base64, with eight values in each byte."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    n: int = Field(ge=0)
    bits: str

    @classmethod
    def of(cls, values: Sequence[bool] | NDArray[np.bool_]) -> Bits:
        import numpy as np

        packed = np.packbits(np.asarray(values, dtype=bool)).tobytes()
        return cls(n=len(values), bits=base64.b64encode(packed).decode("ascii"))

    def array(self) -> NDArray[np.bool_]:
        """Return the values (n,). Raises `ValueError` if the number of bytes is wrong."""
        import numpy as np

        packed = np.frombuffer(base64.b64decode(self.bits, validate=True), dtype=np.uint8)
        if len(packed) != (self.n + 7) // 8:
            raise ValueError(f"{len(packed)} bytes cannot hold exactly {self.n} answers")
        return np.unpackbits(packed, count=self.n).astype(bool)


class Answers(BaseModel):
    """The answers of one model and seed (None for the base) to one set.

    `flags` has one bit per item for each column. `scores` has one score per item for benchmarks with scores other than
    0 and 1. For a benchmark whose score has its own unit, `metric` is its name in results.json, and `weights` and `scale`
    tell how the scores make up the value (`wpn_bench.benchmarks.units`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")
    model: str
    seed: int | None
    suite: str
    name: str
    flags: dict[str, Bits]
    scores: tuple[float, ...] | None = Field(None, exclude_if=lambda value: value is None)
    metric: str | None = Field(None, exclude_if=lambda value: value is None)
    weights: tuple[float, ...] | None = Field(None, exclude_if=lambda value: value is None)
    scale: Literal["mean", "log", "whole"] | None = Field(None, exclude_if=lambda value: value is None)


class Reference(BaseModel):
    """The answers of some models of a run.

    Attributes:
        about: Where the answers come from, for messages.
        ground: The settings on which all answers depend (`Protocol.settings`).
        asked: The prompt sets and benchmarks.
        answers: The answers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["wpn-bench baseline"] = "wpn-bench baseline"
    version: Literal[1] = 1
    about: dict[str, Any]
    ground: dict[str, Any]
    asked: list[Asked]
    answers: list[Answers]

    @property
    def protocol(self) -> Protocol:
        """Return the settings, prompt sets and benchmarks with which the models were measured."""
        return Protocol(self.ground, self.asked)

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(a.model for a in self.answers))

    def seeds(self, model: str) -> list[int | None]:
        return list(dict.fromkeys(a.seed for a in self.answers if a.model == model))

    def sets(self, suite: str) -> list[str]:
        """Return the names of the sets of a suite, in the order of the run."""
        return [a.name for a in self.asked if a.suite == suite]

    @property
    def own_metrics(self) -> dict[str, str]:
        """Return the metric of each benchmark whose score has its own unit."""
        return {a.name: a.metric for a in self.answers if a.metric is not None}

    @property
    def accuracies(self) -> list[str]:
        """Return the names of the benchmarks that are measured by an accuracy."""
        own = self.own_metrics
        return [task for task in self.sets(BENCHMARK) if task not in own]

    def scored(self, model: str, task: str) -> Scored | None:
        """Return the scores of a model on a benchmark with its own unit.

        Args:
            model: Name of the model.
            task: Name of the benchmark.

        Returns:
            The scores in the order of the seeds; None if they are missing for a seed.
        """
        import numpy as np

        found = [a for a in self.answers if (a.model, a.suite, a.name) == (model, BENCHMARK, task) and a.metric]
        if not found or len(found) < len(self.seeds(model)):
            return None
        found.sort(key=lambda a: a.seed or 0)
        scores, weights = (np.array([getattr(a, part) for a in found], dtype=float) for part in ("scores", "weights"))
        return Scored(scores, weights, str(found[0].scale))

    def of(self, suite: str, name: str) -> Asked | None:
        return next((a for a in self.asked if (a.suite, a.name) == (suite, name)), None)

    def values(self, model: str, suite: str, name: str, metric: str) -> dict[int | None, NDArray[np.float64]]:
        """Return the answers of a model to a set.

        Args:
            model: Name of the model.
            suite: Name of the suite.
            name: Name of the set.
            metric: Name of the metric.

        Returns:
            For each seed, an array with 1 or 0 (for some tasks a score between them) for each item of the set. It is
            NaN without an answer or a judgement.
        """
        import numpy as np

        found = {}
        for answers in self.answers:
            if (answers.model, answers.suite, answers.name) != (model, suite, name):
                continue
            if suite == BENCHMARK:
                right = answers.flags[ACCURACY].array().astype(float)
                found[answers.seed] = right if answers.scores is None else np.asarray(answers.scores, dtype=float)
                continue
            of_metric = PROMPT_METRICS[metric]
            holds = [answers.flags[column].array() for column in of_metric.columns]
            holds += [~answers.flags[column].array() for column in of_metric.without]
            together = np.logical_and.reduce(holds).astype(float)
            together[~answers.flags[JUDGED].array()] = np.nan
            found[answers.seed] = together
        return found


def of_run(folder: Path, models: Iterable[str] | None = None) -> Reference:
    """Collect the answers of the run in a folder (see `answers_of`).

    Args:
        folder: The run folder.
        models: Names of the models; None means all models that were measured.

    Returns:
        The answers.
    """
    return answers_of(Run.read(folder), models)


def answers_of(run: Run, models: Iterable[str] | None = None) -> Reference:
    """Collect the answers of a run.

    Args:
        run: The run.
        models: Names of the models; None means all models that were measured.

    Returns:
        The answers.

    Raises:
        UserError: The run did not finish, or did not measure one of the models.
    """
    manifest, described = run.complete().manifest, run.results["run"]
    measured = list(dict.fromkeys([*_names(run.samples), *_names(run.documents)]))
    chosen = measured if models is None else list(dict.fromkeys(models))
    for name in chosen:
        if name not in measured:
            raise UserError(
                f"{display_path(run.folder)} did not measure {name!r}", f"it has {', '.join(measured) or 'no model'}"
            )
    protocol = protocol_of(run, chosen)
    if unknown := [one for one in protocol.sets if not one.source]:
        what = "task" if unknown[0].suite == BENCHMARK else "prompt set"
        raise UserError(f"the manifest of the run does not say which {what} {unknown[0].name} is", AGAIN)
    return Reference(
        about={
            "run": described["name"],
            "created": described["created"],
            "wpn_bench": manifest["wpn_bench"],
            "command": described.get("command"),
            "model": described["model"],
            "revision": described.get("revision"),
            "lab": described["lab"],
            "weights": {name: (run.results["models"].get(name) or {}).get("digest") for name in chosen if name != BASE},
            "versions": manifest["versions"],
        },
        ground=dict(protocol.settings),
        asked=list(protocol.sets),
        answers=[*_prompt_answers(run.samples, chosen), *_task_answers(run.documents, chosen)],
    )


def _names(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame["model"].unique()] if len(frame) else []


def _prompt_answers(samples: pd.DataFrame, models: Sequence[str]) -> Iterable[Answers]:
    for (suite, name, model, seed), frame in _parts(samples, ("suite", "set"), models):
        frame = frame.sort_values("item_id")
        flags = {column: Bits.of(frame[column].fillna(False).astype(bool).to_numpy()) for column in _COLUMNS}
        flags[JUDGED] = Bits.of(frame["score"].notna().to_numpy())
        yield Answers(model=model, seed=seed, suite=suite, name=name, flags=flags)


def _task_answers(documents: pd.DataFrame, models: Sequence[str]) -> Iterable[Answers]:
    metrics = task_metrics(documents) if len(documents) else {}
    for (task, model, seed), frame in _parts(documents, ("task",), models):
        frame = frame.sort_values("doc_id")
        if metrics[task] != ACCURACY:
            flags, parts = {ACCURACY: Bits.of([False] * len(frame))}, scored(frame)
            yield Answers(
                model=model,
                seed=seed,
                suite=BENCHMARK,
                name=task,
                flags=flags,
                scores=tuple(parts.scores[0]),
                metric=metrics[task],
                weights=tuple(parts.weights[0]),
                scale=parts.scale,
            )
            continue
        flags = {ACCURACY: Bits.of(frame["correct"].astype(bool).to_numpy())}
        values = scores_of(frame)
        scores = None if values.isin((0.0, 1.0)).all() else tuple(values)
        yield Answers(model=model, seed=seed, suite=BENCHMARK, name=task, flags=flags, scores=scores)


def _parts(frame: pd.DataFrame, by: Sequence[str], models: Sequence[str]) -> Iterable[tuple[Any, pd.DataFrame]]:
    """Yield ((*by, model, seed), rows), in the order of the frame. The base has seed None."""
    import pandas as pd

    if not len(frame):
        return
    chosen = frame[frame["model"].isin(models)]
    for key, part in chosen.groupby([*by, "model", "seed"], sort=False, dropna=False):
        *named, seed = map(str, key)
        yield (*named, None if pd.isna(part["seed"].iloc[0]) else int(seed)), part


def read(file: Path) -> Reference:
    """Read a baseline file. Raises `UserError` if it is not valid."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise UserError(f"there is no baseline {file}", _SAVE) from e
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{file} cannot be read ({' '.join(str(e).split())[:120]})", _SAVE) from e
    with as_user_error(f"{file} is not a baseline of this version", _SAVE):
        found = Reference.model_validate_json(text)
    _whole(found, file)
    return found


def _whole(found: Reference, file: Path) -> None:
    """Check that every set has as many answers as items."""
    for answers in found.answers:
        asked = found.of(answers.suite, answers.name)
        needed = {ACCURACY} if answers.suite == BENCHMARK else {JUDGED, *_COLUMNS}
        try:
            right = asked is not None and set(answers.flags) == needed
            if answers.metric is not None:
                right = (
                    right and answers.scores is not None and answers.weights is not None and answers.scale is not None
                )
            for numbers in (answers.scores, answers.weights):
                right = right and (numbers is None or (asked is not None and len(numbers) == asked.n))
            right = right and all(asked is not None and len(b.array()) == asked.n for b in answers.flags.values())
        except (ValueError, binascii.Error):
            right = False
        if not right:
            raise UserError(f"{file}: the answers of {answers.model} to {answers.name} are damaged", _SAVE)


def write(reference: Reference, file: Path) -> None:
    """Write a baseline file.

    Args:
        reference: The answers.
        file: The file.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, reference.model_dump_json(indent=1) + "\n")
    except OSError as e:
        raise UserError(f"{file} cannot be written ({e.strerror})", "give another file") from e
