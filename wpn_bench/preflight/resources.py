"""Compare the memory, disk space and context length that a run needs with what is available.

This happens before any weights are downloaded or loaded. The estimates use only the model's configuration. They are upper
bounds: all rows have full length, and no memory is shared with the page cache. `doctor` prints them; `full` and the other
commands reject a run that cannot succeed.
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
from wpn_bench.core.registry import import_attribute
from wpn_bench.errors import UserError
from wpn_bench.jobs.stages import STAGES, stage_of
from wpn_bench.jobs.store import read_manifest
from wpn_bench.models.sizes import dtype_bytes
from wpn_bench.unlearn.methods import method_of

if TYPE_CHECKING:
    from wpn_bench.unlearn.memory import Training


GIB = 2**30
# Memory of Python, PyTorch and transformers without a model.
LIBRARY_BYTES = {"cpu": 1.0 * GIB, "cuda": 0.5 * GIB}
JUDGE_BYTES = GIB // 2  # a large classifier: Detoxify's have 125 M parameters in float32
MAX_CHECKPOINTS = 3  # of a training: two are kept, and a third is written before the oldest is deleted
MAX_LAYERS = 5000  # plausibility limit; large models have about 130
SEARCH_TOKENS = 256  # prompt, suffix and target of one gradient computation of an attack


@dataclass(frozen=True)
class ModelSpec:
    """What the estimates are for.

    Attributes:
        config: Configuration of the run.
        model_class: Class of its model in transformers.
        model_config: Configuration of the model in transformers.
    """

    config: RunConfig
    model_class: Any
    model_config: Any

    @classmethod
    def of(cls, config: RunConfig) -> ModelSpec | None:
        """Read the model's configuration.

        Returns:
            The specification; None if the configuration cannot be read. Loading the model then reports why.

        Raises:
            UserError: The configuration is implausible.
        """
        from wpn_bench.unlearn.preflight import architecture

        model_class, settings = architecture(models.settings_folder(config.model, config.revision))
        if model_class is None:
            return None
        # The sizes are computed by building the model without weights, layer by layer, so limit their number.
        layers = getattr(settings.get_text_config(), "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > MAX_LAYERS:
            raise UserError(f"the config.json of {config.model} has {layers} layers", "check the file")
        return cls(config, model_class, settings)

    @cached_property
    def device(self) -> str:
        """`cpu` or `cuda`. Raises `UserError` for a device that this machine does not have."""
        return models.pick_device(self.config.device).partition(":")[0]

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        import torch

        with torch.device("meta"):
            return [p.numel() for p in self.model_class(self.model_config).parameters()]

    def weights(self, dtype: str | None = None) -> int:
        """Return the bytes of one copy of the model in `dtype`; None is the data type of the run."""
        return self.parameters * dtype_bytes(dtype or self.config.dtype)

    @property
    def largest(self) -> int:
        """Bytes of the largest weight matrix: an offloaded model has only one matrix in memory at a time."""
        return max(self._sizes) * dtype_bytes(self.config.dtype)


@dataclass(frozen=True)
class MemoryNeed:
    """An upper bound on the memory that a stage needs on the run's device.

    Attributes:
        stage: Name of the stage; "generate" stands for all stages that only run inference.
        name: Name of the method, attack or quantisation scheme.
        memory: Bytes.
        parts: Bytes of each part; they add up to `memory`.
    """

    stage: str
    name: str
    memory: int
    parts: Mapping[str, int] = field(default_factory=dict)


def memory_needs(spec: ModelSpec) -> list[MemoryNeed]:
    """Return the memory of each stage that uses a model. Stages run one after another, so their needs do not add up."""
    found: list[MemoryNeed] = []
    for name in sorted((*spec.config.gradient_attacks, *STAGES), key=lambda name: stage_of(name).part == "attack"):
        if estimate := stage_of(name).memory:
            found += import_attribute(estimate)(spec, name)
    return found


def attack_memory(spec: ModelSpec) -> list[MemoryNeed]:
    """Return the memory of each attack that does more than inference."""
    return [need for need in memory_needs(spec) if stage_of(need.stage).part == "attack"]


def training_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return the memory of training with each method.

    Args:
        spec: The run and its model.
        stage: Name of the stage.

    Returns:
        The needs.
    """
    if "train" not in spec.config.stages:
        return []
    return [_need(stage, name, training_memory(spec, name)) for name in spec.config.methods]


