"""Estimate the memory, disk space and download size of a run from the configuration of its model.

The estimates are upper bounds: all rows have full length, and no memory is shared with the page cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench import hub, models
from wpn_bench.attacks.registry import RELEARN, RELEARN_SEARCH
from wpn_bench.config import RunConfig
from wpn_bench.core.registry import import_attribute
from wpn_bench.errors import UserError
from wpn_bench.jobs.stages import STAGES, stage_of
from wpn_bench.jobs.store import read_manifest
from wpn_bench.models.backends.endpoint import PREFIX
from wpn_bench.models.sizes import dtype_bytes
from wpn_bench.unlearn.methods import method_of

if TYPE_CHECKING:
    from wpn_bench.unlearn.memory import Training

GIB = 2**30
# Memory of Python, PyTorch and transformers without a model.
LIBRARY_BYTES = {"cpu": 1.0 * GIB, "cuda": 0.5 * GIB}
JUDGE_BYTES = GIB // 2  # size of a large classifier; Detoxify's have 125 M parameters in float32
MAX_CHECKPOINTS = 3  # a training keeps two checkpoints, and writes a third before it deletes the oldest
MAX_LAYERS = 5000  # limit of plausible configurations; large models have about 130 layers
SEARCH_TOKENS = 256  # tokens of prompt, suffix and target in one gradient computation of an attack


@dataclass(frozen=True)
class ModelSpec:
    """The run and the model for which memory and disk space are estimated.

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
            The specification; None if the configuration cannot be read. Loading the model later reports the reason.

        Raises:
            UserError: The configuration is implausible.
        """
        from wpn_bench.unlearn.preflight import architecture

        model_class, settings = architecture(models.settings_folder(config.model, config.revision))
        if model_class is None:
            return None
        # The sizes are computed by building the model without weights, so the number of layers is limited.
        layers = getattr(settings.get_text_config(), "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > MAX_LAYERS:
            raise UserError(f"the config.json of {config.model} has {layers} layers", "check the file")
        return cls(config, model_class, settings)

    @cached_property
    def device(self) -> str:
        """Return `cpu` or `cuda`. Raises `UserError` for a device that this machine does not have."""
        return models.pick_device(self.config.device).partition(":")[0]

    @cached_property
    def parameters(self) -> int:
        """Return the number of parameters of the model."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        import torch

        with torch.device("meta"):
            return [p.numel() for p in self.model_class(self.model_config).parameters()]

    def weights(self, dtype: str | None = None) -> int:
        """Return the bytes of one copy of the model in `dtype`; None means the data type of the run."""
        return self.parameters * dtype_bytes(dtype or self.config.dtype)

    @property
    def largest(self) -> int:
        """Return the bytes of the largest weight matrix. An offloaded model has only one matrix in memory at a time."""
        return max(self._sizes) * dtype_bytes(self.config.dtype)


@dataclass(frozen=True)
class MemoryNeed:
    """An upper bound on the memory that a stage needs on the device of the run.

    Attributes:
        stage: Name of the stage; "generate" stands for all stages that only run inference.
        name: Name of the method, attack or quantisation scheme.
        memory: Number of bytes.
        parts: Bytes of each part, which add up to `memory`.
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
    """Return the memory for training with each method.

    Args:
        spec: The run and its model.
        stage: Name of the stage.

    Returns:
        One need for each method.
    """
    if "train" not in spec.config.stages:
        return []
    return [training_need(stage, name, training_memory(spec, name)) for name in spec.config.methods]


def inference_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return the memory of all stages that only run inference.

    Args:
        spec: The run and its model.
        stage: Name of the stage.

    Returns:
        One need for all these stages; none if the run only trains.
    """
    return [] if set(spec.config.stages) == {"train"} else [inference_memory(spec)]


def quantisation_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return the memory of each quantisation scheme.

    Args:
        spec: The run and its model.
        stage: Name of the stage.

    Returns:
        One need for each scheme.
    """
    schemes = spec.config.quantise if "attack" in spec.config.stages else ()
    return [MemoryNeed(stage, name, quantisation_memory(spec)) for name in schemes]


def relearning_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return the memory of the relearning attack.

    Args:
        spec: The run and its model.
        stage: Name of the stage.

    Returns:
        One need; none if the run does not include the attack.
    """
    config = spec.config
    if config.relearn is None or "attack" not in config.stages:
        return []
    return [training_need(stage, RELEARN, relearning_memory(spec, config.relearn.batch_size))]


def relearn_search_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return the memory of the attack of the relearning search that needs most.

    Args:
        spec: The run and its model.
        stage: Name of the stage.

    Returns:
        One need; none if the run does not include the search.
    """
    config = spec.config
    if config.relearn_search is None or "attack" not in config.stages:
        return []
    return [training_need(stage, RELEARN_SEARCH, relearning_memory(spec, config.relearn_search.batch_size))]


def adaptive_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return the memory of an adaptive attack, which holds a local attacker beside the target.

    Args:
        spec: The run and its model.
        stage: Name of the stage.

    Returns:
        One need; none without such an attack, or if the attacker is an endpoint or cannot be read.
    """
    source = spec.config.attacker
    if not source or source.startswith(PREFIX) or not spec.config.adaptive_attacks:
        return []
    asked, revision = models.split_revision(source)
    try:
        attacker = ModelSpec.of(spec.config.model_copy(update={"model": asked, "revision": revision}))
    except UserError:  # looking for the attacker will report it
        attacker = None
    if attacker is None:
        return []
    parts = {**inference_memory(spec).parts, "attacker": attacker.weights()}
    return [MemoryNeed(stage, "", sum(parts.values()), parts)]


