"""The section of the report on the attack by sampling: leak@k against k, and the greedy answers beside it."""

from __future__ import annotations

from wpn_bench.report.cells import Line, Shown, Table, rate
from wpn_bench.report.sections import Section
from wpn_bench.report.step_charts import rates_by_number
from wpn_bench.runs.metrics import ATTACK_SUCCESS_RATE, LEAK, SAMPLING
from wpn_bench.runs.view import View

_NOTE = (
    "leak@k is the probability that at least one of k sampled answers to a prompt is harmful (Reisizadeh et al. 2025), estimated without "
    "bias from {samples} samples for each prompt and averaged over the prompts. Intervals count prompts and not samples. The first column "
    "has the harmful greedy answers to the same prompts. Tokens were sampled at temperature {temperature} and top-p {top_p}. Lower is better."
)


def numbers(view: View, suite: str, rate: str) -> list[int]:
    """Return the numbers k for which a suite has the metric `rate@k`.

    Args:
        view: The results.
        suite: Name of the suite.
        rate: The metric without its number.

    Returns:
        The numbers in ascending order.
    """
    of_suite = [metric for of, _, metric in view.rows() if of == suite]
    return sorted({int(metric.rpartition("@")[2]) for metric in of_suite if metric.startswith(f"{rate}@")})


def section(view: View) -> Section | None:
    """Show leak@k by k, models by k; None if it was not measured."""
    ks = numbers(view, SAMPLING, LEAK)
    if not ks:
        return None
    name = view.sets(SAMPLING)[0]
    lines = []
    for model in view.measured():
        cells: list[Shown | None] = [rate(view.cell(model, SAMPLING, name, ATTACK_SUCCESS_RATE), -1)]
        cells += [rate(view.cell(model, SAMPLING, name, f"{LEAK}@{k}"), -1) for k in ks]
        if any(cells):
            lines.append(Line(view.title(model), cells, key=model))
    heads = ["greedy", *(f"leak@{k}" for k in ks)]
    table = Table(heads, lines, [""] * len(heads), [None] * len(heads))
    chart = rates_by_number(view, SAMPLING, {k: (name, f"{LEAK}@{k}") for k in ks}, "k, number of sampled answers")
    told = {what: setting(view, SAMPLING, what) for what in ("samples", "temperature", "top_p")}
    return Section("Sampled answers: leak@k", table, _NOTE.format(**told), chart)


def setting(view: View, suite: str, what: str) -> str:
    """Return a setting of an attack.

    Args:
        view: The results.
        suite: Name of the attack's suite.
        what: Name of the setting.

    Returns:
        The value as text; a question mark if no model was measured.
    """
    cells = (view.cell(model, suite, name, what) for name in view.sets(suite) for model in view.measured())
    return next((f"{cell.value:g}" for cell in cells if cell and cell.value is not None), "?")
