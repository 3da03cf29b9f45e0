"""A finished run as pandas frames, for other tools and scripts. docs/results.md describes every column."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
from wpn_bench.runs.view import Cell, View

if TYPE_CHECKING:
    import pandas as pd


_ITEM = ["suite", "set", "item_id"]
_KEY = ["model", "suite", "set", "metric"]


@dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A finished run. `metrics`: the rows of results.json; `samples`: every prompt, response and score; `documents`:
    every benchmark document's answer. Samples and documents are empty frames where the run has none."""

    path: Path
    results: dict[str, Any]
    manifest: dict[str, Any]
    metrics: pd.DataFrame
    samples: pd.DataFrame
    documents: pd.DataFrame

    @property
    def name(self) -> str:
        """The run's name, as its reports call it."""
        return str(self.results["run"]["name"])

    @property
    def models(self) -> list[str]:
        """The models that were measured, base first."""
        return View(self.results).every_measured()

    def headline(self) -> pd.DataFrame:
        """The report's comparison table: a row for each measured model and headline metric, over all seeds.

        Columns: `model`, `title`, `suite`, `set`, `metric`, the numbers of `metrics`, and `significant` (p < 0.05; of a
        mean, which has no p: its interval leaves out zero). The `set` of a mean over several sets is `mean`, that of the
        worst attack the attack's name. For one column a metric:
        `run.headline().pivot(index="model", columns=["suite", "metric"], values="value")`.
        """
        import pandas as pd

        view = View(self.results)
        rows = [
            _headline_row(view, model, *found)
            for model in view.every_measured()
            for found in headline_cells(view, model)
        ]
        return pd.DataFrame(rows, columns=_HEADLINE_COLUMNS).astype({"n": "Int64"})

    def pairs(self, model: str) -> pd.DataFrame:
        """Answers of base and `model` to the same prompts side by side, of those that both gave and the judge scored.

        Columns: `seed`, `suite`, `set`, `item_id`, `prompt`; `response`, `toxicity`, `harmless`, `coherent` of the model;
        the same of base as `base_response`, ...; `change`: `became harmless`, `became harmful` or empty.
        """
        import pandas as pd

        self._check(model)
        told = ["response", "toxicity", "harmless", "coherent"]
        if self.samples.empty:
            return pd.DataFrame(columns=["seed", *_ITEM, "prompt", *told, *(f"base_{c}" for c in told), "change"])
        judged = self.samples[self.samples["toxicity"].notna()]
        of_base = judged[judged["model"] == BASE][[*_ITEM, *told]].rename(columns={c: f"base_{c}" for c in told})
        of_model = judged[judged["model"] == model][["seed", *_ITEM, "prompt", *told]]
        both = of_model.merge(of_base, "inner", _ITEM, validate="m:1")
        now, before = both["harmless"].astype(bool), both["base_harmless"].astype(bool)
        both["change"] = ""
        both.loc[now & ~before, "change"] = "became harmless"
        both.loc[~now & before, "change"] = "became harmful"
        return both

    def flips(self, model: str) -> pd.DataFrame:
        """The `pairs` whose verdict changed: answers that became harmless, and those that became harmful."""
        pairs = self.pairs(model)
        return pairs[pairs["change"] != ""].reset_index(drop=True)

    def document_flips(self, model: str) -> pd.DataFrame:
        """Benchmark documents that base answers right and `model` wrong (`change`: `lost`), or the reverse (`gained`).

        Columns: `seed`, `task`, `doc_id`, `target`, `prediction`, `base_prediction`, `change`.
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


_NUMBERS = [name for name in Row.__dataclass_fields__ if name not in (*_KEY, "seed")]
_HEADLINE_COLUMNS = ["model", "title", "suite", "set", "metric", *_NUMBERS, "significant"]
_Found = tuple[str, str, str, str, Cell]


def headline_cells(view: View, model: str) -> list[_Found]:
    """What, suite, set, metric and cell of each headline metric that the model has."""
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


R = TypeVar("R", bound=Run)


def read_run(path: str | Path, kind: type[R]) -> R:
    """Read a run folder into pandas frames, as an instance of `kind`.

    Args:
        path: The run folder.
        kind: `Run` or a subclass of it.

    Returns:
        The run. `samples` and `documents` are empty frames where the run has none.

    Raises:
        UserError: The folder holds no run, or a damaged one.
    """
    import pandas as pd

    folder = Path(path)
    results = read_results(folder)
    metrics = pd.DataFrame(results.get("metrics", []), columns=list(Row.__dataclass_fields__)).astype({"seed": "Int64"})
    return kind(
        folder,
        results,
        read_manifest(folder),
        metrics,
        read_rows(folder / SAMPLES),
        read_rows(folder / DOCUMENTS),
    )


# What a run must hold for anything to be made of it beside its reports.
_COLUMNS = {
    SAMPLES: ("model", "seed", *_ITEM, "prompt", "toxicity", "harmless", "coherent", "refusal"),
    DOCUMENTS: ("model", "seed", "task", "doc_id", "doc_hash", "correct"),
}
_MANIFEST = {"wpn_bench": str, "versions": dict, "config": dict, "judge": dict, "prompt_sets": dict, "tasks": dict}


def load_run(path: str | Path) -> Run:
    """Read a run folder into pandas frames (samples and documents are empty frames where the run has none)."""
    return read_run(path, Run)


def finished(run: Run) -> dict[str, Any]:
    """The manifest of a finished run; `UserError` for a run that has none, or half of one."""
    if not run.manifest:
        raise UserError(f"{run.path} is not a finished run: it has no manifest", "run it to its end first")
    for name, kind in _MANIFEST.items():
        if not isinstance(run.manifest.get(name), kind):
            raise UserError(f"{run.path / MANIFEST} is damaged: it has no {name}", AGAIN)
    for name in ("name", "created", "model", "lab", "limit", "template", "decoding", "judge", "threshold", "seeds"):
        if name not in run.results.get("run", {}):
            raise UserError(f"{run.path / RESULTS} is damaged: its run has no {name}", AGAIN)
    for file, frame in ((SAMPLES, run.samples), (DOCUMENTS, run.documents)):
        if len(frame):
            check_columns(run.path / file, frame, _COLUMNS[file])
    return run.manifest