def search_needs(spec: ModelSpec, stage: str) -> list[MemoryNeed]:
    """Return the memory of a gradient attack.

    Args:
        spec: The run and its model.
        stage: Name of the stage, which is the name of the attack.

    Returns:
        One need; none if the run does not include the attack.
    """
    return [search_memory(spec, stage)] if "attack" in spec.config.stages else []


def training_memory(spec: ModelSpec, name: str, **changes: Any) -> Training:
    """Estimate the memory of a training.

    Args:
        spec: The run and its model.
        name: Name of the method.
        **changes: Options of the method that differ, and `dtype`, the data type of the weights.

    Returns:
        The bytes of each part.
    """
    from wpn_bench.unlearn import memory

    dtype = changes.pop("dtype", spec.config.dtype)
    given = spec.config.method_config(name).model_dump() | changes
    kind = method_of(name)
    return memory.of_training(spec.model_class, spec.model_config, kind(kind.Config(**given)), dtype)


def relearning_memory(spec: ModelSpec, batch: int) -> Training:
    """Estimate the memory of a relearning attack, which trains all weights in float32.

    Args:
        spec: The run and its model.
        batch: Number of pairs per step.

    Returns:
        The bytes of each part.
    """
    from wpn_bench.attacks.relearn import RelearnConfig, Relearning
    from wpn_bench.unlearn import memory

    method = Relearning(RelearnConfig(batch_size=batch, retain_batch_size=batch))
    return memory.of_training(spec.model_class, spec.model_config, method, "float32")


def inference_memory(spec: ModelSpec, dtype: str | None = None, offload: str | None = None) -> MemoryNeed:
    """Estimate the memory of inference: weights, activations and the judge.

    For an offloaded model, only the largest matrix counts. It counts twice: once while it is read and once while it is
    used.

    Args:
        spec: The run and its model.
        dtype: Data type of the weights; None means that of the run.
        offload: "none", "cpu" or "disk"; None means the setting of the run.

    Returns:
        The need.
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
    """Estimate the memory of a gradient attack: the model, and the activations that autograd keeps for one text.

    Args:
        spec: The run and its model.
        name: Name of the attack.

    Returns:
        The need.
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
    """Estimate the bytes for quantising a model: the original weights, and at most as many for the quantised ones."""
    return 2 * spec.weights()


def training_need(stage: str, name: str, estimate: Training) -> MemoryNeed:
    """Convert an estimate of training memory to a need.

    Args:
        stage: Name of the stage.
        name: Name of the method or attack.
        estimate: The estimate.

    Returns:
        The need, with all parts that are not zero.
    """
    parts = {part: getattr(estimate, part) for part in _PARTS if getattr(estimate, part)}
    return MemoryNeed(stage, name, estimate.total, parts)


_PARTS = ("weights", "reference", "gradients", "optimizer", "activations")


@dataclass(frozen=True)
class StoreUsage:
    """An upper bound on the bytes that a run stores.

    Attributes:
        trained: Bytes of trained models, including those of tuning trials.
        snapshots: Bytes of models after some training steps, for training curves and relearning.
        rounded: Bytes of quantised models.
        checkpoints: Bytes of checkpoints during a training.
    """

    trained: int
    snapshots: int
    rounded: int
    checkpoints: int

    @property
    def total(self) -> int:
        return self.trained + self.snapshots + self.rounded + self.checkpoints


def store_usage(spec: ModelSpec, done: int = 0) -> StoreUsage:
    """Estimate how much a run will store.

    Args:
        spec: The run and its model.
        done: Number of its trainings whose models are already in the store.

    Returns:
        The bytes of each part.
    """
    from wpn_bench.attacks.relearn import RelearnConfig
    from wpn_bench.unlearn.tuning import RUNGS

    config, one = spec.config, spec.weights()
    methods, seeds = len(config.methods), len(config.seeds)
    if "train" not in config.stages:
        return StoreUsage(0, 0, 0, 0)
    models_of_trial = 1 + RUNGS if config.tune_halving else 1  # one for each pause, and the last
    trainings = max(0, methods * (seeds + models_of_trial * (config.tune or 0)) - done)
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
    if "attack" in config.stages and config.relearn_search:
        checkpoints = max(checkpoints, MAX_CHECKPOINTS * 3 * spec.weights("float32"))
    return StoreUsage(trainings * one, snapshots, rounded, checkpoints)


def count_trainings(store: Path, base: str) -> int:
    """Count the models in a store that were trained from a certain base model.

    Args:
        store: Folder of the store.
        base: Digest of the base model.

    Returns:
        The number of models.
    """
    manifests = (read_manifest(folder) or {} for folder in (store / "train").glob("*"))
    return sum(one.get("inputs", {}).get("needs", {}).get("model") == base for one in manifests)


def download_bytes(asked: str, revision: str | None = None) -> int:
    """Return how much of a model must be downloaded.

    Args:
        asked: Name of a model on the hub, or a folder.
        revision: Branch, tag or commit of the model.

    Returns:
        The number of bytes that are not in the cache; 0 for a folder, or if the hub cannot be reached.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.hf_api import RepoFile

    if models.lies_here(asked) or hub.is_unreachable():
        return 0
    try:
        tree = HfApi().list_repo_tree(asked, recursive=True, revision=revision)
        files = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    except Exception:  # loading the model will report the error
        return 0
    ignored = models.unwanted(files)
    return sum(
        size
        for name, size in files.items()
        if not any(fnmatch(name, pattern) for pattern in ignored)
        and not isinstance(try_to_load_from_cache(asked, name, revision=revision), str)
    )
