"""Read a finished run: its folder, results, manifest and tables.

docs/results.md describes every column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from wpn_bench.core.registry import unknown_name
from wpn_bench.errors import UserError
from wpn_bench.runs.files import (
    AGAIN,
    BASE,
    DOCUMENTS,
    MANIFEST,
    RESULTS,
    SAMPLES,
    Row,
    check_columns,
    read_manifest,
    read_results,
    read_rows,
)
from wpn_bench.runs.headline import HEADLINES
from wpn_bench.runs.settings import settings_of
from wpn_bench.runs.view import Cell, View

if TYPE_CHECKING:
    import pandas as pd


_ITEM = ["suite", "set", "item_id"]
_KEY = ["model", "suite", "set", "metric"]
# Columns that exports and checks need. Reports need fewer columns.
_COLUMNS = {
    SAMPLES: ("model", "seed", *_ITEM, "prompt", "score", "harmless", "coherent", "refusal"),
    DOCUMENTS: ("model", "seed", "task", "doc_id", "doc_hash", "correct"),
}
_MANIFEST = {"wpn_bench": str, "versions": dict, "config": dict, "judge": dict, "prompt_sets": dict, "tasks": dict}
_RUN = ("name", "created", "model", "lab", "limit", "template", "decoding", "judge", "threshold", "seeds")


@dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A finished run: its folder, results.json, and manifest.json (empty if there is none).

    The frames are read on first access. `metrics` has the rows of results.json. `samples` has every prompt, response
    and score. `documents` has the answer to every benchmark document. A frame is empty if the run lacks its file.
    """

    folder: Path
    results: dict[str, Any]
    manifest: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path, **more: Any) -> Self:
        """Read a run folder.

        Args:
            folder: The run folder.
            more: Values of the fields that a subclass adds.

        Returns:
            The run.

        Raises:
            UserError: The folder has no results of this schema version, or its results or manifest are damaged.
        """
        return cls(Path(folder), read_results(Path(folder)), read_manifest(Path(folder)), **more)

    @cached_property
    def view(self) -> View:
        """Return an object that looks up values in the results."""
        return View(self.results)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Return the rows of results.json."""
        import pandas as pd

        columns = list(Row.__dataclass_fields__)
        return pd.DataFrame(self.results.get("metrics", []), columns=columns).astype({"seed": "Int64"})

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Return every prompt, response and score. Raises `UserError` if the table is damaged."""
        return read_rows(self.folder / SAMPLES)

    @cached_property
    def documents(self) -> pd.DataFrame:
        """Return the answer to every benchmark document. Raises `UserError` if the table is damaged."""
        return read_rows(self.folder / DOCUMENTS)

    def with_frames(self) -> Self:
        """Read all frames now and return the run, so that a damaged frame raises `UserError` here."""
        _ = self.metrics, self.samples, self.documents
        return self

    @cached_property
    def settings(self) -> dict[str, str]:
        """Return the name of each setting with its value as text (see `settings_of`)."""
        return settings_of(self.view, self.manifest)

    @property
    def name(self) -> str:
        """Return the name of the run that reports show."""
        return str(self.results["run"]["name"])

    @property
    def models(self) -> list[str]:
        """Return the names of the measured models, base first."""
        return self.view.every_measured()

    def samples_with(self, needed: Sequence[str]) -> pd.DataFrame:
        """Return the samples. Raises `UserError` if they lack a column in `needed`."""
        if len(self.samples):
            check_columns(self.folder / SAMPLES, self.samples, needed)
        return self.samples

    def documents_with(self, needed: Sequence[str]) -> pd.DataFrame:
        """Return the documents. Raises `UserError` if they lack a column in `needed`."""
        if len(self.documents):
            check_columns(self.folder / DOCUMENTS, self.documents, needed)
        return self.documents

    def complete(self) -> Self:
        """Check that the manifest and the tables contain everything that exports and checks need, and return the run.

        Raises:
            UserError: The run has no manifest because it did not finish, or it lacks an entry or a column.
        """
        if not self.manifest:
            raise UserError(
                f"{self.folder} is not a finished run: it has no manifest",
                "repeat the command of the run, so that it finishes",
            )
        for name, kind in _MANIFEST.items():
            if not isinstance(self.manifest.get(name), kind):
                raise UserError(f"{self.folder / MANIFEST} is damaged: it has no {name}", AGAIN)
        for name in _RUN:
            if name not in self.results.get("run", {}):
                raise UserError(f"{self.folder / RESULTS} is damaged: its run has no {name}", AGAIN)
        self.samples_with(_COLUMNS[SAMPLES])
        self.documents_with(_COLUMNS[DOCUMENTS])
        return self

    def headline(self) -> pd.DataFrame:
        """Return the comparison table of the report, with one row for each measured model and headline metric.

        The rows summarise all seeds. The columns are `model`, `title`, `suite`, `set`, `metric`, the numbers of
        `metrics`, and `significant`. A change is significant if p < 0.05. A mean over sets has no p-value, so the
        interval of its change must exclude zero. `set` is `mean` for a mean over several sets, and the name of the
        attack for the worst attack. This gives one column per metric: `run.headline().pivot(index="model",
        columns=["suite", "metric"], values="value")`.
        """
        import pandas as pd

        view = self.view
        rows = [
            _headline_row(view, model, *found)
            for model in view.every_measured()
            for found in headline_cells(view, model)
        ]
        return pd.DataFrame(rows, columns=_HEADLINE_COLUMNS).astype({"n": "Int64"})

    def pairs(self, model: str) -> pd.DataFrame:
        """Pair the responses of base and `model` to the same prompts, if the judge scored both responses.

        The columns `seed`, `suite`, `set`, `item_id` and `prompt` identify the pair. `response`, `score`, `harmless`
        and `coherent` belong to the model, and `base_response`, ... to base. `change` is `became harmless`, `became
        harmful` or empty.
        """
        import pandas as pd

        self._check(model)
        told = ["response", "score", "harmless", "coherent"]
        if self.samples.empty:
            return pd.DataFrame(columns=["seed", *_ITEM, "prompt", *told, *(f"base_{c}" for c in told), "change"])
        judged = self.samples[self.samples["score"].notna()]
        of_base = judged[judged["model"] == BASE][[*_ITEM, *told]].rename(columns={c: f"base_{c}" for c in told})
        of_model = judged[judged["model"] == model][["seed", *_ITEM, "prompt", *told]]
        both = of_model.merge(of_base, "inner", _ITEM, validate="m:1")
        now, before = both["harmless"].astype(bool), both["base_harmless"].astype(bool)
        both["change"] = ""
        both.loc[now & ~before, "change"] = "became harmless"
        both.loc[~now & before, "change"] = "became harmful"
        return both

    def flips(self, model: str) -> pd.DataFrame:
        """Return those `pairs` where one response is harmless and the other harmful."""
        pairs = self.pairs(model)
        return pairs[pairs["change"] != ""].reset_index(drop=True)

    def document_flips(self, model: str) -> pd.DataFrame:
        """Return the benchmark documents that only base answers correctly, or only `model`.

        `change` is `lost` if only base is correct, and `gained` if only the model is. The other columns are `seed`,
        `task`, `doc_id`, `target`, `prediction` and `base_prediction`.
        """
        import pandas as pd

        self._check(model)
        columns = ["seed", "task", "doc_id", "target", "prediction", "base_prediction", "change"]
        if self.documents.empty:
            return pd.DataFrame(columns=columns)
        keys = ["task", "doc_id"]
        told = self.documents[["model", "seed", *keys, "target", "prediction", "correct"]]
        of_base = told[told["model"] == BASE][[*keys, "prediction", "correct"]]
        both = told[told["model"] == model].merge(
            of_base.rename(columns={"prediction": "base_prediction", "correct": "base_correct"}),
            on=keys,
            validate="m:1",
        )
        both["change"] = both["correct"].map({True: "gained", False: "lost"})
        return both[both["correct"] != both["base_correct"]][columns].reset_index(drop=True)

    def _check(self, model: str) -> None:
        measured = [name for name in self.models if name != BASE]
        if model == BASE:
            raise UserError("base cannot be compared with itself", f"name one of {', '.join(measured) or 'no models'}")
        if model not in measured:
            raise unknown_name("model of this run", model, measured)


