"""The section of the report that describes the candidates and the template with which each was measured."""

from __future__ import annotations

from wpn_bench.report.sections import Section, plain_table
from wpn_bench.runs.files import BASE
from wpn_bench.runs.view import View

_NOTE = (
    "A difference to base may come from another template as well as from the weights. An endpoint gives responses only:"
    " benchmarks, held-out text and attacks on weights are not available for it."
)


def section(view: View) -> Section | None:
    """Describe the candidates of a run. Returns None if it has none."""
    described = {name: model["candidate"] for name, model in view.models.items() if model.get("candidate")}
    if not described:
        return None
    template = str(view.run.get("template") or "")
    rows = {view.title(BASE): ["base model", str(view.run.get("model") or ""), template]}
    for name, one in described.items():
        asked = str(one.get("template") or "")
        made = str(one.get("made") or one.get("kind") or "")
        if one.get("same_as_base"):
            made += "; the weights of base"
        elif not one.get("same_tokenizer") and one.get("kind") != "endpoint":
            made += "; another tokenizer than base's"
        rows[view.title(name)] = [made, str(one.get("source")), "as base" if asked == template else asked]
    return Section("Candidates", plain_table(["What it is", "Source", "Asked with"], rows), _NOTE, id="candidates")
