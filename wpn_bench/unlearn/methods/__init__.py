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
