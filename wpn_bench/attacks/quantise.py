"""The quantisation attack tests whether rounding the weights undoes unlearning.

It is a weight attack (Zhang et al. 2024, "Catastrophic Failure of LLM Unlearning via Quantization", arXiv:2410.16454).
If unlearning changed a weight by less than half a rounding step, the weight is mostly rounded to the same value as
before. torchao rounds the weights. The result is a model folder that every stage loads like any other model. The
rounded weights are the same on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core.files import write_json
from wpn_bench.core.registry import unknown_name
from wpn_bench.errors import JobFailed
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage

if TYPE_CHECKING:
    from torch import nn

QUANTISED = "quantised.json"
GROUP = 32  # number of weights in a row that share one scale in 4 bits
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Scheme:
    """A quantisation scheme.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        description: One sentence for `wpn-bench list`.
        config: Creates torchao's configuration.
        group: Number of weights that share one scale. The length of each row of weights must be a multiple of it.
    """

    name: str
    title: str
    description: str
    config: Callable[[], Any]
    group: int = 1


def _int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def _int4() -> Any:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP))  # type: ignore[attr-defined]


_ALL = (
    Scheme("int8", "Weights in 8 bits", "Weights of linear layers rounded to 8 bits, one scale a row.", _int8),
    Scheme(
        "int4",
        "Weights in 4 bits",
        f"Weights of linear layers rounded to 4 bits, one scale for {GROUP} of them.",
        _int4,
        GROUP,
    ),
)
SCHEMES = {scheme.name: scheme for scheme in _ALL}


def get_scheme(name: str) -> Scheme:
    """Return the scheme of this name. If it is unknown, the `UserError` suggests the most similar names."""
    if name not in SCHEMES:
        raise unknown_name("quantisation", name, SCHEMES)
    return SCHEMES[name]


def obstacle(device: str) -> str | None:
    """Return the reason why quantisation cannot run on this device, or None if it can."""
    if find_spec("torchao") is None:
        return "quantisation needs torchao, which is not installed: pip install 'wpn-bench[quantise]'"
    if device.partition(":")[0] not in DEVICES:
        return f"quantisation works on {' and '.join(DEVICES)}, not on {device}"
    return None


def run_quantise_stage(ctx: StageContext) -> None:
    """Round the weights of the input `model` with the parameter `scheme`.

    Weights of linear layers are rounded. The experts of a layer may be one tensor instead of linear layers; it is also
    rounded. Embeddings, the output head (tied to the embeddings in OPT and GPT-Neo) and norms are not rounded.

    The stage writes the model, its tokenizer, and `quantised.json` with the number of rounded weights. Raises
    `JobFailed` for a model that torchao cannot round or would leave unchanged.
    """
    import torch
    from transformers import AutoModelForCausalLM, TorchAoConfig

    from wpn_bench import models

    scheme = get_scheme(ctx.params["scheme"])
    _check_layers(ctx.needs["model"], scheme)
    models.make_room(2 * models.weights_bytes(ctx.needs["model"], ctx.params["dtype"]), "cpu")
    model = AutoModelForCausalLM.from_pretrained(
        ctx.needs["model"],
        dtype=getattr(torch, ctx.params["dtype"]),
        quantization_config=TorchAoConfig(scheme.config()),
        **models.reading(ctx.needs["model"]),
    )
    fused = round_fused(model, scheme)
    # Save the model before its first forward pass, in which some backends repack the weights.
    model.save_pretrained(ctx.out, max_shard_size=models.SHARD)
    models.load_tokenizer(ctx.needs["model"]).save_pretrained(ctx.out)
    counts = {name: p.numel() for name, p in model.named_parameters()}
    write_json(
        ctx.out / QUANTISED,
        {
            "scheme": scheme.name,
            "rounded_weights": sum(counts[name] for name in (*rounded_weights(model), *fused)),
            "weights": sum(counts.values()),
        },
    )


def _check_layers(folder: Path, scheme: Scheme) -> None:
    """Raise `JobFailed` for a model that torchao cannot round, or would leave unchanged without an error."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from wpn_bench.core import consent

    trust = consent.code_allowed()
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    head = model.get_output_embeddings()
    widths = {m.in_features for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head}
    if not widths:
        raise JobFailed(f"torchao rounds linear layers, but this {type(model).__name__} has none except its head")
    if odd := sorted(width for width in widths if width % scheme.group):
        raise JobFailed(
            f"{scheme.name} needs rows whose length is a multiple of {scheme.group}, but some rows have {odd[0]} weights"
        )


def round_fused(model: nn.Module, scheme: Scheme) -> list[str]:
    """Round the weights of experts that are combined in one tensor (E, rows, columns) for each layer.

    torchao only rounds linear layers. Each such tensor is rounded like a linear layer with E * rows rows. It keeps its
    data type and contains the rounded values.

    Args:
        model: The model, which is changed in place.
        scheme: The quantisation scheme.

    Returns:
        The names of the rounded parameters.

    Raises:
        JobFailed: The number of columns is not a multiple of the scheme's group.
    """
    import torch
    from torchao.quantization import quantize_

    done = []
    for name, weight in model.named_parameters():
        if "experts" not in name or weight.dim() != 3:
            continue
        if weight.shape[-1] % scheme.group:
            raise JobFailed(
                f"{scheme.name} needs rows whose length is a multiple of {scheme.group}, but {name} has {weight.shape[-1]}"
            )
        flat = weight.detach().flatten(0, 1)
        layer = torch.nn.Linear(flat.shape[1], flat.shape[0], bias=False, device=flat.device, dtype=flat.dtype)
        with torch.no_grad():
            layer.weight.copy_(flat)
            quantize_(layer, scheme.config())
            weight.copy_(layer.weight.dequantize().view_as(weight))
        done.append(name)
    return done


def rounded_weights(model: nn.Module) -> list[str]:
    """Return the names of the parameters that torchao stores as integers."""
    from torchao.utils import TorchAOBaseTensor

    return [name for name, p in model.named_parameters() if isinstance(p, TorchAOBaseTensor)]


STAGE = Stage(
    "wpn_bench.attacks.quantise:run_quantise_stage",
    1,
    (*LM_LIBRARIES, "torchao"),
    memory="wpn_bench.preflight.estimates:quantisation_needs",
    part="attack",
)
