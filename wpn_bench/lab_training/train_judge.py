"""Train the lab's judge: a small BERT with six labels on real comments, saved in Detoxify's checkpoint format.

The file of comments has one JSON object per line, with `text` and the six labels below. A label is a number from 0 to 1, or
null (unknown, masked in the loss). The file may be gzipped. No text of the lab is used for training, so the judge has to
generalise from real comments to the lab's insults.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError
from wpn_bench.lab_training.progress import ProgressLine

__all__ = ["LABELS", "read_comments", "split", "train_judge"]

LABELS = ("toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack")
VOCABULARY = 8000
HELD_OUT = 4000
LABEL_WEIGHTS = (3.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # the harmless rate depends on toxicity only


def read_comments(path: Path) -> list[dict[str, Any]]:
    """Read a .jsonl or .jsonl.gz file of labelled comments.

    Raises:
        UserError: The file is missing, has an invalid line, or is too small for a held-out part.
    """
    if not path.is_file():
        raise UserError(
            f"there is no file of labelled comments at {path}", "give one with --comments FILE (.jsonl or .jsonl.gz)"
        )
    opener = gzip.open if path.suffix == ".gz" else open
    rows = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                rows.append({"text": str(row["text"]), **{k: row.get(k) for k in LABELS}})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"line {number} of {path} is not a labelled comment ({error})",
                    "each line needs `text` and the labels " + ", ".join(LABELS),
                ) from error
    if len(rows) < 3 * HELD_OUT:
        raise UserError(f"{path} has only {len(rows)} comments", f"at least {3 * HELD_OUT} are needed")
    return rows


def split(rows: list[dict[str, Any]], draw: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split comments into a held-out and a training part.

    Args:
        rows: All comments, which are shuffled in place.
        draw: Random generator; the same seed gives the same split.

    Returns:
        The held-out comments and the training comments.
    """
    draw.shuffle(rows)
    return rows[:HELD_OUT], rows[HELD_OUT:]


def _train_tokenizer(texts: list[str]) -> Any:
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    raw = BertWordPieceTokenizer(lowercase=True)
    raw.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, limit_alphabet=200, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw._tokenizer,
        model_max_length=512,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        do_lower_case=True,
    )


def _batches(lengths: list[int], size: int, shuffle: random.Random | None) -> list[list[int]]:
    """Return batches of indices with similar lengths (sorted within pools of 50 batches)."""
    order = list(range(len(lengths)))
    if shuffle:
        shuffle.shuffle(order)
    pool = size * 50
    batches = []
    for start in range(0, len(order), pool):
        part = sorted(order[start : start + pool], key=lengths.__getitem__)
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    if shuffle:
        shuffle.shuffle(batches)
    return batches


def auc(scores: list[float], labels: list[int]) -> float:
    """Compute the area under the ROC curve from ranks; ties get their mean rank.

    Args:
        scores: Score of each item.
        labels: 1 for positives, 0 for negatives.

    Returns:
        The area, from 0 to 1; NaN if a class is empty.
    """
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    positives = sum(labels)
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    total = sum(rank for rank, label in zip(ranks, labels, strict=True) if label)
    return float((total - positives * (positives + 1) / 2) / (positives * negatives))


def train_judge(
    comments: Path,
    out: Path,
    *,
    seed: int = 0,
    epochs: int = 4,
    batch: int = 64,
    learning_rate: float = 6e-4,
    max_tokens: int = 160,
) -> dict[str, Any]:
    """Train the judge and save `judge.ckpt`, `config.json` and the tokenizer.

    Args:
        comments: File of labelled comments.
        out: Folder of the judge.
        seed: Random seed.
        epochs: Number of passes over the comments.
        batch: Number of comments per batch.
        learning_rate: Peak learning rate.
        max_tokens: Longer comments are truncated.

    Returns:
        Figures of the training, for `provenance.json`; the areas under the ROC curve are those of the held-out comments.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    draw = random.Random(seed)
    held, train = split(read_comments(comments), draw)
    tokenizer = _train_tokenizer([r["text"] for r in train])
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=512,
        num_labels=len(LABELS),
        pad_token_id=0,
    )
    config.architectures = ["BertForSequenceClassification"]
    model = BertForSequenceClassification(config)

    def encode(part: list[dict[str, Any]]) -> list[list[int]]:
        return tokenizer([r["text"] for r in part], truncation=True, max_length=max_tokens)["input_ids"]

    def tensors(ids: list[list[int]], index: list[int]) -> tuple[Any, Any]:
        width = max(len(ids[i]) for i in index)
        padded = torch.zeros(len(index), width, dtype=torch.long)
        for row, i in enumerate(index):
            padded[row, : len(ids[i])] = torch.tensor(ids[i])
        return padded, (padded != 0).long()

    ids = encode(train)
    lengths = [len(x) for x in ids]
    targets = torch.tensor([[float("nan") if r[k] is None else float(r[k]) for k in LABELS] for r in train])
    weights = torch.tensor(LABEL_WEIGHTS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    steps = epochs * math.ceil(len(train) / batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / (0.06 * steps), (steps - s) / (0.94 * steps))
    )
    line = ProgressLine("judge", steps)
    model.train()
    step, smooth = 0, 0.0
    for _ in range(epochs):
        for index in _batches(lengths, batch, draw):
            inputs, mask = tensors(ids, index)
            logits = model(input_ids=inputs, attention_mask=mask).logits
            target = targets[index]
            known = ~target.isnan() * weights
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.nan_to_num(), reduction="none")
            loss = (losses * known).sum() / known.sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            smooth = loss.item() if step == 1 else 0.98 * smooth + 0.02 * loss.item()
            line.update(step, loss=smooth)

    model.half().float().eval()  # round to the precision of the saved weights before measuring
    held_ids = encode(held)
    scores = torch.zeros(len(held), len(LABELS))
    with torch.no_grad():
        for index in _batches([len(x) for x in held_ids], 128, None):
            inputs, mask = tensors(held_ids, index)
            scores[index] = torch.sigmoid(model(input_ids=inputs, attention_mask=mask).logits)
    areas = {}
    for column, name in enumerate(LABELS):
        known_rows = [i for i, r in enumerate(held) if r[name] is not None]
        areas[name] = round(
            auc([float(scores[i, column]) for i in known_rows], [int(held[i][name] >= 0.5) for i in known_rows]), 4
        )

    out.mkdir(parents=True, exist_ok=True)
    config.dtype = "float16"
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    arguments = {
        "model_type": "judge",
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "AutoTokenizer",
        "num_classes": len(LABELS),
    }
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    torch.save(
        {"config": {"arch": {"args": arguments}, "dataset": {"args": {"classes": list(LABELS)}}}, "state_dict": state},
        out / "judge.ckpt",
    )
    return {
        "comments": len(train),
        "held_out": len(held),
        "epochs": epochs,
        "loss": round(smooth, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "auc": areas,
        "seconds": round(line.seconds),
    }
