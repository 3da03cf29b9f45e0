"""What a run is to do: a preset from `tasks/presets/`, a user's YAML over it, and the command line over both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wpn_bench.core.option import MEASUREMENT, MODEL_AND_DATA, PERMISSIONS, TRAINING, Option
from wpn_bench.core.paths import tasks_dir
from wpn_bench.core.registry import unknown_name
from wpn_bench.core.validation import Count, as_user_error
from wpn_bench.core.yaml_files import read_yaml
from wpn_bench.harmless.judges import spec as judge_spec
from wpn_bench.models.backends import Decoding
from wpn_bench.prompts import FormatTemplate, Kind
from wpn_bench.prompts.columns import FIELDS
from wpn_bench.prompts.templates import is_file
from wpn_bench.step_settings import Curve, Relearn

if TYPE_CHECKING:
    from wpn_bench.attacks.search import SearchConfig
    from wpn_bench.unlearn.methods.base import MethodConfig

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MAX_SEEDS = 100  # that many as a bare number
Stage = Literal["train", "harmless", "attack", "benchmarks"]
STAGES: tuple[Stage, ...] = ("train", "harmless", "attack", "benchmarks")


def split_candidate(entry: str) -> tuple[str, str]:
    """Split `NAME=SOURCE`. Raises `ValueError` if it is not of that form."""
    name, equals, source = entry.partition("=")
    if not equals or not source.strip() or not _LABEL.fullmatch(name):
        raise ValueError(f"the candidate {entry!r} is not NAME=SOURCE, such as mine=./folder (a name has no spaces)")
    return name, source.strip()


class RunConfig(BaseModel):
    """All settings of a run. Sets are names from `tasks/prompts/`, YAML declarations or data files."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    preset: Annotated[
        str,
        Option(
            help="lab, paper, field, ablation or attacks (default: lab without --model, paper with it).",
            panel=MODEL_AND_DATA,
            complete="presets",
        ),
    ]
    title: str = ""
    model: Annotated[
        str,
        Option(
            flags=("--model", "-m"),
            help="Hub id (facebook/opt-125m) or folder. Without it: the embedded lab model, offline.",
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
            help="A model that is already there, measured beside the base without training (repeatable): a folder, a hub "
            "id (with @revision), a LoRA adapter, a .gguf file, or an endpoint, openai:URL#MODEL.",
            panel=MODEL_AND_DATA,
        ),
    ] = ()
    methods: Annotated[
        dict[str, dict[str, Any]],
        Option(
            flags=("--methods", "--method"),
            help="Methods, comma separated: wpn,npo,dpo (`wpn-bench list methods` shows all).",
            panel=MODEL_AND_DATA,
            comma_separated=True,
            complete="methods",
        ),
    ] = Field(description="`method` or `method:label` -> changes to its defaults")
    training: Annotated[
        dict[str, Any],
        Option(
            key="lora",
            type=int,
            metavar="RANK",
            help="Train low-rank adapters of this rank (16 is usual) instead of all weights, with every method. Adam then "
            "needs a fraction of the memory. The adapters are merged into the saved model, and are also saved in adapter/.",
            panel=TRAINING,
        ),
        Option(
            key="mixed_precision",
            help="no, bf16 or fp16: compute the forward and backward pass in 16 bits, keep weights and losses in float32. "
            "Faster on a GPU; bf16 needs an Ampere GPU or newer, fp16 works on older ones.",
            panel=TRAINING,
        ),
        Option(
            key="gradient_checkpointing",
            type=bool,
            help="Compute activations again in the backward pass instead of storing them: about a third slower, far less "
            "memory, the same gradients.",
            panel=TRAINING,
        ),
        Option(
            key="accumulation",
            type=int,
            help="Micro-batches per optimiser step: N times the items of a step in the memory of one. To keep the number "
            "of items per step, divide batch_size by N.",
            panel=TRAINING,
        ),
    ] = Field({}, description="options of MethodConfig for every method; a method's own options override them")
    processes: Annotated[
        int | None,
        Option(
            type=int,
            help="Train one model in N processes on this machine, each with a part of every batch: the same steps on the "
            "same items, so the same model. On GPUs one process per GPU.",
            panel=TRAINING,
        ),
    ] = Field(None, ge=1)
    accelerate: Annotated[
        str | None,
        Option(
            type=Path,
            metavar="FILE",
            help="File that `accelerate config` wrote: number of processes, FSDP (version 2), which shards the weights.",
            panel=TRAINING,
        ),
    ] = None
    report_to: Annotated[
        tuple[str, ...],
        Option(
            comma_separated=True,
            help="Also send training curves to tensorboard (RUN/logs), wandb, mlflow, ..., comma separated. A model that is "
            "already in the store is not trained again, so it sends nothing. For measured results: `wpn-bench export`.",
            panel=TRAINING,
        ),
    ] = ()
    forget: Annotated[
        str,
        Option(
            help="Forget set: a name, or a .jsonl/.json/.csv/.tsv/.parquet file with prompt, harmful, harmless.",
            panel=MODEL_AND_DATA,
            complete="prompts",
        ),
    ]
    columns: Annotated[
        dict[str, str],
        Option(
            comma_separated=True,
            metavar="FIELD=COLUMN",
            help="Columns of your own files, comma separated: prompt=goal,harmful=rejected,harmless=chosen,text=body. Others "
            "are found by their usual names (docs/inputs.md).",
            panel=MODEL_AND_DATA,
        ),
    ] = Field({}, description="prompt, harmful, harmless or text -> column of your own files")
    vet: bool = Field(True, description="drop harmless references of the forget set that the judge calls harmful")
    validation: str | None = Field(None, description="None: a tenth of the forget set is held back")
    in_domain: Annotated[
        tuple[str, ...],
        Option(
            flags=("--prompts",),
            type=list[str],
            help="in_domain=FILE replaces the in-domain test prompts, validation=FILE the validation prompts; NAME=FILE "
            "adds an out-of-distribution set.",
            panel=MODEL_AND_DATA,
        ),
    ] = Field((), description="empty: a fifth of the forget set is held back")
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
    ] = ()
    attack_files: Annotated[
        tuple[str, ...],
        Option(
            flags=("--attack-file",),
            type=list[str],
            help="Your own attack templates with {prompt} in them, .csv, .jsonl or .yaml, added to the attacks (repeatable).",
            panel=MODEL_AND_DATA,
        ),
    ] = ()
    gradient_attacks: dict[str, dict[str, Any]] = Field(
        {}, description="gcg, soft_prompt -> changes to its defaults: searched against every model on the same budget"
    )
    gradient_limit: Count | None = Field(None, description="in-domain prompts that they search on; None: all")
    relearn: Relearn | None = Field(None, description="fine-tune every model a little, then measure it again")
    quantise: tuple[str, ...] = Field((), description="int8, int4: also measure every model with quantised weights")
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
            help="TASK=METRIC[,FILTER]: what scores a benchmark, as in gsm8k=exact_match,flexible-extract (repeatable; TASK "
            "may contain *). Without it: acc, exact_match, acc_norm or the only metric, of the first filter.",
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
            help="With --apply-chat-template: give the few-shot examples of benchmarks as turns of the conversation.",
            panel=MODEL_AND_DATA,
        ),
    ] = False
    benchmark_batch_size: Count = 16
    judge: Annotated[
        str,
        Option(
            type=list[str],
            comma_separated=True,
            help="detoxify:original, detoxify:FILE.ckpt, classifier:HUB_ID,label=NAME,threshold=0.4, refusal, ...; several, "
            "comma separated or each with --judge: the first decides, the others are reported as well.",
            panel=MEASUREMENT,
            complete="judges",
        ),
    ] = Field("detoxify:original", description="the judge that decides; as text or mapping (docs/judges.md)")
    judges: tuple[str, ...] = Field((), description="further judges: their rates and agreement are reported as well")
    judge_card: Annotated[
        str | None,
        Option(
            help="Card of the deciding judge (`wpn-bench judge`): the report also gives rates corrected for its errors.",
            panel=MEASUREMENT,
        ),
    ] = Field(None, description="None: the card that is shipped with the judge, if there is one")
    threshold: float = Field(0.5, gt=0, lt=1, description="of every judge that does not state its own")
    template: Annotated[
        str,
        Option(
            help="How questions are put to the model: auto (its chat template if it has one, else plain), chat, plain "
            "(### Question: ...), a text with {prompt} in it, or a file with such a text or a Jinja chat template. "
            "Continuations are never put into a template.",
            panel=MODEL_AND_DATA,
        ),
    ] = "auto"
    system: Annotated[
        str | None,
        Option(help="System message of the chat template: a text or a file.", panel=MODEL_AND_DATA),
    ] = None
    strip_reasoning: Annotated[
        bool,
        Option(
            type=bool,
            help="Judge responses without their reasoning (<think>...</think>), which stays in the samples.",
            panel=MEASUREMENT,
        ),
    ] = False
    file_kind: Annotated[
        Kind,
        Option(
            flags=("--prompt-kind",),
            help="Prompts of your own files are question (put into the template) or continuation.",
            panel=MODEL_AND_DATA,
        ),
    ] = "question"
    decoding: Annotated[
        Decoding,
        Option(key="max_new_tokens", type=int, help="Length of a response in tokens.", panel=MEASUREMENT),
        Option(key="batch_size", type=int, help="Prompts and benchmark requests per batch.", panel=MEASUREMENT),
    ] = Decoding()
    seeds: Annotated[
        tuple[int, ...],
        Option(
            help="How many (3: seeds 0, 1, 2), or a list with commas (5,7; or 7, for one seed): training and its "
            "measurement are repeated for each seed.",
            panel=MEASUREMENT,
        ),
    ] = (0,)
    limit: Annotated[
        Count | None,
        Option(
            type=int,
            help="Only the first N prompts of each set and documents of each benchmark.",
            panel=MEASUREMENT,
        ),
    ] = None
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
            help="Tune each method on validation data in this many trials; the first trial uses its defaults.",
            panel=MEASUREMENT,
        ),
    ] = Field(None, description="None: no tuning")
    tune_benchmarks: tuple[str, ...] = Field((), description="tasks to tune on; empty: bound the loss on text instead")
    tune_text: str | None = Field(None, description="text to tune on; None: a tenth of the retain texts is held back")
    tune_loss_bound: float = Field(
        0.1, gt=0, description="how much a trial may raise the loss on the text to tune on, in nats per token"
    )
    curve: Annotated[
        Curve | None,
        Option(type=bool, help="Also measure WPN and gradient ascent while they train.", panel=MEASUREMENT),
    ] = None
    overlap: Annotated[
        str,
        Option(
            help="What to do with test prompts that are equal or nearly equal to one of the forget set: refuse, drop, or auto "
            "(refuse in your own files, drop in declared sets).",
            panel=MEASUREMENT,
        ),
    ] = Field("auto", pattern="^(auto|refuse|drop)$")
    near_duplicate: Annotated[
        float,
        Option(
            type=float,
            help="Similarity from which two prompts count as near duplicates (0.75; 1: only equal prompts).",
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
            "(main memory), disk. The same answers, more slowly.",
            panel=MEASUREMENT,
        ),
    ] = Field("none", pattern="^(none|cpu|disk)$")
    stages: tuple[Stage, ...] = STAGES
    trust_remote_code: Annotated[
        bool,
        Option(
            type=bool,
            help="Run Python code that comes with the model, or with your own task files, with your rights. Read it first.",
            panel=PERMISSIONS,
        ),
    ] = False
    allow_pickle: Annotated[
        bool,
        Option(
            type=bool,
            help="Read weights that exist only as pickles (*.bin, *.ckpt): as tensors and plain values, nothing else.",
            panel=PERMISSIONS,
        ),
    ] = False

    def method_config(self, name: str) -> MethodConfig:
        """How `name` is trained: its defaults, `training` over them, its own options over both."""
        from wpn_bench.unlearn.methods import method_of

        return method_of(name).Config(**{**self.training, **self.methods[name]})

    def gradient_config(self, name: str) -> SearchConfig:
        """What the gradient attack `name` is told: its defaults, the changes over them."""
        from wpn_bench.attacks import GRADIENT

        return GRADIENT.get(name).Config(**self.gradient_attacks[name])

    def threshold_of(self, judge: str) -> float:
        """The score from which on a judge's verdict is harmful."""
        return judge_spec.parse(judge).config.threshold or self.threshold

    @field_validator("judge", mode="before")
    @classmethod
    def _judge_as_text(cls, value: Any) -> str:
        return judge_spec.canonical(value)

    @field_validator("judges", mode="before")
    @classmethod
    def _judges_as_text(cls, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError("give a list of judges")
        return tuple(judge_spec.canonical(one) for one in value)

    @field_validator("template")
    @classmethod
    def _has_prompt(cls, value: str) -> str:
        if value not in ("auto", "chat", "plain") and not is_file(value):
            FormatTemplate(value)
        return value

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, value: dict[str, str]) -> dict[str, str]:
        if strange := sorted(set(value) - set(FIELDS)):
            raise ValueError(f"{strange[0]!r} is not one of {', '.join(FIELDS)}")
        return value

    @field_validator("methods")
    @classmethod
    def _labels(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in value:
            if ":" in name and not _LABEL.fullmatch(name.partition(":")[2]):
                raise ValueError(f"the label of {name!r} is not of letters, digits, '.', '_' and '-'")
        return value

    @field_validator("benchmark_metrics")
    @classmethod
    def _task_and_metric(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            task, equals, metric = one.partition("=")
            if not (task.strip() and equals and metric.strip()):
                raise ValueError(f"{one!r} is not TASK=METRIC or TASK=METRIC,FILTER")
        return value

    @field_validator("candidates")
    @classmethod
    def _named_candidates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [split_candidate(entry)[0] for entry in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two candidates are called {min(twice)!r}")
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _number_of_seeds(cls, value: Any) -> Any:
        """A single whole number K means the seeds 0 to K - 1."""
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        if not 1 <= value <= MAX_SEEDS:
            raise ValueError(f"give how many (1 to {MAX_SEEDS}), or a list of seeds")
        return tuple(range(value))

    @field_validator("seeds")
    @classmethod
    def _some_seed(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("give at least one seed, each once")
        if not all(0 <= seed < 2**32 for seed in value):
            raise ValueError("a seed lies between 0 and 2**32 - 1")
        return value

    @model_validator(mode="after")
    def _settings_fit_together(self) -> RunConfig:
        if shared := set(self.tune_benchmarks) & set(self.benchmarks):
            raise ValueError(f"{', '.join(sorted(shared))} is tested on, so it cannot be tuned on (tune_benchmarks)")
        if taken := {split_candidate(entry)[0] for entry in self.candidates} & {"base", *self.methods}:
            raise ValueError(f"a candidate is called {min(taken)!r}, as another model of the run: give it another name")
        names = [judge_spec.parse(judge).name for judge in (self.judge, *self.judges)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the judge {min(twice)} is named twice (rates at other thresholds are reported anyway)")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn needs apply_chat_template")
        if self.curve and (lost := [name for name in self.curve.methods if name not in self.methods]):
            raise ValueError(f"the curve is of {lost[0]!r}, which is not among the methods (curve.methods)")
        return self

    def curve_methods(self) -> list[str]:
        """The methods that are measured while they train."""
        if self.curve is None:
            return []
        main = [name for name in self.methods if name.partition(":")[0] in ("wpn", "ga")]
        return list(self.curve.methods or main or self.methods)


def presets() -> dict[str, Path]:
    """Names of the presets and their files."""
    return {p.stem: p for p in sorted((tasks_dir() / "presets").glob("*.yaml"))}


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset, over those of the preset that it says it `extends`."""
    known = presets()
    if name not in known:
        raise unknown_name("preset", name, known)
    raw = read_yaml(known[name])
    extended = raw.pop("extends", None)
    return raw if extended is None else read_preset(extended) | raw


def build(preset: str, config_file: Path | None = None) -> RunConfig:
    """Build a configuration.

    Args:
        preset: Name of the preset.
        config_file: A YAML file of the user, whose settings override the preset's.

    Returns:
        The checked configuration.

    Raises:
        UserError: For an unknown preset, a file that cannot be read, and a setting that is wrong.
    """
    raw = {**read_preset(preset), "preset": preset}
    if config_file:
        own = read_yaml(config_file)
        if own.get("forget", raw["forget"]) != raw["forget"]:  # the preset's other sets do not belong to this one
            raw |= {"in_domain": (), "validation": None}
        raw |= own
    if isinstance(raw.get("methods"), dict):  # anything else is named by the check below
        raw["methods"] = {name: options or {} for name, options in raw["methods"].items()}
    return from_settings(raw)


def from_settings(raw: Mapping[str, Any]) -> RunConfig:
    """A checked configuration from plain values; `UserError` names the setting that is wrong."""
    examples = "see tasks/presets/ for examples"
    with as_user_error("", examples, noun="setting", unknown_kind="setting", known=RunConfig.model_fields):
        config = RunConfig.model_validate(dict(raw))
    check_names(config)
    return config


def attack_settings(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that choose these attacks, of any kind, and no others.

    Args:
        names: Names of prompt attacks, gradient attacks, schemes of quantisation, or `relearn`.
        settings: All settings of a run; the options that they give to an attack are kept.

    Returns:
        The settings `attacks`, `gradient_attacks`, `quantise` and `relearn`.
    """
    from wpn_bench.attacks.quantise import SCHEMES
    from wpn_bench.attacks.registry import GRADIENT, RELEARN

    return {
        "attacks": tuple(n for n in names if n not in GRADIENT and n not in SCHEMES and n != RELEARN),
        "gradient_attacks": {n: settings["gradient_attacks"].get(n, {}) for n in names if n in GRADIENT},
        "quantise": tuple(n for n in names if n in SCHEMES),
        "relearn": (settings["relearn"] or Relearn().model_dump()) if RELEARN in names else None,
    }


def check_names(config: RunConfig) -> None:
    """Raise `UserError` for unknown methods, options, attacks and judges, before anything is loaded."""
    from wpn_bench import attacks
    from wpn_bench.attacks.quantise import get_scheme
    from wpn_bench.unlearn.methods import method_of
    from wpn_bench.unlearn.methods.base import MethodConfig

    with as_user_error(
        "training", "see docs/training.md", unknown_kind="training option", known=MethodConfig.model_fields
    ):
        MethodConfig(**config.training)
    for name in config.methods:
        kind = method_of(name)
        with as_user_error(
            f"method {name}",
            f"see `wpn-bench list {kind.name}`",
            unknown_kind=f"option of method {name}",
            known=kind.Config.model_fields,
        ):
            config.method_config(name)
    own = attacks.own_attacks(config.attack_files)
    for name in config.attacks:
        attacks.get_attack(name, own)
    for name in config.gradient_attacks:
        attack = attacks.GRADIENT.get(name)
        with as_user_error(
            f"attack {name}",
            "see docs/attacks.md",
            unknown_kind=f"option of attack {name}",
            known=attack.Config.model_fields,
        ):
            config.gradient_config(name)
    for name in config.quantise:
        get_scheme(name)
    for judge in (config.judge, *config.judges):
        judge_spec.check(judge)
