"""What a run takes - memory, disk, context - held against what there is, before any weights are fetched or loaded.

Estimates come from the model's configuration alone and are upper bounds: rows at full length, nothing shared with the page
cache. `doctor` prints them; `full` and its like refuse a run that cannot succeed, in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench import hub, models
from wpn_bench.attacks.registry import RELEARN
from wpn_bench.config import RunConfig
from wpn_bench.core.machine import USABLE_FRACTION, free_disk, nearest_existing
from wpn_bench.errors import UserError
from wpn_bench.jobs.store import read_manifest
from wpn_bench.unlearn.methods import method_of

if TYPE_CHECKING:
    from wpn_bench.unlearn.memory import Training


GIB = 2**30
# What Python, PyTorch and transformers take beside the model.
LIBRARY_BYTES = {"cpu": 1.0 * GIB, "cuda": 0.5 * GIB}
JUDGE_BYTES = GIB // 2  # of classifiers those that come with detoxify are among the largest: 125 M weights in float32
MAX_CHECKPOINTS = 3  # of a training: two are kept, and a third is written before the oldest goes
MAX_LAYERS = 5000  # of a model; today's large ones have 130
SEARCH_TOKENS = 256  # of a prompt, suffix and target that a gradient attack differentiates at a time


@dataclass(frozen=True)
class ModelSpec:
    """What is estimated: a run's configuration, the class and configuration of its model."""

    config: RunConfig
    model_class: Any
    model_config: Any

    @classmethod
    def of(cls, config: RunConfig) -> ModelSpec | None:
        """The run's; None where the model's configuration cannot be read, which whoever fetches the model says better."""
        from wpn_bench.unlearn.preflight import architecture

        model_class, settings = architecture(models.settings_folder(config.model, config.revision))
        if model_class is None:
            return None
        # Its sizes are found by building it without weights, layer by layer.
        layers = getattr(settings.get_text_config(), "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > MAX_LAYERS:
            raise UserError(f"the config.json of {config.model} says {layers} layers", "give a model that there can be")
        return cls(config, model_class, settings)

    @cached_property
    def device(self) -> str:
        """`cpu` or `cuda`; raises `UserError` for a device that is not here."""
        return models.pick_device(self.config.device).partition(":")[0]

    @cached_property
    def parameters(self) -> int:
        """Weights of the model."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        import torch

        with torch.device("meta"):
            return [p.numel() for p in self.model_class(self.model_config).parameters()]

    def weights(self, dtype: str | None = None) -> int:
        """Bytes of one copy of the model in `dtype` (None: the run's)."""
        return self.parameters * _size_of(dtype or self.config.dtype)

    @property
    def largest(self) -> int:
        """Bytes of the largest matrix, which is all that an offloaded model has in memory at a time."""
        return max(self._sizes) * _size_of(self.config.dtype)


def _size_of(dtype: str) -> int:
    import torch

    return torch.finfo(getattr(torch, dtype)).bits // 8


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of memory that a stage of a run takes at most, on the run's device. `stage` is one of `executors.STAGES`
    ("generate" for all that only asks the model); `name` the method, attack or scheme; `parts` add up to `memory`."""

    stage: str
    name: str
    memory: int
    parts: Mapping[str, int] = field(default_factory=dict)


def memory_needs(subject: ModelSpec) -> list[MemoryNeed]:
    """Of every stage of the run that holds a model, the largest of each kind by itself: no two run at a time."""
    config = subject.config
    found = []
    if "train" in config.stages:
        for name in config.methods:
            found.append(_need("train", name, training_memory(subject, name)))
    if set(config.stages) != {"train"}:
        found.append(inference_memory(subject))
    return [*found, *attack_memory(subject)]


def attack_memory(subject: ModelSpec) -> list[MemoryNeed]:
    """Of the attacks that need more of a model than to be asked."""
    config = subject.config
    if "attack" not in config.stages:
        return []
    found = [search_memory(subject, name) for name in config.gradient_attacks]
    found += [MemoryNeed("quantise", name, quantisation_memory(subject)) for name in config.quantise]
    if config.relearn:
        found.append(_need("relearn", RELEARN, relearning_memory(subject)))
    return found


def training_memory(subject: ModelSpec, name: str, **changes: Any) -> Training:
    """What training with the method `name` takes, with these changes to its options; `dtype` is one, too."""
    from wpn_bench.unlearn import memory

    dtype = changes.pop("dtype", subject.config.dtype)
    given = subject.config.method_config(name).model_dump() | changes
    kind = method_of(name)
    return memory.of_training(subject.model_class, subject.model_config, kind(kind.Config(**given)), dtype)


def relearning_memory(subject: ModelSpec) -> Training:
    """What relearning takes: it trains all weights, in float32."""
    from wpn_bench.attacks.relearn import RelearnConfig, Relearning
    from wpn_bench.unlearn import memory

    assert subject.config.relearn is not None
    batch = subject.config.relearn.batch_size
    method = Relearning(RelearnConfig(batch_size=batch, retain_batch_size=batch))
    return memory.of_training(subject.model_class, subject.model_config, method, "float32")


def inference_memory(subject: ModelSpec, dtype: str | None = None, offload: str | None = None) -> MemoryNeed:
    """What asking a model takes: its weights (offloaded, the largest of them twice: as it is read, and as it is computed
    with), what a pass computes, the judge."""
    config = subject.config
    offloaded = (offload or config.offload) == "disk"
    weights = 2 * subject.largest if offloaded else subject.weights(dtype)
    parts = {
        "weights": weights,
        "passes": models.working_memory(subject.model_config, dtype or config.dtype),
        "judge": JUDGE_BYTES,
    }
    return MemoryNeed("generate", "", sum(parts.values()), parts)


def search_memory(subject: ModelSpec, name: str) -> MemoryNeed:
    """What a gradient attack takes: the whole model, and what autograd keeps of one text."""
    from wpn_bench.unlearn.memory import of_a_row

    text = min(SEARCH_TOKENS, models.context_of(subject.model_config))
    kept = of_a_row(subject.model_class, subject.model_config, subject.config.dtype, text)
    parts = {
        "weights": subject.weights(),
        "gradients": kept,
        "passes": inference_memory(subject).parts["passes"],
    }
    return MemoryNeed(name, name, sum(parts.values()), parts)


def quantisation_memory(subject: ModelSpec) -> int:
    """What quantisation takes: the weights as they were, and no more than that once they are rounded."""
    return 2 * subject.weights()


def _need(stage: str, name: str, found: Training) -> MemoryNeed:
    parts = {part: getattr(found, part) for part in _PARTS if getattr(found, part)}
    return MemoryNeed(stage, name, found.total, parts)


_PARTS = ("weights", "reference", "gradients", "optimizer", "activations")


def available_memory(device: str) -> float:
    """Bytes of memory to be had for models on `device`."""
    from wpn_bench.core import device_memory

    return max(0.0, USABLE_FRACTION * device_memory.free_memory(device) - LIBRARY_BYTES[device])


@dataclass(frozen=True)
class FitCheck:
    """Whether one thing of a run fits: `text` says how much is needed and how much there is, `hint` what to do."""

    topic: str
    fits: bool
    text: str
    hint: str = ""


# What saves memory of training, the least intrusive first, and how it is typed.
_SAVINGS: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": True},
    {"lora": 16},
    {"lora": 16, "gradient_checkpointing": True},
    {"lora": 16, "gradient_checkpointing": True, "dtype": "bfloat16", "mixed_precision": "no"},
    {
        "lora": 16,
        "gradient_checkpointing": True,
        "dtype": "bfloat16",
        "mixed_precision": "no",
        "batch_size": 1,
        "retain_batch_size": 1,
    },
)
_TYPED = {
    "lora": "--lora 16",
    "gradient_checkpointing": "--gradient-checkpointing",
    "dtype": "--dtype bfloat16",
    "mixed_precision": "--mixed-precision no",
    "batch_size": "and `training: {batch_size: 1, retain_batch_size: 1, accumulation: 8}` in a --config file",
}


def check_training(subject: ModelSpec) -> FitCheck:
    """The hungriest method decides: a run trains them one after another."""
    free = available_memory(subject.device)
    every = {name: training_memory(subject, name) for name in subject.config.methods}
    name, most = max(every.items(), key=lambda pair: pair[1].total)
    parts = ", ".join(f"{part} {format_bytes(size)}" for part, size in _need("train", name, most).parts.items())
    text = f"{name} takes at most {format_bytes(most.total)} ({most.parameters / 1e6:,.1f} M parameters: {parts})"
    here = f"{format_bytes(free)} to be had on {subject.device}"
    if most.total <= free:
        return FitCheck("training", True, f"fits: {text}, {here}")
    mixed = any(subject.config.method_config(one).mixed_precision != "no" for one in every)
    for changes in _SAVINGS:
        less = max(training_memory(subject, one, **changes).total for one in every)
        if less <= free:
            options = " ".join(
                typed for name, typed in _TYPED.items() if name in changes and (mixed or name != "mixed_precision")
            )
            return FitCheck("training", False, f"does not fit: {text}, {here}", f"use {options} ({format_bytes(less)})")
    return FitCheck("training", False, f"does not fit: {text}, {here}", "take a smaller model, or a larger machine")


def check_inference(subject: ModelSpec) -> FitCheck:
    """Two models, the base and another, if both fit; else one at a time, offloaded where that was asked for."""
    config, free = subject.config, available_memory(subject.device)
    here = f"{format_bytes(free)} to be had on {subject.device}"
    if config.offload == "cpu" and subject.device != "cpu":
        free += available_memory("cpu")
        here += " and in main memory"
    one, two = inference_memory(subject, offload="none").memory, 2 * subject.weights()
    both = one + subject.weights()
    if both <= free:
        return FitCheck("measuring", True, f"fits: base and one other model take {format_bytes(two)}, {here}")
    text = f"one model takes {format_bytes(subject.weights())}, with passes and judge {format_bytes(one)}, {here}"
    if one <= free:
        return FitCheck("measuring", True, f"fits one model at a time: {text}")
    least = inference_memory(subject, offload="disk").memory
    if config.offload == "disk" and least <= free:
        return FitCheck("measuring", True, f"fits, read from disk: {text}, and {format_bytes(least)} are enough")
    if config.dtype == "float32" and (half := inference_memory(subject, "bfloat16", "none").memory) <= free:
        hint = f"use --dtype bfloat16 ({format_bytes(half)})"
    elif subject.device != "cpu" and config.offload == "none" and one <= free + available_memory("cpu"):
        hint = "use --offload cpu"
    elif config.offload != "disk" and least <= free:
        hint = f"use --offload disk ({format_bytes(least)})"
    else:
        hint = "take a smaller model, or a larger machine"
    return FitCheck("measuring", False, f"does not fit: {text}", hint)


def check_attacks(subject: ModelSpec) -> Iterator[FitCheck]:
    """The attacks that need more of a model than to be asked, none of which works on one that is offloaded."""
    free = available_memory(subject.device)
    for need in attack_memory(subject):
        text = (
            f"{need.name} takes at most {format_bytes(need.memory)}, {format_bytes(free)} to be had on {subject.device}"
        )
        fits = need.memory <= free
        hint = "" if fits else f"leave {need.name} out (--attacks names those to make)"
        yield FitCheck("attacks", fits, ("fits: " if fits else "does not fit: ") + text, hint)


def check_context(subject: ModelSpec) -> FitCheck:
    """Whether there is room for the response at all."""
    context, asked = models.context_of(subject.model_config), subject.config.decoding.max_new_tokens
    text = f"{subject.config.model} attends to {context} tokens, and the response alone may take {asked}"
    return FitCheck(
        "context", asked < context, text, "" if asked < context else f"use --max-new-tokens below {context}"
    )


@dataclass(frozen=True)
class StoreUsage:
    """Bytes that a run leaves in the store at most: models that are trained (of them those of trials), models after some
    steps, models whose weights are rounded; and checkpoints while a training is on."""

    trained: int
    snapshots: int
    rounded: int
    checkpoints: int

    @property
    def total(self) -> int:
        return self.trained + self.snapshots + self.rounded + self.checkpoints


def store_usage(subject: ModelSpec, done: int = 0) -> StoreUsage:
    """What the run will leave, without the `done` trainings that the store has already."""
    from wpn_bench.attacks.relearn import RelearnConfig

    config, one = subject.config, subject.weights()
    methods, seeds = len(config.methods), len(config.seeds)
    if "train" not in config.stages:
        return StoreUsage(0, 0, 0, 0)
    trainings = max(0, methods * (seeds + (config.tune or 0)) - done)
    curves = len(config.curve_methods()) * seeds * (1 + len(config.curve.steps)) if config.curve else 0
    snapshots = curves * one
    rounded = 0
    if "attack" in config.stages:
        measured = 1 + methods * seeds
        rounded = measured * len(config.quantise) * one
        if config.relearn:
            steps = sum(step > 0 for step in config.relearn.steps)
            snapshots += seeds * (methods + 1) * len(config.relearn.kinds) * steps * subject.weights("float32")
    every = [(training_memory(subject, name), config.method_config(name)) for name in config.methods]
    checkpoints = max(
        (min(MAX_CHECKPOINTS, c.steps // c.save_every) * (t.gradients + t.optimizer) for t, c in every if c.save_every),
        default=0,
    )
    if not trainings:
        checkpoints = 0
    if "attack" in config.stages and config.relearn:
        each = max(config.relearn.steps) // RelearnConfig().save_every
        checkpoints = max(checkpoints, min(MAX_CHECKPOINTS, each) * 3 * subject.weights("float32"))
    return StoreUsage(trainings * one, snapshots, rounded, checkpoints)


def count_trainings(store: Path, base: str) -> int:
    """How many trained models of the base with this digest are in the store."""
    found = (read_manifest(folder) or {} for folder in (store / "train").glob("*"))
    return sum(one.get("inputs", {}).get("needs", {}).get("model") == base for one in found)


def download_bytes(asked: str, revision: str | None = None) -> int:
    """Bytes that the hub's model has and the cache has not; 0 for a folder, and where the hub cannot be asked."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.hf_api import RepoFile

    if models.lies_here(asked) or hub.is_unreachable():
        return 0
    try:
        tree = HfApi().list_repo_tree(asked, recursive=True, revision=revision)
        files = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    except Exception:  # whatever it is, whoever fetches the model says it
        return 0
    ignored = models.unwanted(files)
    return sum(
        size
        for name, size in files.items()
        if not any(fnmatch(name, pattern) for pattern in ignored)
        and not isinstance(try_to_load_from_cache(asked, name, revision=revision), str)
    )


def check_download(config: RunConfig) -> FitCheck:
    """Whether the model fits into the hub's cache."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    need, free = download_bytes(config.model, config.revision), free_disk(cache)
    text = f"{config.model} takes {format_bytes(need)}, {format_bytes(free)} free in the hub's cache"
    hint = "" if need <= free else "set HF_HOME to a folder on a larger disk"
    return FitCheck("download", need <= free, text, hint)


def check_store(subject: ModelSpec, store: Path, done: int = 0) -> FitCheck:
    """Whether the models that are made fit into the store, of which `done` trainings are there already; beside the
    download, if that goes to the same disk."""
    from huggingface_hub import constants

    free, need = free_disk(store), store_usage(subject, done).total
    text = f"{format_bytes(free)} free at {store}, the trained models alone may take {format_bytes(need)}"
    if nearest_existing(store).stat().st_dev == nearest_existing(Path(constants.HF_HUB_CACHE)).stat().st_dev:
        fetched = download_bytes(subject.config.model, subject.config.revision)
        text += f" and the download {format_bytes(fetched)}" if fetched else ""
        need += fetched
    if need > free:
        return FitCheck("store", False, text, "give a larger disk with --store DIR, or fewer --methods or --seeds")
    also = f", the trained models may take {format_bytes(need)}" if need else ""
    return FitCheck("store", True, f"{format_bytes(free)} free at {store}{also}")


def check_resources(config: RunConfig, *, force: bool = False, warn: Callable[[str], None] = lambda text: None) -> None:
    """Raise `UserError` for what cannot succeed with this model on this machine; with `force`, what is only estimated is
    a warning. Nothing is said of a model whose configuration cannot be read."""
    subject = ModelSpec.of(config)
    if subject is None:
        return
    context = check_context(subject)
    if not context.fits:
        raise UserError(context.text, context.hint)
    raise_if_too_large(_of_memory(subject, warn), force=force, warn=warn)
    raise_if_too_large([check_download(config)], force=force, warn=warn)


def _of_memory(subject: ModelSpec, warn: Callable[[str], None]) -> list[FitCheck]:
    stages, found = set(subject.config.stages), []
    try:
        if "train" in stages and subject.config.methods:
            found.append(check_training(subject))
        if stages != {"train"}:
            found.append(check_inference(subject))
        found += check_attacks(subject)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as e:
        # Models there are many, and not all can be computed without weights.
        what = " ".join(str(e).split())[:120]
        warn(f"note: the memory that {subject.model_class.__name__} takes cannot be estimated ({what})")
    return found


def raise_if_too_large(found: list[FitCheck], *, force: bool, warn: Callable[[str], None]) -> None:
    """Raise `UserError` for the first of these that does not fit; with `force`, warn of each and go on."""
    for verdict in found:
        if verdict.fits:
            continue
        if not force:
            hint = f"{verdict.hint}, or try it with --force: the estimate is an upper bound"
            raise UserError(f"{verdict.topic}: {verdict.text}", hint)
        warn(f"warning: {verdict.topic}: {verdict.text}; going on by --force")


def format_bytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