def inference_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return one need for all stages that only run inference; none if the run only trains.

    Args:
        spec: The run and its model.
        stage: Name of the stage.

    Returns:
        The needs.
    """
    return [] if set(spec.config.stages) == {"train"} else [inference_memory(spec)]


def quantisation_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return the memory of each quantisation scheme.

    Args:
        spec: The run and its model.
        stage: Name of the stage.

    Returns:
        The needs.
    """
    schemes = spec.config.quantise if "attack" in spec.config.stages else ()
    return [MemoryNeed(stage, name, quantisation_memory(spec)) for name in schemes]


def relearning_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return the memory of relearning; none if the run does not include it.

    Args:
        spec: The run and its model.
        stage: Name of the stage.

    Returns:
        The needs.
    """
    config = spec.config
    return [_need(stage, RELEARN, relearning_memory(spec))] if config.relearn and "attack" in config.stages else []


def search_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return the memory of a gradient attack.

    Args:
        spec: The run and its model.
        stage: Name of the stage, which is that of its attack.

    Returns:
        The needs.
    """
    return [search_memory(spec, stage)] if "attack" in spec.config.stages else []


def training_memory(spec: ModelSpec, name: str, **changes: Any) -> Training:
    """Estimate the memory of training.

    Args:
        spec: The run and its model.
        name: Name of the method.
        **changes: Changes to the method's options, and `dtype`, the data type of the weights.

    Returns:
        The estimate by parts.
    """
    from wpn_bench.unlearn import memory

    dtype = changes.pop("dtype", spec.config.dtype)
    given = spec.config.method_config(name).model_dump() | changes
    kind = method_of(name)
    return memory.of_training(spec.model_class, spec.model_config, kind(kind.Config(**given)), dtype)


def relearning_memory(spec: ModelSpec) -> Training:
    """Estimate the memory of a relearning attack, which trains all weights in float32."""
    from wpn_bench.attacks.relearn import RelearnConfig, Relearning
    from wpn_bench.unlearn import memory

    assert spec.config.relearn is not None
    batch = spec.config.relearn.batch_size
    method = Relearning(RelearnConfig(batch_size=batch, retain_batch_size=batch))
    return memory.of_training(spec.model_class, spec.model_config, method, "float32")


def inference_memory(spec: ModelSpec, dtype: str | None = None, offload: str | None = None) -> MemoryNeed:
    """Estimate the memory of inference: weights, activations and the judge.

    Of an offloaded model only the largest matrix counts, twice: once as it is read and once as it is used.

    Args:
        spec: The run and its model.
        dtype: Data type of the weights; None is the run's.
        offload: "none", "cpu" or "disk"; None is the run's.

    Returns:
        The estimate.
    """
    config = spec.config
    offloaded = (offload or config.offload) == "disk"
    weights = 2 * spec.largest if offloaded else spec.weights(dtype)
    parts = {
        "weights": weights,
        "passes": models.working_memory(spec.model_config, dtype or config.dtype),
        "judge": JUDGE_BYTES,
    }
    return MemoryNeed("generate", "", sum(parts.values()), parts)


def search_memory(spec: ModelSpec, name: str) -> MemoryNeed:
    """Estimate the memory of a gradient attack: the model, and the activations that autograd stores for one text.

    Args:
        spec: The run and its model.
        name: Name of the attack.

    Returns:
        The estimate.
    """
    from wpn_bench.unlearn.memory import of_a_row

    text = min(SEARCH_TOKENS, models.context_of(spec.model_config))
    kept = of_a_row(spec.model_class, spec.model_config, spec.config.dtype, text)
    parts = {
        "weights": spec.weights(),
        "gradients": kept,
        "passes": inference_memory(spec).parts["passes"],
    }
    return MemoryNeed(name, name, sum(parts.values()), parts)


