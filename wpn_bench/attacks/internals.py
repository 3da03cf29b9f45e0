"""Hidden or gone? Three looks into a model at the harmful answer: its layers, what they still hold, and how its weights changed.

A model may be harmless only because its last layers suppress what the others still hold. Nothing is trained or searched here: the
model reads each prompt with the first tokens of its harmful reference.

**Logit lens** (nostalgebraist 2020; Patil et al. 2024, arXiv:2309.17410). The output of each layer is given to the model's own last
norm and head: how likely is the harmful answer if the model ended there?

**Activation patching** (Lee et al. 2026, "Measuring the Depth of LLM Unlearning via Activation Patching", arXiv:2605.24614, section
3). The base model reads the same tokens, and at one layer l its outputs are replaced by those of the other model, at the tokens that
predict the answer. The effect of layer l is the fall of the answer's mean log-probability. An effect of 0 means that the layer still
holds what the base needs. With the effects of the oracle, a model that never saw the harm, `wpn_bench.analysis.internals_rows.scores_of` gives the depth score.

**Change of the weights.** For each matrix the norm of the change relative to the norm of the base's matrix, and the stable rank of
the change, the squared ratio of its Frobenius norm to its largest singular value.

Differences from the paper: the answer is the first tokens of a harmful reference and not a named entity, because a harmful answer has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from wpn_bench.attacks.base import StageAttack
from wpn_bench.attacks.prefilling import remote_settings
from wpn_bench.core.files import write_json
from wpn_bench.core.json_files import load_json
from wpn_bench.core.validation import Count
from wpn_bench.errors import JobFailed
from wpn_bench.jobs.job import External, Job, StageContext
from wpn_bench.jobs.planning import MeasuredModel, PlannedMeasurement
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.prompts import Item, Template, joined
from wpn_bench.prompts.items import read_items

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "internals"
LAYERS, WEIGHTS, COUNTS = "layers.parquet", "weights.parquet", "counts.json"
_BATCH = 8  # number of prompts in a pass
_MOST_LOGITS = 2**26  # number of logits that the logit lens computes at once
_SAME_SHAPE = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")  # values of config.json


class Internals(BaseModel):
    """Settings of the look into hidden states and weights.

    It reads the first `limit` prompts of the first in-domain set that have a harmful reference.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens: Count = Field(16, description="number of tokens of the harmful reference that are read")
    limit: Count = Field(40, description="number of in-domain prompts")


class InternalsAttack(StageAttack):
    """Looks into the model. It is listed with the attacks because it also asks whether the harm is still there."""

    name = NAME
    title = "Hidden states and weights"
    description = "Reads layers and weights: is the harm gone, or only hidden by the last layers (Lee et al. 2026)?"
    Settings = Internals


# --- what is read -----------------------------------------------------------------------------------------------------


def read_as(
    tokenizer: PreTrainedTokenizerBase, template: Template, items: Sequence[Item], settings: Internals, context: int
) -> tuple[list[str], list[tuple[list[int], list[int]]]]:
    """Return the tokens of each prompt and of the beginning of its harmful reference.

    Args:
        tokenizer: The tokenizer.
        template: The template of the base.
        items: The prompts. Those without a harmful reference are left out.
        settings: Number of prompts and tokens.
        context: Number of tokens that the model can read. Of longer prompts, the end is read.

    Returns:
        The ids of the prompts, and for each the tokens of the prompt and of the answer.
    """
    from wpn_bench.models.tokenizer import encode_pairs

    texts = [(item, next((t for t in item.harmful if t.strip()), "")) for item in items]
    asked = [(item, text) for item, text in texts if text][: settings.limit]
    before = [template.render(item.unattacked) for item, _ in asked]
    after = [joined(text, head) for head, (_, text) in zip(before, asked, strict=True)]
    pairs = encode_pairs(tokenizer, before, after)
    # The last token of the answer is predicted and not read.
    read = [(head[-max(1, context + 1 - settings.tokens) :], answer[: settings.tokens]) for head, answer in pairs]
    kept = [(item.id, pair) for (item, _), pair in zip(asked, read, strict=True) if pair[0] and pair[1]]
    return [name for name, _ in kept], [pair for _, pair in kept]


# --- weights ----------------------------------------------------------------------------------------------------------


