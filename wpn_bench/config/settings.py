"""The settings of a run (`RunConfig`): their types, defaults, options of the command line and checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from wpn_bench.attacks.adaptive import PAIR, TAP, Adaptive, Pair, Tap
from wpn_bench.attacks.best_of_n import BestOfN
from wpn_bench.attacks.internals import Internals
from wpn_bench.attacks.prefilling import Prefilling
from wpn_bench.attacks.registry import expanded
from wpn_bench.attacks.relearn_search import RelearnSearch
from wpn_bench.attacks.sampling import Sampling
from wpn_bench.config import checks
from wpn_bench.config.checks import split_candidate
from wpn_bench.core.option import MEASUREMENT, MODEL_AND_DATA, PERMISSIONS, TRAINING, Option
from wpn_bench.core.validation import Count
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import spec as judge_spec
from wpn_bench.harmless.judges.refusals import Detector
from wpn_bench.models.backends import Decoding
from wpn_bench.models.backends.endpoint import PREFIX
from wpn_bench.prompts import Kind
from wpn_bench.step_settings import Curve, Limits, Relearn, WrittenReferences

if TYPE_CHECKING:
    from wpn_bench.attacks.search import SearchConfig
    from wpn_bench.unlearn.methods.base import MethodConfig

Stage = Literal["train", "harmless", "attack", "benchmarks"]
STAGES: tuple[Stage, ...] = ("train", "harmless", "attack", "benchmarks")


class RunConfig(BaseModel):
    """All settings of a run. Sets are names from `tasks/prompts/`, YAML declarations or data files."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    preset: Annotated[
        str,
        Option(
            help="lab, paper, real, sceptic or another one of `wpn-bench list presets` (default: lab without --model, paper with it).",
            panel=MODEL_AND_DATA,
            complete="presets",
        ),
    ]
    title: str = ""
    model: Annotated[
        str,
        Option(
            flags=("--model", "-m"),
            help="Hub id (facebook/opt-125m) or folder of the base model. Without this option, the small lab model that comes "
            "with wpn-bench is used, which needs no network.",
            panel=MODEL_AND_DATA,
        ),
    ]
    revision: Annotated[str | None, Option(help="Branch, tag or commit of the model.", panel=MODEL_AND_DATA)] = None
    candidates: Annotated[
        tuple[str, ...],
        Option(
            flags=("--candidate",),
            type=list[str],
            metavar="NAME=SOURCE",
            help="A finished model to measure and compare with the base, without training it (repeatable). SOURCE is a "
            "folder, a hub id (with @revision), a LoRA adapter, a .gguf file, or an endpoint, openai:URL#MODEL.",
            panel=MODEL_AND_DATA,
        ),
    ] = ()
    methods: Annotated[
        dict[str, dict[str, Any]],
        Option(
            flags=("--methods", "--method"),
            help="Unlearning methods, comma separated: wpn,npo,dpo (`wpn-bench list methods` shows all).",
            panel=MODEL_AND_DATA,
            comma_separated=True,
            complete="methods",
        ),
    ] = Field(description="maps `method` or `method:label` to the options that differ from the method's defaults")
    training: Annotated[
        dict[str, Any],
        Option(
            key="lora",
            type=int,
            metavar="RANK",
            help="Every method trains low-rank adapters of this rank (16 is usual) instead of all weights. Adam then needs "
            "a fraction of the memory. The adapters are merged into the saved model, and are also saved in adapter/.",
            panel=TRAINING,
        ),
        Option(
            key="mixed_precision",
            help="no, bf16 or fp16. With bf16 and fp16, the forward and backward pass are computed in 16 bits, and weights "
            "and losses stay in float32. This is faster on a GPU. bf16 needs an Ampere GPU or newer; fp16 works on older GPUs.",
            panel=TRAINING,
        ),
        Option(
            key="gradient_checkpointing",
            type=bool,
            help="Compute activations again in the backward pass instead of storing them. Training is about a third slower "
            "and needs far less memory. The gradients stay the same.",
            panel=TRAINING,
        ),
        Option(
            key="accumulation",
            type=int,
            help="Number N of micro-batches per optimiser step. Each step then trains on N times as many items, in the same "
            "memory. To keep the number of items per step, divide batch_size by N.",
            panel=TRAINING,
        ),
    ] = Field({}, description="options of MethodConfig for every method; a method's own options override them")
    processes: Annotated[
        int | None,
        Option(
            type=int,
            help="Train each model in N processes on this machine (with GPUs, one per GPU). Each process takes a part of "
            "every batch. The steps and their items, and so the model, stay the same.",
            panel=TRAINING,
        ),
    ] = Field(None, ge=1)
    accelerate: Annotated[
        str | None,
        Option(
            type=Path,
            metavar="FILE",
            help="File that `accelerate config` wrote. It sets the number of processes, and FSDP (version 2), which shards "
            "the weights.",
            panel=TRAINING,
        ),
    ] = None
    report_to: Annotated[
        tuple[str, ...],
        Option(
            comma_separated=True,
            help="Also send training curves to tensorboard (RUN/logs), wandb, mlflow, ..., comma separated. A model that is "
            "already in the store is not trained again, so it sends nothing. `wpn-bench export` sends measured results.",
            panel=TRAINING,
        ),
    ] = ()
    forget: Annotated[
        str,
        Option(
            help="Forget set: a name, or a .jsonl/.json/.csv/.tsv/.parquet file with the columns prompt, harmful and harmless.",
            panel=MODEL_AND_DATA,
            complete="prompts",
        ),
    ]
    columns: Annotated[
        dict[str, str],
        Option(
            comma_separated=True,
            metavar="FIELD=COLUMN",
            help="Columns of your own files, comma separated: prompt=goal,harmful=rejected,harmless=chosen,text=body. Columns "
            "that you do not name are found by their usual names (docs/inputs.md).",
            panel=MODEL_AND_DATA,
        ),
    ] = Field({}, description="maps prompt, harmful, harmless or text to the column of your own files")
    benign_prompts: Annotated[
        str | None,
        Option(
            help="Benign prompts to train on, so that a method learns when not to refuse: a name or a file with the column "
            "prompt. The base model answers them; its answers are the harmless responses, and refusals the harmful ones.",
            panel=MODEL_AND_DATA,
            complete="prompts",
        ),
    ] = None
    benign_share: float = Field(0.5, gt=0, lt=1, description="share of benign prompts in each batch, if there are any")
    benign_use: Literal["items", "texts"] = Field(
        "items",
        description="items: methods with harmless responses train on benign prompts as on other items, with refusals as harmful "
        "responses; texts: all methods train on prompt and answer as a retain text",
    )
    vet: bool = Field(True, description="drop the forget items whose harmless response the judge calls harmful")
    written_references: WrittenReferences | None = Field(
        None,
        description="let the base model write harmless references: sampled answers to the forget set's prompts, of which the "
        "least harmful coherent ones that are no refusals replace the references of the file",
    )
    refusing_references: Literal["keep", "avoid", "drop"] = Field(
        "keep",
        description="harmless references that are refusals: keep all; avoid those of items that have another one; drop all",
    )
    validation: str | None = Field(None, description="validation prompts; None holds back a tenth of the forget set")
    in_domain: Annotated[
        tuple[str, ...],
        Option(
            flags=("--prompts",),
            type=list[str],
            help="in_domain=FILE replaces the in-domain test prompts, and validation=FILE replaces the validation prompts. "
            "Any other NAME=FILE adds an out-of-distribution set.",
            panel=MODEL_AND_DATA,
        ),
    ] = Field((), description="in-domain test prompts; empty holds back a fifth of the forget set")
    ood: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()
    retain: str
    heldout: str | None = None
    attacks: Annotated[
        tuple[str, ...],
        Option(
            comma_separated=True,
            help="Attacks of any kind, comma separated: typos,gcg,relearn (`wpn-bench list attacks` shows all). They replace "
            "those of the preset.",
            panel=MODEL_AND_DATA,
            complete="attacks",
        ),
        AfterValidator(expanded),
    ] = ()
    attack_files: Annotated[
        tuple[str, ...],
        Option(
            flags=("--attack-file",),
            type=list[str],
            help="A .csv, .jsonl or .yaml file of your own attack templates, which contain {prompt}. They are added to the "
            "attacks (repeatable).",
            panel=MODEL_AND_DATA,
        ),
    ] = ()
    gradient_attacks: dict[str, dict[str, Any]] = Field(
        {},
        description="maps gcg or soft_prompt to the options that differ from its defaults; every model gets the same budget",
    )
    gradient_limit: Count | None = Field(
        None, description="number of in-domain prompts that gradient attacks use; None means all"
    )
    relearn: Relearn | None = Field(None, description="settings of the relearning attack; None leaves it out")
    relearn_search: RelearnSearch | None = Field(
        None, description="settings of the search for the best relearning attack on each model; None leaves it out"
    )
    prefilling: Prefilling | None = Field(None, description="settings of the prefilling attack; None leaves it out")
    sampling: Sampling | None = Field(
        None, description="settings of the attack by sampling (leak@k); None leaves it out"
    )
    best_of_n: BestOfN | None = Field(None, description="settings of Best-of-N augmentation; None leaves it out")
    internals: Internals | None = Field(
        None, description="settings of the look into hidden states and weights; None leaves it out"
    )
    attacker: Annotated[
        str | None,
        Option(
            metavar="SOURCE",
            help="The model that writes the prompts of the adaptive attacks pair and tap: an endpoint, openai:URL#MODEL, a "
            "folder, or a hub id (with @revision).",
            panel=MODEL_AND_DATA,
        ),
    ] = None
    pair: Pair | None = Field(None, description="settings of the adaptive attack PAIR; None leaves it out")
    tap: Tap | None = Field(None, description="settings of the adaptive attack TAP; None leaves it out")
    quantise: tuple[str, ...] = Field(
        (), description="int8 or int4; every model is also measured with weights quantised in this way"
    )
    benchmarks: Annotated[
        tuple[str, ...],
        Option(
            comma_separated=True,
            help="lm-eval tasks, groups, tags or patterns such as mmlu_*, comma separated.",
            panel=MODEL_AND_DATA,
            complete="benchmarks",
        ),
    ] = ()
    benchmark_folders: tuple[str, ...] = ("benchmarks",)
    benchmark_metrics: Annotated[
        tuple[str, ...],
        Option(
            flags=("--metric",),
            type=list[str],
            help="TASK=METRIC[,FILTER] chooses the metric that scores a benchmark, as in gsm8k=exact_match,flexible-extract "
            "(repeatable; TASK may contain *). By default it is acc, exact_match, acc_norm or the only metric, of the first "
            "filter. METRIC,FILTER,lower says that lower is better, if the task does not say it.",
            panel=MODEL_AND_DATA,
        ),
    ] = ()
    apply_chat_template: Annotated[
        bool,
        Option(
            type=bool,
            help="Put the prompts of benchmarks into the model's chat template, as lm-eval's option of this name does.",
            panel=MODEL_AND_DATA,
        ),
    ] = False
    fewshot_as_multiturn: Annotated[
        bool,
        Option(
            type=bool,
            help="Give the few-shot examples of benchmarks as turns of the conversation. Needs --apply-chat-template.",
            panel=MODEL_AND_DATA,
        ),
    ] = False
    benchmark_batch_size: Count = 16
    judge: Annotated[
        str,
        Option(
            type=list[str],
            comma_separated=True,
            help="detoxify:original, detoxify:FILE.ckpt, classifier:HUB_ID,label=NAME,threshold=0.4, refusal, ... You can "
            "give several, comma separated or each with --judge. The first one that reads the prompts decides which responses "
            "are harmful, or the first if none does; the rates of the others are reported as well.",
            panel=MEASUREMENT,
            complete="judges",
        ),
    ] = Field(
        "detoxify:original",
        description="the judge that decides which responses are harmful, as text or mapping (docs/judges.md)",
    )
    judges: tuple[str, ...] = Field(
        (), description="further judges, whose rates and agreement with the deciding judge are reported as well"
    )
    judge_card: Annotated[
        tuple[str, ...],
        Option(
            type=list[str],
            comma_separated=True,
            help="Files with the measured error rates of judges (`wpn-bench judge` writes them). The report then also gives "
            "rates that are corrected for these errors.",
            panel=MEASUREMENT,
        ),
    ] = Field((), description="cards of the judges; empty: those that come with the judges, if there are any")
    threshold: float = Field(0.5, gt=0, lt=1, description="threshold of every judge that does not set its own")
    template: Annotated[
        str,
        Option(
            help="Template for questions: auto (the model's chat template if it has one, else plain), chat, plain "
            "(### Question: ...), a text that contains {prompt}, or a file with such a text or a Jinja chat template. "
            "Continuations are never put into a template.",
            panel=MODEL_AND_DATA,
        ),
    ] = "auto"
    system: Annotated[
        str | None,
        Option(help="System message of the chat template: a text or a file.", panel=MODEL_AND_DATA),
    ] = None
    relevance: Annotated[
        bool,
        Option(
            type=bool,
            help="Also measure whether responses are about their prompts, by their likelihood under the base model with and "
            "without the prompt. Takes two more passes of the base over all responses.",
            panel=MEASUREMENT,
        ),
    ] = False
    refusals: Annotated[
        Detector,
        Option(
            help="How refusals are detected: by a classifier that reads the prompt and knows several languages, or by their "
            "English wording.",
            panel=MEASUREMENT,
        ),
    ] = "classifier"
    strip_reasoning: Annotated[
        bool,
        Option(
            type=bool,
            help="Remove the reasoning (<think>...</think>) from responses before they are judged. The stored samples keep it.",
            panel=MEASUREMENT,
        ),
    ] = False
    file_kind: Annotated[
        Kind,
        Option(
            flags=("--prompt-kind",),
            help="What the prompts in your own files are: question (they are put into the template) or continuation (the "
            "model continues the text).",
            panel=MODEL_AND_DATA,
        ),
    ] = "question"
    decoding: Annotated[
        Decoding,
        Option(key="max_new_tokens", type=int, help="Maximum length of a response in tokens.", panel=MEASUREMENT),
        Option(key="batch_size", type=int, help="Prompts and benchmark requests per batch.", panel=MEASUREMENT),
    ] = Decoding()
    seeds: Annotated[
        tuple[int, ...],
        Option(
            help="Number of seeds (3 means seeds 0, 1 and 2), or a list with commas (5,7; write 7, for the single seed 7). "
            "Every model is trained and measured once for each seed.",
            panel=MEASUREMENT,
        ),
    ] = (0,)
    limit: Annotated[
        Count | None,
        Option(
            type=int,
            help="Use only the first N prompts of each set and the first N documents of each benchmark.",
            panel=MEASUREMENT,
        ),
    ] = None
    limits: Limits = Field(
        Limits(), description="how many items of each kind of set are measured; `limit` can only make them fewer"
    )
    margin_points: Annotated[
        float,
        Option(
            flags=("--margin",),
            type=float,
            help="Non-inferiority margin of the benchmark average, in percentage points (2.0).",
            panel=MEASUREMENT,
        ),
    ] = Field(2.0, gt=0, le=100)
    tune: Annotated[
        Count | None,
        Option(
            type=int,
            help="Tune the options of each method on validation data, in this number of trials. The first trial uses its "
            "defaults.",
            panel=MEASUREMENT,
        ),
    ] = Field(None, description="number of tuning trials; None means no tuning")
    tune_halving: bool = Field(
        True, description="stop trials early that are worse than others after a ninth or a third of the steps"
    )
    tune_benign: str | None = Field(
        None,
        description="benign prompts that a trial should answer; None holds back a tenth of `benign_prompts`, if there are any",
    )
    tune_benchmarks: tuple[str, ...] = Field(
        (), description="tasks whose accuracy tuning preserves; if empty, it bounds the loss on `tune_text` instead"
    )
    tune_text: str | None = Field(
        None, description="text on which tuning bounds the loss; None holds back a tenth of the retain texts"
    )
    tune_loss_bound: float = Field(
        0.1, gt=0, description="largest accepted increase of the loss on that text, in nats per token"
    )
    curve: Annotated[
        Curve | None,
        Option(
            type=bool, help="Also measure WPN and gradient ascent several times during training.", panel=MEASUREMENT
        ),
    ] = None
    overlap: Annotated[
        str,
        Option(
            help="What to do if a test prompt is equal or nearly equal to a prompt of the forget set: refuse to run, drop "
            "the test prompt, or auto (refuse for your own files, drop for the sets that come with wpn-bench).",
            panel=MEASUREMENT,
        ),
    ] = Field("auto", pattern="^(auto|refuse|drop)$")
    near_duplicate: Annotated[
        float,
        Option(
            type=float,
            help="Lowest similarity at which two prompts count as near duplicates (0.75). 1 means only equal prompts.",
            panel=MEASUREMENT,
        ),
    ] = Field(0.75, ge=0.5, le=1)
    device: Annotated[str, Option(help="auto, cpu, cuda.", panel=MEASUREMENT)] = "auto"
    dtype: Annotated[str, Option(help="float32, bfloat16, float16.", panel=MEASUREMENT)] = Field(
        "float32", pattern="^(float32|bfloat16|float16)$"
    )
    offload: Annotated[
        str,
        Option(
            help="Where to keep the weights of a model that does not fit on the device while it is measured: none, cpu "
            "(main memory) or disk. The answers stay the same, but take longer.",
            panel=MEASUREMENT,
        ),
    ] = Field("none", pattern="^(none|cpu|disk)$")
    backend: Annotated[
        str,
        Option(
            help="What generates the answers of models on this machine: local (this process), or vllm (on GPUs, needs the "
            "environment with vLLM).",
            panel=MEASUREMENT,
        ),
    ] = Field("local", pattern="^(local|vllm)$")
    stages: tuple[Stage, ...] = STAGES
    trust_remote_code: Annotated[
        bool,
        Option(
            type=bool,
            help="Run Python code that comes with the model or with your own task files. It runs with your rights, so read "
            "it first.",
            panel=PERMISSIONS,
        ),
    ] = False
    allow_pickle: Annotated[
        bool,
        Option(
            type=bool,
            help="Read weights that exist only as pickles (*.bin, *.ckpt). Only tensors and plain values are read from them.",
            panel=PERMISSIONS,
        ),
    ] = False

    def limit_of(self, kind: str) -> int | None:
        """Return how many items of each set of a kind are measured, or None for all.

        Args:
            kind: Name of a setting of `limits`, such as `in_domain`.
        """
        set_ = [n for n in (getattr(self.limits, kind), self.limit) if n is not None]
        return min(set_, default=None)

    def method_config(self, name: str) -> MethodConfig:
        """Return the options with which the method `name` is trained.

        The method's defaults are overridden by `training`, and both are overridden by the method's entry in `methods`.
        """
        from wpn_bench.unlearn.methods import method_of

        return method_of(name).Config(**{**self.training, **self.methods[name]})

    def gradient_config(self, name: str) -> SearchConfig:
        """Return the options of the gradient attack `name`: its defaults and what `gradient_attacks` changes."""
        from wpn_bench.attacks import GRADIENT

        return GRADIENT.get(name).Config(**self.gradient_attacks[name])

    @property
    def adaptive_attacks(self) -> dict[str, Adaptive]:
        """Return the settings of the adaptive attacks that the run makes, by name."""
        chosen = {PAIR: self.pair, TAP: self.tap} if "attack" in self.stages else {}
        return {name: one for name, one in chosen.items() if one is not None}

    def attacker_needed(self) -> str | None:
        """Return what names the attacker of the adaptive attacks; None if the run makes none.

        Raises:
            UserError: The settings name no attacker, or one that cannot run beside the models of the run.
        """
        if not self.adaptive_attacks:
            return None
        source = (self.attacker or "").strip()
        if not source:
            raise UserError(
                f"the attack {min(self.adaptive_attacks)} needs an attacker, the model that writes the prompts",
                "name one with --attacker: an endpoint (openai:URL#MODEL), a folder or a hub id",
            )
        if self.backend == "vllm" and not source.startswith(PREFIX):
            raise UserError(
                "with --backend vllm, the attacker must be an endpoint, because vLLM leaves no memory for a second model",
                "serve it, and name it with --attacker openai:URL#MODEL",
            )
        return source

    def threshold_of(self, judge: str) -> float:
        """Return the lowest score at which `judge` calls a response harmful."""
        return judge_spec.parse(judge).config.threshold or self.threshold

    _judge = field_validator("judge", mode="before")(judge_spec.canonical)
    _judge_card = field_validator("judge_card", mode="before")(checks.one_or_several)
    _judges = field_validator("judges", mode="before")(checks.judges_as_text)
    _template = field_validator("template")(checks.has_prompt)
    _columns = field_validator("columns")(checks.known_fields)
    _methods = field_validator("methods")(checks.labels_and_variants)
    _benchmark_metrics = field_validator("benchmark_metrics")(checks.task_and_metric)
    _candidates = field_validator("candidates")(checks.named_candidates)
    _number_of_seeds = field_validator("seeds", mode="before")(checks.number_of_seeds)
    _seeds = field_validator("seeds")(checks.some_seed)

    @model_validator(mode="before")
    @classmethod
    def _members_of_majority(cls, raw: Any) -> Any:
        return judge_spec.with_members(raw)

    @model_validator(mode="after")
    def _settings_fit_together(self) -> RunConfig:
        if shared := set(self.tune_benchmarks) & set(self.benchmarks):
            raise ValueError(
                f"{', '.join(sorted(shared))} is a test benchmark of this run, so tune_benchmarks must not contain it"
            )
        if taken := {split_candidate(entry)[0] for entry in self.candidates} & {"base", *self.methods}:
            raise ValueError(
                f"a candidate has the name {min(taken)!r} of another model in this run: give it another name"
            )
        names = [judge_spec.parse(judge).name for judge in (self.judge, *self.judges)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the judge {min(twice)} is named twice (rates at other thresholds are reported anyway)")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn needs apply_chat_template")
        several = (self.processes or 1) > 1 or self.accelerate
        if several and (moved := [name for name in self.methods if self.method_config(name).sam]):
            raise ValueError(
                f"{moved[0]} has the option sam, which does not work with several processes: each would move the weights by its "
                "own gradient"
            )
        if several and (alone := [name for name in self.methods if self.method_config(name).undo]):
            raise ValueError(
                f"{alone[0]} has the option undo, which does not work with several processes: leave out one of the two"
            )
        if self.dtype != "float32" and (lost := [name for name in self.methods if self._sam_is_rounded_away(name)]):
            raise ValueError(
                f"{lost[0]} has the option sam, which moves weights by less than {self.dtype} can hold: add mixed_precision: bf16, "
                "which keeps the weights in float32"
            )
        if self.curve and (lost := [name for name in self.curve.methods if name not in self.methods]):
            raise ValueError(f"curve.methods contains {lost[0]!r}, which is not among the methods of this run")
        return self

    def _sam_is_rounded_away(self, name: str) -> bool:
        """Return whether a method trains all weights in the run's data type with sam. Adapters are always in float32."""
        config = self.method_config(name)
        return bool(config.sam) and config.mixed_precision == "no" and config.lora is None

    def curve_methods(self) -> list[str]:
        """Return the methods that are measured repeatedly during their training."""
        if self.curve is None:
            return []
        main = [name for name in self.methods if name.partition(":")[0] in ("wpn", "ga")]
        return list(self.curve.methods or main or self.methods)
