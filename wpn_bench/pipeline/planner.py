"""Plan the jobs of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wpn_bench import attacks
from wpn_bench.attacks import relearn
from wpn_bench.attacks.base import RelearnKind
from wpn_bench.attacks.conversations import is_open
from wpn_bench.attacks.search import NOT_IN_DIGEST as NOT_IN_SEARCH
from wpn_bench.config import RunConfig
from wpn_bench.core.registry import import_attribute
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import get_judge
from wpn_bench.harmless.judges.refusals import detector_params
from wpn_bench.harmless.judges.spec import parse
from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.planning import AskedSet, MeasuredModel
from wpn_bench.jobs.stages import STAGES, stage_names, stage_of
from wpn_bench.jobs.store import Store
from wpn_bench.models.backends import Decoding, identity_of
from wpn_bench.pipeline.candidates import Candidate
from wpn_bench.pipeline.inputs import Inputs
from wpn_bench.pipeline.judges import RunJudge, deciding_judge
from wpn_bench.pipeline.plan import Plan, Planned, Target, model_label
from wpn_bench.prompts import PromptSet, Template
from wpn_bench.prompts.items import put_prompts, put_texts
from wpn_bench.runs.files import BASE
from wpn_bench.runs.metrics import TRANSFER, transfer_set
from wpn_bench.unlearn.benign import use_of
from wpn_bench.unlearn.launch import Launch, local_of
from wpn_bench.unlearn.methods import method_of
from wpn_bench.unlearn.methods.base import NOT_IN_DIGEST, code_of, digested

STOP_PROMPTS = 100  # number of validation prompts that a stopping rule uses
HELDOUT = "perplexity"  # the stage that measures held-out text
StoredSet = tuple[str, PromptSet, Job | External]  # suite, prompt set, and the artifact of its items


def _votes(judge: RunJudge, name: str, scored: Mapping[tuple[str, str], Job]) -> dict[str, Job]:
    """The jobs with the scores of a majority's members, by role; none if the run does not score the set with each of them.

    Args:
        judge: A judge.
        name: A prompt set.
        scored: The jobs that score responses, by judge and set.
    """
    members = [scored.get((member, name)) for member in judge.members]
    return {} if None in members else {f"votes{k}": job for k, job in enumerate(members) if job is not None}


@dataclass(frozen=True)
class Planner:
    """Plans jobs from the configuration and the inputs of a run.

    Attributes:
        config: Settings of the run.
        inputs: The model, prompts, texts and tasks of the run.
        store: Store into which prompts and texts are put, so that jobs can read them.
        logs: Folder for training curves, for services that write files; None if there is none.
        bound: The calibrated coherence bounds, which judging needs (see `calibrated`).
    """

    config: RunConfig
    inputs: Inputs
    store: Store
    logs: Path | None = None
    bound: Job | External | None = None

    def plan(self) -> Plan:
        """Plan the whole run: the base is measured once, and each method is trained and measured for each seed.

        Raises:
            UserError: A plug-in cannot be imported, or its jobs cannot be planned.
        """
        plan = Plan()
        stage_names()  # raises an error for plug-ins with the same name
        planner = self.calibrated(plan) if self.inputs.answers else self
        sets = [(suite, one, put_prompts(self.store, one)) for suite, one in self.inputs.sets]
        heldout = put_texts(self.store, self.inputs.heldout) if self.inputs.heldout else None
        planner.measure_fully(plan, Target(BASE, None, self.base, BASE), sets, heldout)
        for seed in self.config.seeds:
            for method in self.config.methods:
                job = plan.add(method, self.training(method, seed))
                plan.trained[method, seed] = job
                planner.measure_fully(plan, Target(method, seed, job, model_label(method, seed)), sets, heldout)
        for target in self.candidates:
            planner.measure_fully(plan, target, sets, heldout)
        planner.measure_transfer(plan)
        return plan

    def candidate(self, one: Candidate) -> External:
        """Return a candidate as an input of jobs."""
        return External(one.path, one.digest, one.seen)

    @property
    def candidates(self) -> list[Target]:
        """Return the candidates, which are measured with the first seed."""
        seed = self.config.seeds[0]
        return [
            Target(one.name, seed, self.candidate(one), one.name, one.remote, one.same_tokens)
            for one in self.inputs.candidates
        ]

    @property
    def base(self) -> External:
        """Return the base model as an input of jobs."""
        return External(self.inputs.model.path, self.inputs.model.digest, self.inputs.model.seen)

    @property
    def placement(self) -> dict[str, Any]:
        """Return the local settings of a job that determine where a model is held while it is measured."""
        return {"device": self.inputs.device, "offload": self.config.offload}

    def template_of(self, model: str) -> Template:
        """Return the template of a model: that of the run, or a candidate's own."""
        own = {one.name: one.template for one in self.inputs.candidates}
        return own.get(model, self.inputs.template)

    def templates(self, model: str) -> dict[str, Any]:
        """Return the parameters for rendering the prompts of a model.

        `plain_template` is the template of the base, if it is another one, because the base judges coherence.
        """
        own, of_base = self.template_of(model), self.inputs.template
        return {"template": own.value} | ({} if own == of_base else {"plain_template": of_base.value})

    @property
    def decoding(self) -> dict[str, Any]:
        """Return the decoding settings.

        The stop text of the plain template is left out for a chat, where it ends no turn.
        """
        decoding = self.config.decoding
        if self.inputs.template.is_chat and decoding.stop == Decoding().stop:
            decoding = decoding.model_copy(update={"stop": ()})
        return decoding.model_dump(mode="json")

    @property
    def reasoning(self) -> dict[str, Any]:
        """Return the parameter with which a judge ignores reasoning, if the settings demand it."""
        return {"strip_reasoning": True} if self.config.strip_reasoning else {}

    def calibrated(self, plan: Plan) -> Planner:
        """Add the job that calibrates the coherence bounds. Returns a planner that uses these bounds for judging."""
        params = {"dtype": self.config.dtype, "template": self.inputs.template.value}
        needs = {"model": self.base, "prompts": put_prompts(self.store, self.inputs.forget)}
        job = plan.add(BASE, Job("calibrate", params, needs, "calibrate coherence", self.placement))
        return replace(self, bound=job)

    # --- training ----------------------------------------------------------------------------------------------------

    def vetting(self) -> Job:
        """Return the job that removes the harmless responses of the forget set that the judge calls harmful."""
        needs = {"prompts": put_prompts(self.store, self.inputs.forget)}
        label = "vet the forget set's harmless references"
        local = {"device": self.inputs.device, "judge": parse(self.config.judge).scorer}
        return Job("vet", self._judge_params(), needs, label, local)

    def training(self, method: str, seed: int, snapshots: Sequence[int] = (), until: int | None = None) -> Job:
        """Return the job that trains a method.

        Args:
            method: `method` or `method:label`, as in the configuration.
            seed: The seed.
            snapshots: Steps after which a copy of the model is stored.
            until: Step after which training pauses. The job of the whole training goes on from there.

        Returns:
            The job.
        """
        if until is not None:
            whole = self.training(method, seed, snapshots)
            checkpoints = str(self.store.scratch(whole.stage, whole.digest))
            return replace(
                whole, params={**whole.params, "until": until}, local={**whole.local, "checkpoints": checkpoints}
            )
        config, inputs = self.config, self.inputs
        settings = config.method_config(method)
        params: dict[str, Any] = {
            "method": method.partition(":")[0],
            "code": code_of(method_of(method)),
            "config": digested(settings),
            "seed": seed,
            "template": self.inputs.template.value,
            "dtype": config.dtype,
        }
        needs: dict[str, Job | External] = {
            "model": self.base,
            "forget": put_prompts(self.store, inputs.trained_on or inputs.forget),
            "retain": put_texts(self.store, inputs.retain),
        }
        uses = method_of(method)(settings).uses
        use = use_of(uses, config.benign_use) if inputs.benign else None
        if inputs.benign and use:
            needs["benign"] = put_prompts(self.store, inputs.benign)
            params["benign_share"] = config.benign_share
            if use != use_of(uses, "items"):
                params["benign_use"] = use
        if snapshots:
            params["snapshots"] = list(snapshots)
        if settings.stop_at_harmless_rate is not None:
            params["stop"] = {**self._judge_params(), "decoding": self.decoding, **self.reasoning}
            needs["validation"] = put_prompts(self.store, inputs.validation.head(STOP_PROMPTS))
        local: dict[str, Any] = {
            "device": inputs.device,
            "config": settings.model_dump(include=set(NOT_IN_DIGEST)),
            "curves": {"report_to": config.report_to, "name": f"{method}-seed{seed}", "folder": self.logs},
            **local_of(Launch.of(config.processes, config.accelerate)),
            "judge": parse(config.judge).scorer,
        }
        return Job("train", params, needs, f"train {method} (seed {seed})", local)

    def relearning(self, name: str, model: External, kind: RelearnKind, seed: int) -> Job:
        """Return the job that fine-tunes a model in the relearning attack.

        Args:
            name: Name of the model in results.
            model: The model.
            kind: Kind of text on which it is fine-tuned.
            seed: Determines which forget items are used, and their order.

        Returns:
            The job.
        """
        asked = self.config.relearn
        assert asked is not None
        settings = relearn.RelearnConfig(
            kind=kind,
            steps=max(asked.steps),
            batch_size=asked.batch_size,
            retain_batch_size=asked.batch_size,
            lr=asked.lr,
        )
        params = {
            "code": code_of(relearn.Relearning),
            "config": digested(settings),
            "snapshots": [step for step in asked.steps if step],
            "seed": seed,
            "template": self.template_of(name).value,
        }
        needs: dict[str, Job | External] = {"model": model}
        if kind == "harmful":
            needs["forget"] = put_prompts(self.store, relearn.few(self.inputs.forget, asked.items, seed))
        else:
            needs["retain"] = put_texts(self.store, self.inputs.retain)
        return Job("relearn", params, needs, f"relearn from {kind} text", {"device": self.inputs.device})

    def _judge_params(self) -> dict[str, Any]:
        """Return the parameters of the deciding judge, for a job that uses it in training or on training data."""
        judge = self.config.judge
        # In a run that judges no answers, the digest has not been computed yet.
        digest = self.inputs.judge_digest or get_judge(judge, self.inputs.device).digest()
        return {"judge": parse(judge).name, "judge_digest": digest, "threshold": self.config.threshold_of(judge)}

    # --- measuring ---------------------------------------------------------------------------------------------------

    def measure_fully(self, plan: Plan, target: Target, sets: Iterable[StoredSet], heldout: External | None) -> None:
        """Add all measurements of a model.

        They are prompt sets, benchmarks, measurements that stages plan, and attacks on the model.

        Args:
            plan: The plan to which they are added.
            target: The model.
            sets: The prompt sets.
            heldout: The held-out texts; None if there are none.
        """
        asked = self.measure(plan, target, sets)
        for name in STAGES:
            stage = stage_of(name)
            if stage.plan and stage.part in self.config.stages:
                self.measure_by(name, plan, target, asked, heldout if target.same_tokens else None)
        if not target.remote:
            self.measure_attacked(plan, target)

    def measure(self, plan: Plan, target: Target, sets: Iterable[StoredSet]) -> list[AskedSet]:
        """Add the generation and the judging of a model's responses to prompt sets, and its benchmarks.

        Args:
            plan: The plan to which they are added.
            target: The model.
            sets: The prompt sets.

        Returns:
            The sets with the jobs that write the responses.
        """
        config = self.config
        asked: list[AskedSet] = []
        for suite, one, stored in sets:
            params: dict[str, Any] = {"decoding": self.decoding, "dtype": config.dtype, **self.templates(target.model)}
            params |= {} if target.remote else identity_of(config.backend, self.inputs.device, config.offload)
            needs: dict[str, Job | External] = {"model": target.artifact, "prompts": stored}
            if any(map(is_open, one.items)):
                talk = Job(
                    "converse", params, needs, f"{target.label}: hold conversations of {one.name}", self.placement
                )
                stored = plan.add(target.model, talk)
                needs = {"model": target.artifact, "prompts": stored}
            job = Job("generate", params, needs, f"{target.label}: answer {one.name}", self.placement)
            asked.append(AskedSet(suite, one.name, stored, plan.add(target.model, job)))
        asked = self.judge(plan, target, asked)
        for task in () if target.remote else self.inputs.tasks:
            params = {
                "task": task.name,
                "definition": task.digest,
                "revision": task.revision,
                "limit": config.limit_of("benchmarks"),
                "batch_size": config.benchmark_batch_size,
                "dtype": config.dtype,
            }
            # These parameters are only set if they differ from the default, which is the accuracy for a plain prompt.
            chat = {
                "apply_chat_template": config.apply_chat_template,
                "fewshot_as_multiturn": config.fewshot_as_multiturn,
            }
            params |= {name: True for name, on in chat.items() if on} | ({"score": task.score} if task.score else {})
            local = {**self.placement, "include_paths": config.benchmark_folders}
            label = f"{target.label}: {task.short}"
            job = plan.add(target.model, Job("benchmark", params, {"model": target.artifact}, label, local))
            plan.scored.append(Planned(target.model, target.seed, "benchmark", task.short, job))
        return asked

    def judge(self, plan: Plan, target: Target, asked: Sequence[AskedSet]) -> list[AskedSet]:
        """Add the judging of responses, by the deciding judge and then by the further judges.

        Args:
            plan: The plan to which it is added.
            target: The model.
            asked: The prompt sets with their responses.

        Returns:
            The sets with the jobs of the deciding judge.
        """
        deciding = deciding_judge(self.config, self.inputs.judge_digest)
        own = {"dtype": self.config.dtype, **detector_params(self.config.refusals)}
        scored: dict[tuple[str, str], Job] = {}  # by judge and set
        # A majority counts the votes of the others, so it comes last.
        for judge in sorted((deciding, *self.inputs.further), key=lambda judge: bool(judge.members)):
            for one in asked:
                params: dict[str, Any] = {"judge": judge.name, "judge_digest": judge.digest, **self.reasoning}
                needs: dict[str, Job | External] = {"responses": one.responses, **_votes(judge, one.name, scored)}
                label, by, stage = f"{target.label}: judge {one.name}", f" by {judge.name}", "further_judge"
                planned = plan.further.setdefault(judge.name, []) if judge is not deciding else plan.judged
                if judge is deciding:
                    assert self.bound is not None
                    params |= own
                    needs |= {"bound": self.bound, "base": self.base}
                    by, stage = "", "judge"
                job = plan.add(
                    target.model, Job(stage, params, needs, label + by, {**self.placement, "judge": judge.spec})
                )
                scored[judge.spec, one.name] = job
                planned.append(Planned(target.model, target.seed, one.suite, one.name, job))
        return [replace(one, judged=scored[deciding.spec, one.name]) for one in asked]

    def measure_by(
        self,
        name: str,
        plan: Plan,
        target: Target,
        asked: Sequence[AskedSet] = (),
        heldout: External | None = None,
    ) -> None:
        """Add the measurements that a stage plans itself.

        Args:
            name: Name of the stage.
            plan: The plan to which they are added.
            target: The model.
            asked: The prompt sets that the model answers.
            heldout: The held-out texts; None if there are none.

        Raises:
            UserError: The function `plan` of a plug-in's stage raised an error.
        """
        stage = stage_of(name)
        model = MeasuredModel(
            target.model,
            target.seed,
            target.artifact,
            self.config.dtype,
            self.template_of(target.model).value,
            self.decoding,
            tuple(asked),
            heldout,
            self.base,
            self.inputs.template.value,
            self.config.threshold_of(self.config.judge),
            self.config.relevance,
            self._in_domain(target),
            {name: one.model_dump(mode="json") for name, one in attacks.chosen_by_stage(self.config).items()},
            self.inputs.attacker,
            self.config.threshold,
        )
        try:
            for one in import_attribute(stage.plan)(model):
                local = {**self.placement, **one.local}
                needs = {role: plan.include(target.model, target.label, need) for role, need in one.needs.items()}
                job = Job(name, one.params, needs, f"{target.label}: {one.label}", local)
                planned = Planned(target.model, target.seed, one.suite, one.set, plan.add(target.model, job))
                plan.measured.setdefault(name, []).append(planned)
                if one.answers is not None:
                    answered = plan.include(target.model, target.label, one.answers)
                    assert isinstance(answered, Job)
                    self.judge(plan, target, [AskedSet("attack", name, answered.needs["prompts"], answered)])
        except Exception as e:
            if stage.source is None or isinstance(e, UserError):
                raise
            raise UserError(
                f"the plug-in's stage {name!r} cannot be planned ({type(e).__name__}: {e})", "fix or uninstall it"
            ) from e

    def _in_domain(self, target: Target) -> AskedSet | None:
        """Return the set that attacks ask, with the jobs that answer and judge it; None if no attack needs it.

        The jobs are those of the in-domain set if the run measures it. Otherwise they are only planned if a stage needs them.
        """
        asked = self.inputs.attacked
        if asked is None:
            return None
        alone = replace(self, inputs=replace(self.inputs, tasks=(), further=()))
        (found,) = alone.measure(Plan(), target, [("harmless", asked, put_prompts(self.store, asked))])
        return found

    def measure_transfer(self, plan: Plan) -> None:
        """Ask every model the suffixes that were found on the other models, where a gradient attack says so (`transfer`).

        Models of one seed are asked each other's suffixes. The base, which has no seed, is asked those of the first seed.

        Args:
            plan: The plan, with the searches of all models.
        """
        config, inputs = self.config, self.inputs
        chosen = [name for name in config.gradient_attacks if getattr(config.gradient_config(name), "transfer", False)]
        if inputs.attacked is None or not chosen:
            return
        prompts = inputs.attacked.head(config.gradient_limit)
        prompts_only = replace(self, inputs=replace(inputs, tasks=()))
        trained = [Target(m, seed, job, model_label(m, seed)) for (m, seed), job in plan.trained.items()]
        for target in (Target(BASE, None, self.base, BASE), *trained, *self.candidates):
            for found in plan.searched:
                seeds = {found.seed, target.seed} if target.seed is not None else {found.seed, config.seeds[0]}
                if found.set not in chosen or found.model == target.model or len(seeds - {None}) > 1:
                    continue
                name = transfer_set(found.set, found.model)
                params = {"template": self.template_of(target.model).value} | (
                    {"endpoint": True} if target.remote else {}
                )
                needs: dict[str, Job | External] = {"model": target.artifact, "prompts": found.job}
                label = f"{target.label}: take the suffixes of {found.model}"
                job = plan.add(target.model, Job("transfer", params, needs, label))
                plan.measured.setdefault("transfer", []).append(Planned(target.model, target.seed, TRANSFER, name, job))
                prompts_only.measure(plan, target, [(TRANSFER, replace(prompts, name=name), job)])

    def measure_attacked(self, plan: Plan, target: Target) -> None:
        """Add the attacks on the model itself.

        The model answers the in-domain prompts with its weights quantised by each scheme. It answers the first
        in-domain prompts under each gradient attack, which is optimised against this model. The sets belong to the
        suite `attack` and have the name of the scheme or attack, so that they are paired with the base under the same
        attack. A universal attack is optimised on the forget set, so that it is tested on other prompts.

        Args:
            plan: The plan to which they are added.
            target: The model.
        """
        config, inputs = self.config, self.inputs
        if inputs.attacked is None:
            return
        prompts_only = replace(self, inputs=replace(inputs, tasks=()))
        for scheme in inputs.schemes:
            params: dict[str, Any] = {"scheme": scheme, "dtype": config.dtype}
            label = f"{target.label}: round weights to {scheme}"
            job = Job("quantise", params, {"model": target.artifact}, label, {"device": inputs.device})
            rounded = replace(target, artifact=plan.add(target.model, job))
            asked = replace(inputs.attacked, name=scheme)
            prompts_only.measure(plan, rounded, [("attack", asked, put_prompts(self.store, inputs.attacked))])
        prompts = inputs.attacked.head(config.gradient_limit)
        for name in config.gradient_attacks:
            attack, settings = attacks.GRADIENT.get(name), config.gradient_config(name)
            params = {
                "config": settings.model_dump(mode="json", exclude=set(NOT_IN_SEARCH)),
                "dtype": config.dtype,
                **self.templates(target.model),
            }
            stored = put_prompts(self.store, prompts)
            needs: dict[str, Job | External] = {"model": target.artifact, "prompts": stored}
            if settings.universal:
                needs["train"] = put_prompts(self.store, inputs.forget)
            if attack.responds:
                params["decoding"] = self.decoding
            local = {"device": inputs.device, "config": settings.model_dump(include=set(NOT_IN_SEARCH))}
            search = plan.add(target.model, Job(name, params, needs, f"{target.label}: search {name}", local))
            plan.searched.append(Planned(target.model, target.seed, "attack", name, search))
            if attack.responds:
                self.judge(plan, target, [AskedSet("attack", name, stored, search)])
            else:
                prompts_only.measure(plan, target, [("attack", replace(prompts, name=name), search)])
