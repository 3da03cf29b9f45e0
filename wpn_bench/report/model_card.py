"""The model card of a trained model: metadata for the Hugging Face hub, and a description for readers.

Like the report, it is made only from the run's results and manifest.
"""

from __future__ import annotations

import inspect
import re
from pathlib import PurePath
from typing import Any, NamedTuple

from wpn_bench.core.numbers import interval, percent, plain, points, signed, signed_interval
from wpn_bench.report.templates import environment
from wpn_bench.runs.metrics import (
    ACCURACY,
    ANSWERED_RATE,
    ATTACK,
    BENCHMARK,
    BENIGN,
    COHERENT_HARMLESS_RATE,
    COHERENT_RATE,
    HARMLESS_RATE,
    IN_DOMAIN,
    OUT_OF_DISTRIBUTION,
    PERPLEXITY,
    PROMPT_SUITES,
    REFUSAL_RATE,
    SET_TITLES,
    inner_name,
    metric_of,
)
from wpn_bench.unlearn.benign import use_of
from wpn_bench.unlearn.methods import method_of

TEMPLATE = "model_card.md.j2"
_TRAINED = ("forget", "benign_prompts")  # suites of the prompt sets that training used

# The metrics that a card shows, by suite.
_SHOWN = {
    IN_DOMAIN: (COHERENT_HARMLESS_RATE, HARMLESS_RATE),
    OUT_OF_DISTRIBUTION: (COHERENT_HARMLESS_RATE, ANSWERED_RATE, HARMLESS_RATE),
    ATTACK: (COHERENT_HARMLESS_RATE, HARMLESS_RATE),
    BENIGN: (ANSWERED_RATE, COHERENT_RATE, REFUSAL_RATE),
    BENCHMARK: (ACCURACY, PERPLEXITY),
}
_SUITES = {name: suite.title for name, suite in PROMPT_SUITES.items()} | {BENCHMARK: "benchmarks and plain text"}


