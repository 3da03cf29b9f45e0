"""Methods: one file each, one line here. `wpn-bench list methods` prints their titles and papers."""

from __future__ import annotations

from wpn_bench.registry import Registry
from wpn_bench.unlearn.methods.base import Method

METHODS: Registry[type[Method]] = Registry(
    "method",
    {
        "wpn": "wpn_bench.unlearn.methods.wpn:WPN",
        "ga": "wpn_bench.unlearn.methods.gradient_ascent:GradientAscent",
        "ga_answer": "wpn_bench.unlearn.methods.gradient_ascent:GradientAscentAnswer",
        "sft": "wpn_bench.unlearn.methods.sft:SFT",
    },
)


def method_of(model: str) -> type[Method]:
    """The method behind a model's name: `wpn`, and every variant `wpn:label` of it. `UserError` for an unknown one."""
    return METHODS.get(model.partition(":")[0])


def title_of(model: str) -> str:
    """The name in reports: `wpn:hidden-mean` is "WPN (hidden-mean)"."""
    label = model.partition(":")[2]
    return f"{method_of(model).title} ({label})" if label else method_of(model).title
