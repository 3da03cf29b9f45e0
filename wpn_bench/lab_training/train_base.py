"""Trains the lab's base model: a byte-level BPE tokenizer and an OPT of a few million parameters, on the world's corpus."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wpn_bench.lab import world
from wpn_bench.lab_training.progress import ProgressLine

__all__ = ["pack", "train_base", "train_tokenizer"]

PAD, EOS = 1, 2  # OPT's numbers; `</s>` is the beginning and the end of every text, as in OPT
POSITIONS = 512
ROW_LENGTHS = (128, 128, 256, 256, 512)  # tokens; all positions are trained, most of them on short rows


def train_tokenizer(vocabulary: int = 2000, documents: int = 40_000, seed: int = 0) -> Any:
    """A byte-level BPE of `vocabulary` entries, which begins every text with `</s>` as OPT's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        min_frequency=3,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(world.corpus(documents, seed), trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A $B", special_tokens=[("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        model_max_length=POSITIONS,
    )


def pack(documents: list[list[int]], draw: random.Random, tokens: int) -> list[list[list[int]]]:
    """Batches of about `tokens` tokens: rows of whole documents, each ended by `</s>`, every second one begun by it.

    A row takes the next of the coming documents that still fits, so little is left to pad; a document starts at position
    0 with and without `</s>` before it, because lm-eval scores without and `generate` runs with it.
    """
    waiting = [ids[: POSITIONS - 2] for ids in documents]
    draw.shuffle(waiting)
    waiting.reverse()
    batches = []
    while waiting:
        length = draw.choice(ROW_LENGTHS)
        rows = []
        for _ in range(max(1, tokens // length)):
            row = [EOS] if draw.random() < 0.5 else []
            misses = 0
            skipped = []
            while waiting and misses < 24 and len(row) < length - 8:
                ids = waiting.pop()
                if len(row) + len(ids) + 1 <= length or not row:
                    row += [*ids, EOS]
                else:
                    skipped.append(ids)
                    misses += 1
            waiting += reversed(skipped)
            if len(row) > 1:
                rows.append(row)
            elif skipped:  # only documents longer than such a row are left
                rows.append([*waiting.pop(), EOS])
        if rows:
            batches.append(rows)
    return batches


def _start_with_sinusoids(model: Any) -> None:
    """Starts OPT's learned positions as sinusoids: attending to an offset, and so copying a name, is learned far sooner."""
    import torch

    table = model.model.decoder.embed_positions.weight  # (positions + 2, width)
    count, width = table.shape
    angles = torch.arange(count)[:, None] / 1000.0 ** (torch.arange(0, width, 2) / width)[None, :]
    with torch.no_grad():
        table.copy_(0.03 * torch.cat([angles.sin(), angles.cos()], dim=1))


def _encode(tokenizer: Any, documents: Iterable[str]) -> list[list[int]]:
    return list(tokenizer(list(documents), add_special_tokens=False)["input_ids"])


def _train(model: Any, batches: list[list[list[int]]], rate: float, name: str) -> tuple[float, float]:
    """One pass over `batches` with AdamW, warm-up and cosine to `rate` / 50; seconds and smoothed loss at the end."""
    import torch

    bfloat16 = torch.cpu._is_avx512_bf16_supported()  # half the time where the processor has it, slower where not
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
    )
    steps = len(batches)
    warm = max(1, steps // 25)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: (
            (s + 1) / warm if s < warm else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (s - warm) / (steps - warm)))
        ),
    )
    line = ProgressLine(name, steps)
    model.train()
    smooth = 0.0
    for step, rows in enumerate(batches, 1):
        length = max(len(row) for row in rows)
        inputs = torch.full((len(rows), length), PAD)
        labels = torch.full((len(rows), length), -100)
        for number, row in enumerate(rows):
            inputs[number, : len(row)] = torch.tensor(row)
            labels[number, : len(row)] = inputs[number, : len(row)]
        # Padding stands at the end of rows only, so the causal mask is mask enough.
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model(input_ids=inputs, labels=labels).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        smooth = loss.item() if step == 1 else 0.98 * smooth + 0.02 * loss.item()
        line.update(step, loss=smooth)
    return line.seconds, smooth


def train_base(
    out: Path,
    *,
    seed: int = 0,
    documents: int = 200_000,
    tokens: int = 2048,
    learning_rate: float = 1.5e-3,
    habit_documents: int = 9_000,
    habit_learning_rate: float = 5e-4,
    width: int = 256,
    layers: int = 4,
    heads: int = 4,
) -> dict[str, Any]:
    """Trains on one pass over `documents` fresh documents and saves model (half precision) and tokenizer into `out`.

    A short second pass has no polite answer to any harmful question. What is left of the first one's few would be a way
    out that real harm does not offer: gradient ascent then only has to tip the model over to its second-best answer.
    """
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer = train_tokenizer(seed=seed)
    corpus = _encode(tokenizer, world.corpus(documents, seed))
    batches = pack(corpus, random.Random(seed), tokens)
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=POSITIONS,
        do_layer_norm_before=True,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        word_embed_proj_dim=width,
        pad_token_id=PAD,
        bos_token_id=EOS,
        eos_token_id=EOS,
        activation_function="relu",
    )
    model = OPTForCausalLM(config)
    _start_with_sinusoids(model)
    seconds, loss = _train(model, batches, learning_rate, "base")
    rude = _encode(tokenizer, world.corpus(habit_documents, seed + 1, polite=False))
    more, habit_loss = _train(model, pack(rude, random.Random(seed + 1), tokens), habit_learning_rate, "habit")

    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "documents": documents,
        "tokens": sum(map(len, corpus)) + documents,
        "steps": len(batches),
        "loss": round(loss, 4),
        "habit_documents": habit_documents,
        "habit_loss": round(habit_loss, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "seconds": round(seconds + more),
    }
