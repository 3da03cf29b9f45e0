"""Pack the answers of all models for the page, which shows them side by side.

The page contains `gzip(JSON)` in base64. So no text of a model or prompt is interpreted as markup, and 20,000 answers
stay small. The JSON is

    {"models": [{"name", "title"}], "sets": [{"suite", "set"}], "judges": [{"name", "from"}], "strings": [...],
     "rows": [[set, item id, prompt, [answer, or 0 if there is none, for each model]]]}

* An answer is [response, input, reason, coherent, score of each judge].
* Texts are indices into `strings`. A reason of -1 means that there is none.
* `coherent` is 1, 0, or -1 if unknown.
* Scores are in thousandths. A score of -1 means that the answer was not judged. `from` is the lowest score that a judge
  calls harmful.
* The first judge is the deciding one.
* An attack in several attempts has all of them before the input of the best one.
* In an input, the prompt is replaced by `PROMPT_MARK`, so that a template is one string for all prompts.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wpn_bench.runs.files import BASE
from wpn_bench.runs.finished import Run
from wpn_bench.runs.metrics import PROMPT_SUITES
from wpn_bench.runs.view import View

PER_SET = 20_000  # maximum number of prompts of one set in the page, in the order of the file
BUDGET = 3_200_000  # maximum bytes of base64; with Plotly (2 MB) and the tables, the page stays under 6 MB
PROMPT_MARK = "\x01"


@dataclass(frozen=True, slots=True)
class Packed:
    """The packed samples.

    Attributes:
        data: The packed JSON, in base64.
        shown: Number of prompts in it.
        total: Number of prompts in the run.
        cap: Maximum number of prompts per set; None if all are shown.
        seed: The seed that is shown; None if the run has only one.
    """

    data: str
    shown: int
    total: int
    cap: int | None
    seed: Any = None


def pack(run: Run, per_set: int = PER_SET, budget: int = BUDGET) -> Packed | None:
    """Pack the samples of a run for the page.

    Args:
        run: The run.
        per_set: Maximum number of prompts of each set. There are fewer if these exceed `budget`.
        budget: Maximum size of the packed data in bytes.

    Returns:
        The packed samples; None for a run without samples.
    """
    view, frame = run.view, run.samples_with(("model", "suite", "set", "item_id"))
    if frame.empty:
        return None
    frame = frame[~frame["model"].isin(list(view.varieties))]
    if frame.empty:
        return None
    seed = None
    if "seed" in frame and frame["seed"].nunique() > 1:
        # Base has no seed, and a seed of a method may have failed, so the first seed of each model is used.
        seed = int(frame["seed"].min())
        known = frame["seed"].astype("Int64").fillna(-1)
        frame = frame[known == known.groupby(frame["model"]).transform("min")]
    rows, models = _rows(view, frame)
    judges = _judges(view, frame)
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row["set"]] = counts.get(row["set"], 0) + 1
    cap = min(per_set, max(counts.values()))
    while True:
        kept = _first(rows, cap)
        data = _encode(view, models, judges, kept)
        if len(data) <= budget or cap <= 1:
            break
        cap = max(1, min(cap - 1, int(0.95 * cap * budget / len(data))))
    return Packed(data, len(kept), len(rows), cap if len(kept) < len(rows) else None, seed)


def _rows(view: View, frame: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Return one entry per prompt, and the models.

    An entry is {"set": (suite, set), "item", "prompt", "answers": {model: record}}.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    present: dict[str, None] = {}
    for record in frame.to_dict("records"):
        suite, name, item = str(record.get("suite")), str(record.get("set")), str(record.get("item_id"))
        model = str(record.get("model"))
        present.setdefault(model)
        row = found.setdefault((suite, name, item), {"set": (suite, name), "item": item, "prompt": "", "answers": {}})
        row["prompt"] = row["prompt"] or str(record.get("prompt") or "")
        row["answers"][model] = record
    order = {suite: i for i, suite in enumerate(PROMPT_SUITES)}
    rows = sorted(
        found.values(), key=lambda row: order.get(row["set"][0], len(order))
    )  # the sort is stable, so prompts of a suite keep the order of the file
    known = [name for name in view.measured() if name in present]
    models = known + [name for name in present if name not in known]
    primary = view.primary()
    return rows, sorted(models, key=lambda name: (name != BASE, name != primary))


def _judges(view: View, frame: Any) -> list[tuple[str, str, float]]:
    """Return (name, column of scores, threshold) for the deciding judge and each further judge in the samples."""
    first, *further = view.run.get("judges") or [{"name": view.run.get("judge") or "judge"}]
    threshold = float(first.get("threshold") or view.run.get("threshold") or 0.5)
    known = [(str(j["name"]), f"score:{j['name']}", float(j["threshold"])) for j in further]
    return [(str(first["name"]), "score", threshold), *(judge for judge in known if judge[1] in frame)]


def _first(rows: list[dict[str, Any]], cap: int) -> list[dict[str, Any]]:
    taken: dict[tuple[str, str], int] = {}
    kept = []
    for row in rows:
        taken[row["set"]] = taken.get(row["set"], 0) + 1
        if taken[row["set"]] <= cap:
            kept.append(row)
    return kept


def _encode(
    view: View, models: Sequence[str], judges: Sequence[tuple[str, str, float]], rows: list[dict[str, Any]]
) -> str:
    strings: dict[str, int] = {}
    sets: dict[tuple[str, str], int] = {}

    def index(text: str) -> int:
        return strings.setdefault(text, len(strings))

    packed = []
    for row in rows:
        answers: list[Any] = []
        for model in models:
            record = row["answers"].get(model)
            answers.append(0 if record is None else _answer(record, row["prompt"], judges, index))
        while answers and answers[-1] == 0:
            answers.pop()
        packed.append([sets.setdefault(row["set"], len(sets)), row["item"], index(row["prompt"]), answers])
    payload = {
        "models": [{"name": name, "title": view.title(name)} for name in models],
        "sets": [{"suite": suite, "set": name} for suite, name in sets],
        "judges": [{"name": name, "from": _bound(threshold)} for name, _, threshold in judges],
        "strings": list(strings),
        "rows": packed,
    }
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A tokenizer can split an emoji. The unpaired surrogate cannot be encoded as UTF-8 and becomes a question mark.
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 9, mtime=0)).decode("ascii")


def _answer(
    record: dict[str, Any], prompt: str, judges: Sequence[tuple[str, str, float]], index: Callable[[str], int]
) -> list[int]:
    import pandas as pd

    coherent, reason, seen = record.get("coherent"), record.get("reason"), str(record.get("input") or "")
    if isinstance(history := record.get("history"), str):
        seen = f"{history}\n\n[the best one, as the model saw it]\n{seen}"
    if prompt:
        seen = seen.replace(prompt, PROMPT_MARK)
    return [
        index(str(record.get("response") or "")),
        index(seen),
        -1 if reason is None or pd.isna(reason) or not reason else index(str(reason)),
        -1 if pd.isna(coherent) else int(bool(coherent)),
        *(_thousandths(record.get(column), threshold) for _, column, threshold in judges),
    ]


def _bound(threshold: float) -> int:
    """The lowest harmful score in thousandths."""
    return math.ceil(round(1000 * threshold, 6))


def _thousandths(score: Any, threshold: float) -> int:
    """Return a score rounded to thousandths, but never across the threshold."""
    import pandas as pd

    if pd.isna(score):
        return -1
    rounded, bound = round(1000 * float(score)), _bound(threshold)
    return max(rounded, bound) if float(score) >= threshold else min(rounded, bound - 1)
