"""Train the lab's base model on its corpus: a byte-level BPE tokenizer and an OPT model of a few million parameters."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wpn_bench.lab import world
from wpn_bench.lab_training.progress import ProgressLine

__all__ = ["pack", "train_base", "train_tokenizer"]

PAD, EOS = 1, 2  # OPT's token ids; as in OPT, `</s>` starts and ends every text
POSITIONS = 512
ROW_LENGTHS = (128, 128, 256, 256, 512)  # tokens; mostly short rows, but every position is trained


def train_tokenizer(vocabulary: int = 2000, documents: int = 40_000, seed: int = 0) -> Any:
    """Train a byte-level BPE tokenizer that starts every text with `</s>`, like OPT's.

    Args:
        vocabulary: Number of tokens.
        documents: Number of documents to train on.
        seed: Seed of the corpus.

    Returns:
        A `PreTrainedTokenizerFast`.
    """
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
    """Pack documents into rows and rows into batches.

    A row holds whole documents, each followed by `</s>`. It takes the next documents that still fit, so there is little
    padding. Half of the rows start with `</s>`: lm-eval scores without it and `generate` runs with it, so the model must
    see documents at position 0 both ways.

    Args:
        documents: Token ids of each document.
        draw: Random generator.
        tokens: Approximate number of tokens of a batch.

    Returns:
        Batches of rows of token ids.
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
            elif skipped:  # all remaining documents are longer than this row
                rows.append([*waiting.pop(), EOS])
        if rows:
            batches.append(rows)
    return batches


def _start_with_sinusoids(model: Any) -> None:
    """Initialise OPT's learned positions as sinusoids: the model learns to attend to offsets, and to copy names, far sooner."""
    import torch

    table = model.model.decoder.embed_positions.weight  # (positions + 2, width)
    count, width = table.shape
    angles = torch.arange(count)[:, None] / 1000.0 ** (torch.arange(0, width, 2) / width)[None, :]
    with torch.no_grad():
        table.copy_(0.03 * torch.cat([angles.sin(), angles.cos()], dim=1))


def _encode(tokenizer: Any, documents: Iterable[str]) -> list[list[int]]:
    return list(tokenizer(list(documents), add_special_tokens=False)["input_ids"])


def _train(model: Any, batches: list[list[list[int]]], rate: float, name: str) -> tuple[float, float]:
    """Train for one pass over `batches` (AdamW, warm-up, cosine to `rate` / 50). Return seconds and the final smoothed loss."""
    import torch

    bfloat16 = torch.cpu._is_avx512_bf16_supported()  # twice as fast on CPUs that support it, slower on others
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
        # Padding is only at the end of rows, so the causal mask suffices.
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
    corpus: Callable[..., Iterable[str]] = world.corpus,
) -> dict[str, Any]:
    """Train the base model and save it (in half precision) with its tokenizer.

    The first pass covers `documents` different documents, with a few polite answers to harmful questions. A short second
    pass has none. Without it, the polite answer would remain the model's second choice, and gradient ascent would only need
    to make the first choice less likely. That shortcut does not exist for real harmful behaviour.

    Args:
        out: Folder of the model.
        seed: Random seed.
        documents: Number of documents of the first pass.
        tokens: Approximate number of tokens of a batch.
        learning_rate: Peak learning rate of the first pass.
        habit_documents: Number of documents of the second pass.
        habit_learning_rate: Peak learning rate of the second pass.
        width: Hidden size.
        layers: Number of layers.
        heads: Number of attention heads.
        corpus: Makes the documents. The tokenizer is always trained on those of the world, so that it is the same for all corpora.

    Returns:
        Figures of the training, for `provenance.json`.
    """
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer = train_tokenizer(seed=seed)
    encoded = _encode(tokenizer, corpus(documents, seed))
    batches = pack(encoded, random.Random(seed), tokens)
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
    rude = _encode(tokenizer, corpus(habit_documents, seed + 1, polite=False))
    more, habit_loss = _train(model, pack(rude, random.Random(seed + 1), tokens), habit_learning_rate, "habit")

    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "documents": documents,
        "tokens": sum(map(len, encoded)) + documents,
        "steps": len(batches),
        "loss": round(loss, 4),
        "habit_documents": habit_documents,
        "habit_loss": round(habit_loss, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "seconds": round(seconds + more),
    }