def weight_changes(model: PreTrainedModel, base: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Compare the matrices of a model with those of its base.

    Args:
        model: The model.
        base: The base.

    Yields:
        For each matrix with the same name and shape: name, layer (from 1; 0 outside the layers), norm (of the base's matrix), change
        (norm of the difference), and stable_rank of the difference (NaN without one). A parameter that holds the matrices of
        several experts counts as these matrices.
    """
    import torch

    from wpn_bench.engine.layers import layers_of

    number = {id(p): k + 1 for k, layer in enumerate(layers_of(base)) for p in layer.parameters()}
    own = dict(model.named_parameters())
    for name, before in base.named_parameters():
        after = own.get(name)
        if before.dim() < 2 or after is None or after.shape != before.shape:
            continue
        pairs = (one.detach().reshape(-1, *before.shape[-2:]) for one in (before, after.to(before.device)))
        for k, (old, new) in enumerate(zip(*pairs, strict=True)):
            with torch.inference_mode():
                delta = new.float() - old.float()
                small = delta if delta.shape[0] <= delta.shape[1] else delta.T
                change = float(torch.linalg.vector_norm(delta))
                # The largest singular value is the root of the largest eigenvalue of the smaller Gram matrix.
                largest = float(torch.linalg.eigvalsh((small @ small.T).double())[-1]) if change else 0.0
            yield {
                "name": name if before.dim() == 2 else f"{name}[{k}]",
                "layer": number.get(id(before), 0),
                "norm": float(torch.linalg.vector_norm(old.float())),
                "change": change,
                "stable_rank": change**2 / largest if largest > 0 else float("nan"),
            }


# --- the stage --------------------------------------------------------------------------------------------------------


def run_internals_stage(ctx: StageContext) -> None:
    """Read the input `model` and the `base` with the `prompts`.

    Writes `layers.parquet` with item_id, layer (from 1), lens (the model's own mean log-probability after this layer), full (the
    base's) and patched (the base's with this layer's output of the model); `weights.parquet` (see `weight_changes`); and
    `counts.json` with the number of prompts that were read and of those without a harmful reference.

    Raises:
        JobFailed: The models do not have the same layers, or no prompt has a harmful reference.
    """
    import pandas as pd
    import torch

    from wpn_bench import models
    from wpn_bench.engine.layers import layers_of, lens, patched, states

    settings = Internals(**{name: ctx.params[name] for name in Internals.model_fields})
    place = (ctx.local["device"], ctx.params["dtype"], ctx.local.get("offload", "none"))
    model, _ = models.load(ctx.needs["model"], *place)
    base, tokenizer = models.load(ctx.needs["base"], *place)
    if _shape(model) != _shape(base):
        raise JobFailed("its layers cannot be compared with those of the base: the two have other shapes")
    items = read_items(ctx.needs["prompts"])
    context = models.context_length(base)
    names, pairs = read_as(tokenizer, Template.parse(ctx.params["template"]), items, settings, context)
    if not pairs:
        raise JobFailed("no in-domain prompt has a harmful reference that the model could read")
    depth, vocabulary = len(layers_of(base)), len(base.get_input_embeddings().weight)
    advance = ctx.progress(len(pairs) * (depth + 2), "readings")
    at_once = max(1, min(_BATCH, _MOST_LOGITS // (depth * settings.tokens * vocabulary)))
    own: list[list[float]] = [[] for _ in range(depth)]
    for start in range(0, len(pairs), at_once):
        for layer, values in enumerate(lens(model, pairs[start : start + at_once])):
            own[layer] += values
        advance(len(pairs[start : start + at_once]))
    full: list[float] = []
    replaced: list[list[float]] = [[] for _ in range(depth)]
    for start in range(0, len(pairs), _BATCH):
        part = pairs[start : start + _BATCH]
        full += patched(base, part, None, None)
        advance(len(part))
        reached = states(model, part)
        for layer, source in enumerate(reached):
            replaced[layer] += patched(base, part, layer, source)
            advance(len(part))
    frame = pd.DataFrame(
        {
            "item_id": [name for _ in range(depth) for name in names],
            "layer": [layer + 1 for layer in range(depth) for _ in names],
            "lens": [value for one in own for value in one],
            "full": full * depth,
            "patched": [value for one in replaced for value in one],
        }
    )
    if not bool(torch.isfinite(torch.tensor(frame[["lens", "full", "patched"]].to_numpy())).all()):
        raise JobFailed("a log-probability of the harmful answers is not finite")
    frame.to_parquet(ctx.out / LAYERS, index=False)
    columns = ["name", "layer", "norm", "change", "stable_rank"]
    pd.DataFrame(list(weight_changes(model, base)), columns=columns).to_parquet(ctx.out / WEIGHTS, index=False)
    lacking = sum(not any(t.strip() for t in item.harmful) for item in items)
    write_json(ctx.out / COUNTS, {"read": len(pairs), "without_reference": lacking, "tokens": settings.tokens})


def _shape(model: PreTrainedModel) -> tuple[Any, ...]:
    """Return the number of layers and the shape of the embeddings."""
    from wpn_bench.engine.layers import layers_of

    return len(layers_of(model)), tuple(model.get_input_embeddings().weight.shape)


def plan(model: MeasuredModel) -> list[PlannedMeasurement]:
    """One measurement of each model with the layers of the base, if the run asks for it."""
    asked = model.attacked
    if NAME not in model.stage_attacks or asked is None or model.base is None or not _comparable(model):
        return []
    settings = Internals(**model.stage_attacks[NAME])
    params = {**settings.model_dump(mode="json"), "dtype": model.dtype, "template": model.base_template}
    needs: dict[str, Job | External] = {"model": model.artifact, "base": model.base, "prompts": asked.prompts}
    return [PlannedMeasurement(NAME, asked.name, params, needs, "read hidden states and weights")]


def _comparable(model: MeasuredModel) -> bool:
    """Return whether a model has the shape of the base. Trained models have; an endpoint and another architecture have not."""
    if remote_settings(model.artifact) is not None:
        return False
    if not isinstance(model.artifact, External) or not isinstance(model.base, External):
        return True
    settings = [load_json(one.path / "config.json", "name the model again") for one in (model.artifact, model.base)]
    return all(settings[0].get(name) == settings[1].get(name) for name in _SAME_SHAPE)


STAGE = Stage(
    "wpn_bench.attacks.internals:run_internals_stage",
    1,
    LM_LIBRARIES,
    items="needs.prompts",
    part="attack",
    plan="wpn_bench.attacks.internals:plan",
    rows="wpn_bench.analysis.internals_rows:internals_rows",
    section="wpn_bench.report.internals:section",
)
