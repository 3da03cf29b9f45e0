"""The stages of a run: one record each, declared in the file of the stage's function.

Another package adds a stage through an entry point of the group `wpn_bench.stages` that names such a record, and a gradient
attack, which brings its stage along, through one of the group `wpn_bench.gradient_attacks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from wpn_bench.core.registry import Registry, import_attribute, source_digest
from wpn_bench.errors import UserError

PARTS = ("harmless", "attack", "benchmarks")
LM_LIBRARIES = ("torch", "transformers", "tokenizers")
_GRADIENT_ATTACKS = "wpn_bench.attacks.registry:GRADIENT"  # above this layer, so it is imported when it is asked for


@dataclass(frozen=True)
class Stage:
    """What a stage does and what the rest of the program must know of it.

    Every function is given as `"module:function"`, so that a record imports nothing. The name of a stage, the version, the
    versions of the libraries and, of a plug-in, its source make up the digest of its jobs; the rest does not.

    Attributes:
        function: Does the work: `(StageContext) -> None`.
        version: Of its output; raise it when the same inputs would give another output.
        libraries: Distributions whose version decides the output.
        resumable: The stage keeps a per-example checkpoint: finished examples are skipped on restart. Its model must not
            change while it works.
        shardable: Several processes may share the examples. Nothing that the stage asks of its model may depend on what the
            model answered before: a worker sees made-up answers for examples that are not its own.
        unhashed_files: Files of its output that no other stage reads.
        items: What it iterates over, to forecast its time: `needs.ROLE` (the rows of that input) or `params.NAME.NAME` (a
            number among the parameters); empty where that is known only once it begins.
        passes: Passes over the items.
        speed_params: Path of the parameter by which jobs of this stage differ in speed; empty: all items take equally long.
        memory: Estimates the memory that it takes, `(ModelSpec, stage name) -> list[MemoryNeed]`; empty: no more than asking the
            model for answers.
        part: The part of a run that it belongs to: `harmless`, `attack` or `benchmarks`; with `plan`, it runs with that part.
        plan: The measurements to make of each trained model and of the base,
            `(MeasuredModel) -> list[PlannedMeasurement]` (see `wpn_bench.jobs.planning`).
        rows: What these measurements add to the metrics of results.json: `(list[Measurement]) -> list[Row]`.
        section: The stage's section of the report: `(View) -> Section | None` (see `wpn_bench.report.sections`).
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
        """SHA-256 of the source of a plug-in (see `source_digest`); None for a stage of wpn-bench itself."""
        return source_digest(import_attribute(self.function))


STAGES: Registry[Stage] = Registry(
    "stage",
    {
        "vet": "wpn_bench.unlearn.vet:STAGE",
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
    },
)


def stage_of(name: str) -> Stage:
    """The stage of that name: a stage of its own, or that of a gradient attack, which is called like the attack.

    Raises:
        UserError: No such stage is installed, it is a plug-in that cannot be imported, or it is no `Stage`.
    """
    stage: object
    attacks: Registry[type] = import_attribute(_GRADIENT_ATTACKS)
    if name not in STAGES and name in attacks:
        stage = getattr(attacks.get(name), "stage", None)
    else:
        stage = STAGES.get(name)
    if not isinstance(stage, Stage):
        raise UserError(
            f"the plug-in {name!r} declares no stage (a wpn_bench.jobs.stages.Stage)", "fix or uninstall it"
        )
    return stage


def stage_names() -> list[str]:
    """The names of all stages, those of the gradient attacks included.

    Raises:
        UserError: A gradient attack of a plug-in is called like a stage, so its jobs would be those of the stage.
    """
    attacks: Registry[type] = import_attribute(_GRADIENT_ATTACKS)
    if both := [name for name in attacks if name in STAGES]:
        raise UserError(f"a gradient attack is called {both[0]!r}, as a stage is", "rename or uninstall the plug-in")
    return [*STAGES, *attacks]
