"""The argument and the result of a stage's function `plan` (see `wpn_bench.jobs.stages.Stage`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wpn_bench.jobs.job import External, Job


@dataclass(frozen=True)
class AskedSet:
    """A prompt set that the model answers.

    Attributes:
        suite: The suite of the set.
        name: The name of the set.
        prompts: Contains `items.jsonl`.
        responses: Will contain `responses.jsonl`.
        judged: Will contain `samples.parquet`, the responses with the scores of the deciding judge.
    """

    suite: str
    name: str
    prompts: Job | External
    responses: Job
    judged: Job | None = None


@dataclass(frozen=True)
class Attacker:
    """The model that writes the prompts of adaptive attacks.

    Attributes:
        name: Name in results, without a home folder.
        artifact: The folder of its files, or of the settings of an endpoint.
        template: The value of its template, for `Template.parse`.
    """

    name: str
    artifact: External
    template: Any


@dataclass(frozen=True)
class MeasuredModel:
    """A model to be measured: the base, or a model trained by a method with a seed.

    Attributes:
        name: The name of the model in results.json.
        seed: The seed of its training; None for the base.
        artifact: The folder of its weights and tokenizer.
        dtype: The data type to load it in.
        template: The value of the prompt template, for `Template.parse`.
        decoding: How the run decodes responses.
        sets: The prompt sets that it answers, without those of attacks that search.
        heldout: The held-out texts (`texts.jsonl`); None if the run has none.
        base: The folder of the base model.
        base_template: The value of the template by which the base is asked.
        threshold: Scores of the deciding judge from this value on are harmful.
        relevance: Whether the run measures relevance.
        attacked: The in-domain set for attacks, with jobs that the run may not have yet; None without attacks other than by
            prompts.
        stage_attacks: Settings of the attacks that a stage makes, by the attack's name: those that the run asks for.
        attacker: The model that writes the prompts of adaptive attacks; None if the run names none.
        default_threshold: The threshold of judges that set none of their own.
    """

    name: str
    seed: int | None
    artifact: Job | External
    dtype: str
    template: Any
    decoding: Mapping[str, Any]
    sets: tuple[AskedSet, ...] = ()
    heldout: External | None = None
    base: Job | External | None = None
    base_template: Any = None
    threshold: float = 0.5
    relevance: bool = False
    attacked: AskedSet | None = None
    stage_attacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attacker: Attacker | None = None
    default_threshold: float = 0.5


@dataclass(frozen=True)
class PlannedMeasurement:
    """One measurement of a model, which becomes a job of the stage.

    Attributes:
        suite: Suite of its rows in results.json.
        set: Set within the suite.
        params: Parameters of the job. They are part of its digest, so only plain values are allowed.
        needs: Inputs of the job, by role. Jobs among them that the run does not have yet are added to it.
        label: Name of the job in messages. The name of the model precedes it.
        local: Values that do not change the output. `device` and `offload` are added.
        answers: A job that writes responses to an attack (`responses.jsonl`). All judges of the run score them as the set with the
            name of the stage in the suite `attack`. None if there are none.
    """

    suite: str
    set: str
    params: Mapping[str, Any]
    needs: Mapping[str, Job | External]
    label: str
    local: Mapping[str, Any] = field(default_factory=dict)
    answers: Job | None = None