def quantisation_memory(spec: ModelSpec) -> int:
    """Estimate the bytes of quantisation: the original weights, and at most as much for the quantised ones."""
    return 2 * spec.weights()


def _need(stage: str, name: str, found: Training) -> MemoryNeed:
    parts = {part: getattr(found, part) for part in _PARTS if getattr(found, part)}
    return MemoryNeed(stage, name, found.total, parts)


_PARTS = ("weights", "reference", "gradients", "optimizer", "activations")


def available_memory(device: str) -> float:
    """Return the bytes of memory available for models on `device`."""
    from wpn_bench.core import device_memory

    return max(0.0, USABLE_FRACTION * device_memory.free_memory(device) - LIBRARY_BYTES[device])


@dataclass(frozen=True)
class FitCheck:
    """Whether one resource suffices.

    Attributes:
        topic: What was checked, such as "training".
        fits: Whether it suffices.
        text: How much is needed and how much is available.
        hint: What to do if it does not suffice.
    """

    topic: str
    fits: bool
    text: str
    hint: str = ""


# Options that save training memory, from the least to the most intrusive, and their command-line form.
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
_OPTIONS = {
    "lora": "--lora 16",
    "gradient_checkpointing": "--gradient-checkpointing",
    "dtype": "--dtype bfloat16",
    "mixed_precision": "--mixed-precision no",
    "batch_size": "and `training: {batch_size: 1, retain_batch_size: 1, accumulation: 8}` in a --config file",
}


def check_training(spec: ModelSpec) -> FitCheck:
    """Check the memory of training. Methods train one after another, so the one that needs the most memory decides."""
    free = available_memory(spec.device)
    every = {name: training_memory(spec, name) for name in spec.config.methods}
    name, most = max(every.items(), key=lambda pair: pair[1].total)
    parts = ", ".join(f"{part} {format_bytes(size)}" for part, size in _need("train", name, most).parts.items())
    text = f"{name} needs at most {format_bytes(most.total)} ({most.parameters / 1e6:,.1f} M parameters: {parts})"
    available = f"{format_bytes(free)} available on {spec.device}"
    if most.total <= free:
        return FitCheck("training", True, f"fits: {text}, {available}")
    mixed = any(spec.config.method_config(one).mixed_precision != "no" for one in every)
    for changes in _SAVINGS:
        less = max(training_memory(spec, one, **changes).total for one in every)
        if less <= free:
            options = " ".join(
                option for name, option in _OPTIONS.items() if name in changes and (mixed or name != "mixed_precision")
            )
            return FitCheck(
                "training", False, f"does not fit: {text}, {available}", f"use {options} ({format_bytes(less)})"
            )
    return FitCheck("training", False, f"does not fit: {text}, {available}", "use a smaller model or a larger machine")


def check_inference(spec: ModelSpec) -> FitCheck:
    """Check the memory of inference: with two models (base and unlearned) if both fit, else one at a time or offloaded."""
    config, free = spec.config, available_memory(spec.device)
    available = f"{format_bytes(free)} available on {spec.device}"
    if config.offload == "cpu" and spec.device != "cpu":
        free += available_memory("cpu")
        available += " and in main memory"
    one, two = inference_memory(spec, offload="none").memory, 2 * spec.weights()
    both = one + spec.weights()
    if both <= free:
        return FitCheck("measuring", True, f"fits: the base and one other model need {format_bytes(two)}, {available}")
    text = (
        f"one model needs {format_bytes(spec.weights())}, with activations and judge {format_bytes(one)}, {available}"
    )
    if one <= free:
        return FitCheck("measuring", True, f"fits one model at a time: {text}")
    least = inference_memory(spec, offload="disk").memory
    if config.offload == "disk" and least <= free:
        return FitCheck("measuring", True, f"fits if read from disk: {text}; {format_bytes(least)} suffice")
    if config.dtype == "float32" and (half := inference_memory(spec, "bfloat16", "none").memory) <= free:
        hint = f"use --dtype bfloat16 ({format_bytes(half)})"
    elif spec.device != "cpu" and config.offload == "none" and one <= free + available_memory("cpu"):
        hint = "use --offload cpu"
    elif config.offload != "disk" and least <= free:
        hint = f"use --offload disk ({format_bytes(least)})"
    else:
        hint = "use a smaller model or a larger machine"
    return FitCheck("measuring", False, f"does not fit: {text}", hint)


