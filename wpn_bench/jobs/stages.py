"""The registry of stages. Each stage is one record, declared in the file of the stage's function.

Another package adds a stage by an entry point in the group `wpn_bench.stages` that names such a record. It adds a
gradient attack, which includes a stage, by an entry point in the group `wpn_bench.gradient_attacks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from wpn_bench.core.registry import Registry, import_attribute, source_digest
from wpn_bench.errors import UserError

PARTS = ("harmless", "attack", "benchmarks")
LM_LIBRARIES = ("torch", "transformers", "tokenizers")
_GRADIENT_ATTACKS = "wpn_bench.attacks.registry:GRADIENT"  # in a higher layer, so it is imported on demand


@dataclass(frozen=True)
class Stage:
    """What a stage does, and what the rest of the program must know about it.

    Each function is given as `"module:function"`, so that a record imports no modules. The digest of a job covers the
    name and version of its stage, the versions of the libraries and, for a plug-in, its source. The other attributes
    are not part of it.

    Attributes:
        function: Executes the stage: `(StageContext) -> None`.
        version: Version of the output. Increase it if the same inputs would now give another output.
        libraries: Distributions whose version affects the output.
        resumable: Whether finished examples are stored in a journal and skipped after a restart. The stage must then
            not change its model.
        shardable: Whether several processes may share the examples. No request to the model may then depend on an
            earlier answer, because a worker gets placeholder answers for the examples of other workers.
        unhashed_files: Files of the output that no other stage reads.
        items: Where the number of items is found, which the time estimate needs: `needs.ROLE` (the rows of that input)
            or `params.NAME.NAME` (a number in the parameters; `params.NAME+NAME` adds those that are there). Empty if the number
            is unknown before the stage runs.
        passes: Number of passes over the items.
        speed_params: Paths of the parameters that change the time per item, such as `("method", "config.batch_size")`.
        memory: Estimates the memory that the stage needs: `(ModelSpec, stage name) -> list[MemoryNeed]`. Empty if it
            needs no more than generating answers.
        part: Part of a run that the stage belongs to: `harmless`, `attack` or `benchmarks`. A stage with a `plan` runs
            in this part.
        plan: Returns the measurements to make of each trained model and of the base: `(MeasuredModel) ->
            list[PlannedMeasurement]` (see `wpn_bench.jobs.planning`).
        rows: Returns the rows that these measurements add to results.json: `(list[Measurement]) -> list[Row]`.
        section: Returns the section of the stage in the report: `(View) -> Section | None` (see
            `wpn_bench.report.sections`).
    """

    function: str
    version: int
    libraries: tuple[str, ...] = ()
    resumable: bool = False
    shardable: bool = False
    unhashed_files: tuple[str, ...] = ()
    items: str = ""
    passes: int = 1
    speed_params: tuple[str, ...] = ()
    memory: str = ""
    part: str = ""
    plan: str = ""
    rows: str = ""
    section: str = ""

    def __post_init__(self) -> None:
        if self.plan and self.part not in PARTS:
            raise ValueError(f"a stage with a plan needs a part of the run: {', '.join(PARTS)}")

    @cached_property
    def source(self) -> str | None:
        """Return the SHA-256 of a plug-in's source (see `source_digest`), or None for a built-in stage."""
        return source_digest(import_attribute(self.function))


STAGES: Registry[Stage] = Registry(
    "stage",
    {
        "vet": "wpn_bench.unlearn.vet:STAGE",
        "benign": "wpn_bench.unlearn.benign:STAGE",
        "write_references": "wpn_bench.unlearn.written:STAGE",
        "train": "wpn_bench.unlearn.train:STAGE",
        "calibrate": "wpn_bench.harmless.stages:CALIBRATE",
        "generate": "wpn_bench.harmless.stages:GENERATE",
        "judge": "wpn_bench.harmless.stages:JUDGE",
        "further_judge": "wpn_bench.harmless.stages:FURTHER_JUDGE",
        "relevance": "wpn_bench.harmless.relevance:STAGE",
        "benchmark": "wpn_bench.benchmarks.run:STAGE",
        "perplexity": "wpn_bench.benchmarks.perplexity:STAGE",
        "quantise": "wpn_bench.attacks.quantise:STAGE",
        "relearn": "wpn_bench.attacks.relearn:STAGE",
        "relearn_search": "wpn_bench.attacks.relearn_trial:STAGE",
        "converse": "wpn_bench.attacks.conversations:CONVERSE",
        "prefill": "wpn_bench.attacks.prefilling:PREFILL",
        "prefilling": "wpn_bench.attacks.prefilling:STAGE",
        "sampling": "wpn_bench.attacks.sampling:STAGE",
        "augment": "wpn_bench.attacks.best_of_n:AUGMENT",
        "best_of_n": "wpn_bench.attacks.best_of_n:STAGE",
        "internals": "wpn_bench.attacks.internals:STAGE",
        "adapt": "wpn_bench.attacks.adaptive:ADAPT",
        "pair": "wpn_bench.attacks.adaptive:PAIR_STAGE",
        "tap": "wpn_bench.attacks.adaptive:TAP_STAGE",
        "transfer": "wpn_bench.attacks.suffix_transfer:STAGE",
    },
)


def stage_of(name: str) -> Stage:
    """Return a stage by its name. The stage of a gradient attack has the name of the attack.

    Raises:
        UserError: No such stage is installed, the plug-in cannot be imported, or it is not a `Stage`.
    """
    stage: object
    attacks: Registry[type] = import_attribute(_GRADIENT_ATTACKS)
    if name not in STAGES and name in attacks:
        stage = getattr(attacks.get(name), "stage", None)
    else:
        stage = STAGES.get(name)
    if not isinstance(stage, Stage):
        raise UserError(
            f"the plug-in {name!r} does not name a stage (an object of class wpn_bench.jobs.stages.Stage)",
            "fix or uninstall it",
        )
    return stage


def stage_names() -> list[str]:
    """Return the names of all stages, including those of gradient attacks.

    Raises:
        UserError: A gradient attack of a plug-in has the name of another stage.
    """
    attacks: Registry[type] = import_attribute(_GRADIENT_ATTACKS)
    if both := [name for name in attacks if name in STAGES]:
        raise UserError(f"a gradient attack has the name of the stage {both[0]!r}", "rename or uninstall the plug-in")
    return [*STAGES, *attacks]