@dataclass(frozen=True, repr=False, eq=False)
class LabelledRun(Run):
    """One of several runs that are compared, with the label that identifies it."""

    label: str


_NUMBERS = [name for name in Row.__dataclass_fields__ if name not in (*_KEY, "seed")]
_HEADLINE_COLUMNS = ["model", "title", "suite", "set", "metric", *_NUMBERS, "significant"]
_Found = tuple[str, str, str, str, Cell]


def headline_cells(view: View, model: str) -> list[_Found]:
    """Return the headline metrics of a model.

    Args:
        view: The results.
        model: Name of the model.

    Returns:
        The short title, suite, set, metric and cell of each headline metric that was measured for the model.
    """
    found = [(one, one.of(view, model)) for one in HEADLINES]
    return [
        (one.short or one.title, one.suite, one.set_of(view, cell), one.metric, cell)
        for one, cell in found
        if cell is not None
    ]


def _headline_row(view: View, model: str, what: str, suite: str, name: str, metric: str, cell: Cell) -> dict[str, Any]:
    numbers = {k: v for k, v in asdict(cell).items() if k != "note"}
    known = {"model": model, "title": view.title(model), "suite": suite, "set": name, "metric": metric}
    return known | numbers | {"significant": cell.delta is not None and cell.significant}


def load_run(path: str | Path) -> Run:
    """Read a run and all its frames."""
    return Run.read(path).with_frames()
