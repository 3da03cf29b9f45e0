"""The stages of a run, each with what decides its output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage: `module:function`, the version of its output, and the libraries whose version decides it.

    Raise the version when the same inputs would give another output. `items`: its model does not change while it works, so
    what it found for single items is kept in a journal. `shared`: several processes may share the items, for what it asks
    of its model does not depend on what the model answered before. `aside`: files of its output that no other stage
    reads.
    """

    function: str
    version: int
    libraries: tuple[str, ...] = ()
    items: bool = False
    shared: bool = False
    aside: tuple[str, ...] = ()


_LM = ("torch", "transformers", "tokenizers")
_SEARCHED = ("search.json",)
STAGES: dict[str, Stage] = {
    "vet": Stage("wpn_bench.unlearn.vet:run_vet_stage", 1, (*_LM, "detoxify"), items=True, shared=True),
    "train": Stage(
        "wpn_bench.unlearn.train:run_train_stage", 2, (*_LM, "accelerate", "peft"), aside=("training.json",)
    ),
    "relearn": Stage("wpn_bench.attacks.relearn:run_relearn_stage", 1, (*_LM, "accelerate")),
    "quantise": Stage("wpn_bench.attacks.quantise:run_quantise_stage", 1, (*_LM, "torchao")),
    "calibrate": Stage("wpn_bench.harmless.stages:run_calibrate_stage", 5, _LM, items=True, shared=True),
    "generate": Stage("wpn_bench.harmless.stages:run_generate_stage", 3, _LM, items=True, shared=True),
    "judge": Stage("wpn_bench.harmless.stages:run_judge_stage", 6, (*_LM, "detoxify"), items=True, shared=True),
    "further_judge": Stage(
        "wpn_bench.harmless.stages:run_further_judge_stage", 1, (*_LM, "detoxify"), items=True, shared=True
    ),
    "benchmark": Stage(
        "wpn_bench.benchmarks.run:run_benchmark_stage", 2, (*_LM, "lm-eval", "datasets"), items=True, shared=True
    ),
    "gcg": Stage("wpn_bench.attacks.gcg:run_gcg_stage", 1, _LM, items=True, aside=_SEARCHED),
    "soft_prompt": Stage("wpn_bench.attacks.soft_prompt:run_soft_prompt_stage", 1, _LM, items=True, aside=_SEARCHED),
    "perplexity": Stage("wpn_bench.benchmarks.perplexity:run_perplexity_stage", 2, _LM, items=True, shared=True),
}