def check_attacks(spec: ModelSpec) -> Iterator[FitCheck]:
    """Check the attacks that do more than inference. They do not support offloaded models."""
    free = available_memory(spec.device)
    for need in attack_memory(spec):
        text = f"{need.name} needs at most {format_bytes(need.memory)}, {format_bytes(free)} available on {spec.device}"
        fits = need.memory <= free
        hint = "" if fits else f"leave {need.name} out (select attacks with --attacks)"
        yield FitCheck("attacks", fits, ("fits: " if fits else "does not fit: ") + text, hint)


def check_context(spec: ModelSpec) -> FitCheck:
    """Check that the model's context can hold a response at all."""
    context, response = models.context_of(spec.model_config), spec.config.decoding.max_new_tokens
    text = f"{spec.config.model} has a context of {context} tokens, but the response alone may have {response}"
    return FitCheck(
        "context", response < context, text, "" if response < context else f"use --max-new-tokens below {context}"
    )


@dataclass(frozen=True)
class StoreUsage:
    """An upper bound on the bytes that a run stores.

    Attributes:
        trained: Trained models, those of tuning trials included.
        snapshots: Models after some of the steps, for curves and relearning.
        rounded: Quantised models.
        checkpoints: Checkpoints during a training.
    """

    trained: int
    snapshots: int
    rounded: int
    checkpoints: int

    @property
    def total(self) -> int:
        return self.trained + self.snapshots + self.rounded + self.checkpoints


