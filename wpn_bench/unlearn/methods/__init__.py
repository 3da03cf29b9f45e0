"""The registry of unlearning methods. Each has its own file and one line in `METHODS`.

`wpn-bench list methods` prints them.
"""

from __future__ import annotations

from wpn_bench.core.registry import Registry
from wpn_bench.unlearn.methods.base import Method, Variant

METHODS: Registry[type[Method]] = Registry(
    "method",
    {
        "wpn": "wpn_bench.unlearn.methods.wpn:WPN",
        "ga": "wpn_bench.unlearn.methods.gradient_ascent:GradientAscent",
        "ga_answer": "wpn_bench.unlearn.methods.gradient_ascent:GradientAscentAnswer",
        "sft": "wpn_bench.unlearn.methods.sft:SFT",
        "sft_kl": "wpn_bench.unlearn.methods.sft:SFTKL",
        "grad_diff": "wpn_bench.unlearn.methods.grad_diff:GradDiff",
        "llmu": "wpn_bench.unlearn.methods.llmu:LLMU",
        "npo": "wpn_bench.unlearn.methods.npo:NPO",
        "simnpo": "wpn_bench.unlearn.methods.simnpo:SimNPO",
        "dpo": "wpn_bench.unlearn.methods.dpo:DPO",
        "altpo": "wpn_bench.unlearn.methods.altpo:AltPO",
        "flat": "wpn_bench.unlearn.methods.flat:FLAT",
        "wga": "wpn_bench.unlearn.methods.wga:WGA",
        "satimp": "wpn_bench.unlearn.methods.satimp:SatImp",
        "log1mp": "wpn_bench.unlearn.methods.log1mp:Log1mp",
        "undial": "wpn_bench.unlearn.methods.undial:UNDIAL",
        "ceu": "wpn_bench.unlearn.methods.ceu:CEU",
        "max_entropy": "wpn_bench.unlearn.methods.max_entropy:MaxEntropy",
        "pdu": "wpn_bench.unlearn.methods.pdu:PDU",
        "task_vector": "wpn_bench.unlearn.methods.task_vector:TaskVector",
        "rmu": "wpn_bench.unlearn.methods.rmu:RMU",
        "circuit_breakers": "wpn_bench.unlearn.methods.circuit_breakers:CircuitBreakers",
        "safe_unlearning": "wpn_bench.unlearn.methods.safe_unlearning:SafeUnlearning",
    },
)


def method_of(model: str) -> type[Method]:
    """Return the method of a model from its name, which is `wpn` or a variant such as `wpn:label`.

    Raises:
        UserError: The method is unknown.
    """
    return METHODS.get(model.partition(":")[0])


def variant_of(model: str) -> Variant:
    """Return the variant of a model from its name. One that the method does not know has its label as name, and no options."""
    method, label = method_of(model), model.partition(":")[2]
    return method.variants.get(label) or Variant(label, method.paper)


def named_variants() -> list[str]:
    """Return the names of all variants that methods define, such as `wpn:paper`."""
    return [f"{name}:{label}" for name in METHODS for label in METHODS.get(name).variants if label]


def title_of(model: str) -> str:
    """Return the name of a model in reports: `wpn:hidden-mean` is "WPN (hidden-mean)"."""
    label = variant_of(model).label
    return f"{method_of(model).title} ({label})" if label else method_of(model).title
