"""Losses against the values that their published code gives for the same logits, to 1e-6.

The authors' functions were run once, from their own repositories, on the tensors that `fixed` makes. Only the values are
kept here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wpn_bench.unlearn.batches import Batch, Rows
from wpn_bench.unlearn.methods import METHODS

VOCABULARY, WIDTH = 11, 8

# Repositories and commits.
OPEN_UNLEARNING = "locuslab/open-unlearning d3d7cf9, src/trainer/"
CLOSER_LOOK = "sail-sg/closer-look-LLM-unlearning b622294, trainer/losses.py: "
ALTPO = "molereddy/Alternate-Preference-Optimization c9b78bd, dataloader.py: "
UNLIKELIHOOD = "facebookresearch/unlikelihood_training 9444655, custom/candidate_penalty_ce_loss.py: "
FLAT = "UCSC-REAL/FLAT bf2ef07, dataloader.py: "


def model_of(embedding: torch.Tensor, head: torch.Tensor) -> Any:
    """A model whose logits depend on the last token alone: embedding[token] @ head.T."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(head)
    model.model.norm = torch.nn.Identity()  # Llama's own computes in float32
    return model


@dataclass
class Fixed:
    """A model, a reference, and token ids."""

    model: Any
    reference: Any
    ids: dict[str, torch.Tensor]

    def batch(self, start: int, rows: slice = slice(None)) -> Batch:
        """A batch whose responses begin at the token `start`."""

        def of(name: str, start: int, rows: slice = slice(None)) -> Rows:
            ids = self.ids[name][rows]
            ones = torch.ones_like(ids)
            return Rows(ids, ones, (ones.cumsum(1) > start).long(), torch.arange(len(ids)))

        return Batch(of("harmless", start, rows), of("harmful", start, rows), of("retain", 0))


@pytest.fixture(scope="module")
def fixed() -> Fixed:
    rng = torch.Generator().manual_seed(0)
    embedding, head, other = (torch.randn(VOCABULARY, WIDTH, generator=rng, dtype=torch.float64) for _ in range(3))
    embedding = embedding / embedding.pow(2).mean(1, keepdim=True).sqrt()
    shapes = {"harmless": (3, 6), "harmful": (3, 6), "retain": (2, 5)}
    ids = {name: torch.randint(0, VOCABULARY, shape, generator=rng) for name, shape in shapes.items()}
    models = [model_of(embedding, one) for one in (head, other)]
    logits = models[0](input_ids=ids["harmful"]).logits
    torch.testing.assert_close(logits, (embedding @ head.T)[ids["harmful"]])
    return Fixed(*models, ids)