class Figure(NamedTuple):
    """One metric of the model: its row in results.json, its suite, and the titles of data and metric."""

    row: dict[str, Any]
    suite: str
    dataset: str
    metric: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Suite, data, metric, value with its interval, change against base, number of items."""
        row = self.row
        if not metric_of(row["metric"]).is_share:
            value, change = plain(row["value"]), ""
            span = interval(row["ci_low"], row["ci_high"], 1.0, 2)
            change = signed(row["delta"], 1.0, 3) if inner_name(row["metric"]) and row["delta"] is not None else ""
        else:
            value, span = percent(row["value"]), interval(row["ci_low"], row["ci_high"])
            change = points(row["delta"]) if row["delta"] is not None else ""
            change += f" {signed_interval(row['delta_ci_low'], row['delta_ci_high'])}" if change else ""
        return _SUITES[self.suite], self.dataset, self.metric, f"{value} {span}".strip(), change.strip(), str(row["n"])


def card(
    results: dict[str, Any], manifest: dict[str, Any], training: dict[str, Any], model: str, seed: int, digest: str
) -> str:
    """Return the text of README.md for one trained model.

    The front matter has the format of `huggingface_hub.ModelCard`. It contains `base_model` only if the base is from
    the hub. For a local base, the text contains only the last part of its path.

    Args:
        results: Content of results.json.
        manifest: Content of manifest.json.
        training: Content of training.json of the model.
        model: Name of the model.
        seed: Seed with which it was trained.
        digest: SHA-256 digest of its weights.

    Returns:
        The model card as Markdown.
    """
    run, described = results["run"], results["models"][model]
    figures = _figures(results, manifest, model, seed)
    base = "the embedded lab's model" if run["lab"] else PurePath(str(run["model"])).name
    settings = {k: v for k, v in described["config"].items() if v is not None}
    kind = method_of(model)
    return str(
        environment()
        .get_template(TEMPLATE)
        .render(
            front_matter=_front_matter(run, manifest, model, figures),
            name=f"{described['title']} on {base}",
            base=run["model"] if run["revision"] else base,
            run=run,
            model=described,
            formula=inspect.getdoc(kind) or "",
            settings=settings,
            training=training,
            seed=seed,
            digest=digest,
            data=_data(manifest, kind(kind.Config(**described["config"])).uses, "stop_at_harmless_rate" in settings),
            figures=[f.cells for f in figures],
            manifest=manifest,
            lora=bool(settings.get("lora")),
        )
    )


def _figures(results: dict[str, Any], manifest: dict[str, Any], model: str, seed: int) -> list[Figure]:
    found = []
    for row in results["metrics"]:
        shown = _SHOWN.get(row["suite"], ())
        of_card = row["metric"] in shown or inner_name(row["metric"])
        if row["model"] == model and row["seed"] == seed and of_card and row["value"] is not None:
            name = SET_TITLES.get(row["set"], row["set"])
            found.append(Figure(row, row["suite"], name, metric_of(row["metric"]).title))
    suites, sets = list(_SHOWN), list(dict.fromkeys(f.dataset for f in found))
    names = [name for shown in _SHOWN.values() for name in shown]
    places = {name: k for k, name in enumerate(names)}
    return sorted(
        found, key=lambda f: (suites.index(f.suite), sets.index(f.dataset), places.get(f.row["metric"], len(names)))
    )


def _front_matter(run: dict[str, Any], manifest: dict[str, Any], model: str, figures: list[Figure]) -> str:
    """Return the metadata as YAML. Without measurements it has no `model-index`, in which the hub requires results."""
    from huggingface_hub import ModelCardData

    data: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["unlearning", "wpn-bench", model],
    }
    if run["revision"]:
        data["base_model"] = run["model"]
    trained_on = [s["source"].get("hub") for s in manifest["prompt_sets"].values() if s["suite"] in _TRAINED]
    trained_on += [t["source"].get("hub") for t in manifest["texts"].values() if t["role"] == "retain"]
    if hub := [name for name in trained_on if name]:
        data["datasets"] = list(dict.fromkeys(hub))
    if figures:
        data["model_name"] = f"{PurePath(str(run['model'])).name}-{model}"
        data["eval_results"] = [_eval_result(f, manifest) for f in figures]
    text: str = ModelCardData(**data).to_yaml()
    return text.strip()


def _eval_result(figure: Figure, manifest: dict[str, Any]) -> Any:
    from huggingface_hub import EvalResult

    row = figure.row
    where: dict[str, Any] = {"dataset_type": row["set"], "dataset_name": figure.dataset}
    source = (manifest["prompt_sets"].get(row["set"]) or {}).get("source", {})
    if source.get("hub") and row["suite"] != ATTACK:
        where |= {"dataset_type": source["hub"], "dataset_config": source.get("config")}
        where |= {"dataset_split": source.get("split"), "dataset_revision": source.get("revision")}
    task = manifest["tasks"].get(row["set"])
    if task and task["dataset"]:
        where |= {"dataset_type": task["dataset"], "dataset_revision": task["revision"]}
    return EvalResult(
        task_type="text-generation",
        task_name=_SUITES[figure.suite],
        metric_type=inner_name(row["metric"]) or row["metric"],
        metric_name=figure.metric,
        metric_value=round(row["value"], 4),
        metric_args={"n": row["n"], "low": _round(row["ci_low"]), "high": _round(row["ci_high"])},
        **where,
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _data(manifest: dict[str, Any], uses: frozenset[str], stops: bool) -> list[tuple[str, str, int]]:
    """Return (purpose, name, number of items) of the data that training used.

    Retain texts and benign prompts are listed only if the loss uses them, and validation prompts only if a stopping rule
    does.
    """
    used = [("to forget", n, s) for n, s in manifest["prompt_sets"].items() if s["suite"] == "forget"]
    if "retain" in uses:
        used += [("to retain", n, t) for n, t in manifest["texts"].items() if t["role"] == "retain"]
    if use_of(uses, manifest.get("config", {}).get("benign_use", "items")):
        used += [("to answer", n, s) for n, s in manifest["prompt_sets"].items() if s["suite"] == "benign_prompts"]
    if stops:
        used += [("to stop by", n, s) for n, s in manifest["prompt_sets"].items() if s["suite"] == "validation"]
    return [(what, _origin(name, entry["source"]), entry["n"]) for what, name, entry in used]


def _origin(name: str, source: dict[str, Any]) -> str:
    where = source.get("hub") or source.get("file") or ("embedded lab" if source.get("lab") else "")
    revision = str(source.get("revision") or "")
    text = f"{name} ({where}{' at ' + revision[:12] if revision else ''})" if where else name
    return re.sub(r"\s+", " ", text)