def store_usage(spec: ModelSpec, done: int = 0) -> StoreUsage:
    """Estimate what a run will store.

    Args:
        spec: The run and its model.
        done: Number of its trainings that are in the store already.

    Returns:
        The estimate.
    """
    from wpn_bench.attacks.relearn import RelearnConfig

    config, one = spec.config, spec.weights()
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
            snapshots += seeds * (methods + 1) * len(config.relearn.kinds) * steps * spec.weights("float32")
    every = [(training_memory(spec, name), config.method_config(name)) for name in config.methods]
    checkpoints = max(
        (min(MAX_CHECKPOINTS, c.steps // c.save_every) * (t.gradients + t.optimizer) for t, c in every if c.save_every),
        default=0,
    )
    if not trainings:
        checkpoints = 0
    if "attack" in config.stages and config.relearn:
        each = max(config.relearn.steps) // RelearnConfig().save_every
        checkpoints = max(checkpoints, min(MAX_CHECKPOINTS, each) * 3 * spec.weights("float32"))
    return StoreUsage(trainings * one, snapshots, rounded, checkpoints)


def count_trainings(store: Path, base: str) -> int:
    """Count the trained models in a store.

    Args:
        store: Folder of the store.
        base: Digest of their base model.

    Returns:
        The number.
    """
    manifests = (read_manifest(folder) or {} for folder in (store / "train").glob("*"))
    return sum(one.get("inputs", {}).get("needs", {}).get("model") == base for one in manifests)


def download_bytes(asked: str, revision: str | None = None) -> int:
    """Return how much of a model must be downloaded.

    Args:
        asked: A model on the hub, or a folder.
        revision: Its revision.

    Returns:
        Bytes that are not in the cache; 0 for a folder, and if the hub cannot be reached.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.hf_api import RepoFile

    if models.lies_here(asked) or hub.is_unreachable():
        return 0
    try:
        tree = HfApi().list_repo_tree(asked, recursive=True, revision=revision)
        files = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    except Exception:  # loading the model reports the error
        return 0
    ignored = models.unwanted(files)
    return sum(
        size
        for name, size in files.items()
        if not any(fnmatch(name, pattern) for pattern in ignored)
        and not isinstance(try_to_load_from_cache(asked, name, revision=revision), str)
    )


def check_download(config: RunConfig) -> FitCheck:
    """Check the disk space of the hub's cache."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    need, free = download_bytes(config.model, config.revision), free_disk(cache)
    text = f"{config.model} needs {format_bytes(need)}, {format_bytes(free)} free in the hub's cache"
    hint = "" if need <= free else "set HF_HOME to a folder on a larger disk"
    return FitCheck("download", need <= free, text, hint)


def check_store(spec: ModelSpec, store: Path, done: int = 0) -> FitCheck:
    """Check the disk space of the store, plus the download if it goes to the same disk.

    Args:
        spec: The run and its model.
        store: Folder of the store.
        done: Number of the run's trainings that are in the store already.

    Returns:
        The check.
    """
    from huggingface_hub import constants

    free, need = free_disk(store), store_usage(spec, done).total
    text = f"{format_bytes(free)} free at {store}, the trained models alone may need {format_bytes(need)}"
    if nearest_existing(store).stat().st_dev == nearest_existing(Path(constants.HF_HUB_CACHE)).stat().st_dev:
        fetched = download_bytes(spec.config.model, spec.config.revision)
        text += f" and the download {format_bytes(fetched)}" if fetched else ""
        need += fetched
    if need > free:
        return FitCheck("store", False, text, "choose a larger disk with --store DIR, or fewer --methods or --seeds")
    also = f", the trained models may need {format_bytes(need)}" if need else ""
    return FitCheck("store", True, f"{format_bytes(free)} free at {store}{also}")


def check_resources(config: RunConfig, *, force: bool = False, warn: Callable[[str], None] = lambda text: None) -> None:
    """Check context, memory and download of a run. A model whose configuration cannot be read is not checked.

    Args:
        config: Configuration of the run.
        force: Turn estimates that do not fit into warnings.
        warn: Receives warnings.

    Raises:
        UserError: The run cannot succeed with this model on this machine.
    """
    spec = ModelSpec.of(config)
    if spec is None:
        return
    context = check_context(spec)
    if not context.fits:
        raise UserError(context.text, context.hint)
    raise_if_too_large(_of_memory(spec, warn), force=force, warn=warn)
    raise_if_too_large([check_download(config)], force=force, warn=warn)


def _of_memory(spec: ModelSpec, warn: Callable[[str], None]) -> list[FitCheck]:
    stages, found = set(spec.config.stages), []
    try:
        if "train" in stages and spec.config.methods:
            found.append(check_training(spec))
        if stages != {"train"}:
            found.append(check_inference(spec))
        found += check_attacks(spec)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as e:
        # Not every model can be built and run without weights.
        what = " ".join(str(e).split())[:120]
        warn(f"note: the memory of {spec.model_class.__name__} cannot be estimated ({what})")
    return found


def raise_if_too_large(checks: list[FitCheck], *, force: bool, warn: Callable[[str], None]) -> None:
    """Reject a run whose resources do not suffice.

    Args:
        checks: The checks.
        force: Warn instead.
        warn: Receives warnings.

    Raises:
        UserError: A check failed, and `force` is not set.
    """
    for check in checks:
        if check.fits:
            continue
        if not force:
            hint = f"{check.hint}, or try anyway with --force: the estimate is an upper bound"
            raise UserError(f"{check.topic}: {check.text}", hint)
        warn(f"warning: {check.topic}: {check.text}; continuing because of --force")


def format_bytes(count: float) -> str:
    """Format a number of bytes as GiB or MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