PDU = {"bound": 0.5, "alpha": 1.0, "dual_step": 1.0, "dual_warmup": 0.0}
# Method, options, where the response begins, the published value, and the function that gives it.
PUBLISHED: list[tuple[str, dict[str, Any], int, float, str]] = [
    ("wga", {}, 1, 5.964336535528, OPEN_UNLEARNING + "utils.py: compute_wga_loss, and the loss of the retain rows"),
    ("wga", {}, 3, 5.950212921504, OPEN_UNLEARNING + "utils.py: compute_wga_loss"),
    ("wga", {"beta": 2.0}, 1, 6.087859421391, OPEN_UNLEARNING + "utils.py: compute_wga_loss"),
    ("satimp", {}, 1, 6.108554233924, OPEN_UNLEARNING + "utils.py: compute_satimp_loss, and the retain rows"),
    ("satimp", {}, 3, 6.108549663030, OPEN_UNLEARNING + "utils.py: compute_satimp_loss"),
    ("altpo", {}, 1, 43.017893237180, ALTPO + "CustomTrainerForgetting.compute_loss, dpo"),
    ("altpo", {}, 3, 34.627100486736, ALTPO + "CustomTrainerForgetting.compute_loss, dpo"),
    # Open-unlearning averages over prompts, too. These rows have prompts of one token.
    ("undial", {}, 1, 5.109413987883, OPEN_UNLEARNING + "utils.py: compute_undial_loss"),
    ("undial", {"beta": 1.0}, 1, 5.116513247246, OPEN_UNLEARNING + "utils.py: compute_undial_loss"),
    ("ceu", {}, 1, 1.456863284904, OPEN_UNLEARNING + "unlearn/ceu.py: compute_batch_ceu"),
    ("ceu", {"skip": 0}, 1, 1.323108602449, OPEN_UNLEARNING + "unlearn/ceu.py: compute_batch_ceu"),
    ("ceu", {}, 3, 1.419404215161, OPEN_UNLEARNING + "unlearn/ceu.py: compute_batch_ceu"),
    ("ceu", {"skip": 0}, 3, 1.431984511334, OPEN_UNLEARNING + "unlearn/ceu.py: compute_batch_ceu"),
    ("max_entropy", {"variant": "released"}, 1, 6.317080872728, CLOSER_LOOK + "get_me_loss, and the retain rows"),
    ("max_entropy", {"variant": "released", "tokens": "response"}, 3, 6.291719903873, CLOSER_LOOK + "get_me_loss"),
    # Each token was the only candidate of a place with its logits, and the terms were averaged.
    ("log1mp", {"alpha": 0.0}, 1, 0.081980504693, UNLIKELIHOOD + "CandidatePenaltyCrossEntropyCriterion.forward"),
    ("log1mp", {"alpha": 0.0}, 3, 0.089414690806, UNLIKELIHOOD + "CandidatePenaltyCrossEntropyCriterion.forward"),
    # PDU's code takes logits at the labels. Its labels were such that these are the logits before the response.
    ("pdu", PDU, 1, 19.916293546463, OPEN_UNLEARNING + "unlearn/pdu.py: PDU.compute_loss"),
    # FLAT's code makes one loss of a whole padded batch. Here its mean over three batches of one row each.
    ("flat", {}, 1, 0.013393553682, FLAT + "CustomTrainerForgetting.compute_loss, cl"),
    ("flat", {"divergence": "jensen_shannon"}, 1, 0.014846577609, FLAT + "get_contrastive_loss, Jenson-Shannon"),
    ("flat", {"divergence": "pearson"}, 1, 0.028746896706, FLAT + "get_contrastive_loss, Pearson"),
    ("flat", {"divergence": "kl"}, 1, 0.349295300538, FLAT + "get_contrastive_loss, KL"),
]


@pytest.mark.parametrize(("name", "options", "start", "value", "source"), PUBLISHED)
def test_a_loss_is_that_of_its_published_code(
    fixed: Fixed, name: str, options: dict[str, Any], start: int, value: float, source: str
) -> None:
    kind = METHODS.get(name)
    found = kind(kind.Config(**options)).loss(fixed.model, fixed.batch(start), fixed.reference).total
    assert float(found.detach()) == pytest.approx(value, abs=1e-6), source


def test_the_second_loss_of_pdu_is_that_of_its_published_code(fixed: Fixed) -> None:
    """The same batch again, after the first has moved the dual variable."""
    method = METHODS.get("pdu")(METHODS.get("pdu").Config(**PDU))
    first = method.loss(fixed.model, fixed.batch(1), None)
    method.follow([first.parts])
    second = method.loss(fixed.model, fixed.batch(1), None)
    assert float(second.total.detach()) == pytest.approx(51.372388324414, abs=1e-6)
    method.follow([])
    again = method.loss(fixed.model, fixed.batch(1), None)
    assert torch.equal(again.total, first.total)


def test_the_dual_variable_of_pdu() -> None:
    """It rises while the retain loss is above its bound, falls below it, and is never negative. At first it is constant."""
    config = METHODS.get("pdu").Config(steps=8, alpha=3.0, dual_step=2.0, dual_warmup=0.25)  # type: ignore[call-arg]
    method: Any = METHODS.get("pdu")(config)
    seen = []
    for losses in ([], [2.0], [2.0, 9.0], [2.0, 9.0, 3.2], [2.0, 9.0, 3.2, 1.2], [2.0, 9.0, 3.2, 1.2, 0.0]):
        method.follow([{"retain_loss": value} for value in losses])
        seen.append((method.bound, method.dual))
    bound = pytest.approx(2.2)
    assert seen == [
        (None, 3.0),
        (bound, 3.0),
        (bound, 3.0),
        (bound, pytest.approx(5.0)),
        (bound, pytest.approx(3.0)),
        (bound, 0.0),
    ]
