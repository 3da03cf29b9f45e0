"""Compare the log-likelihoods of our `wpn-hf` and lm-eval's `hf`: speed and values, on the same requests in one process.

    python benchmarks/scoring.py                                               # the lab's nine, the lab's base model
    python benchmarks/scoring.py --model facebook/opt-125m --tasks wpn_nine --limit 200
    python benchmarks/scoring.py --shape facebook/opt-125m --tasks wpn_nine --limit 40    # its published shape, random weights

lm-eval uses its fastest batch size of 1, 8, 16, 32 and 64, selected on a part of the requests of each task. Times are medians of
`--pairs` pairs and include tokenisation.

The floor is the minimum number of multiply-adds for these values (each distinct prefix once, and only the logits that are used).
"possible" is the ratio of lm-eval's multiply-adds to the minimum, the largest possible speedup; "share" is the achieved fraction.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import sys
from pathlib import Path
from typing import Any

from side_by_side import paired, seconds

from wpn_bench import models
from wpn_bench.benchmarks.definitions import task_folders
from wpn_bench.benchmarks.loading import load_configured, permitted_definition, quiet_lm_eval
from wpn_bench.benchmarks.selection import select
from wpn_bench.engine.tree import trees

LAB = (
    "lab_lambada,lab_hellaswag,lab_winogrande,lab_copa,lab_arc_easy,lab_arc_challenge,lab_piqa,lab_mathqa,lab_pubmedqa"
)
SIZES = (1, 8, 16, 32, 64)
# The published shapes, without weights.
SHAPES = {
    "facebook/opt-125m": (768, 12, 12),
    "facebook/opt-1.3b": (2048, 24, 32),
    "facebook/opt-2.7b": (2560, 32, 32),
}


def random_shape(name: str, dtype: str, device: str) -> Any:
    """Return an OPT model of a published shape with random weights."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    width, layers, heads = SHAPES[name]
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=50_272,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
    )
    return OPTForCausalLM(config).to(device, getattr(torch, dtype)).eval()


def asked(task: str, folders: list[Path], limit: int | None) -> Any:
    """Return the task with its requests (`.instances`)."""
    definition = permitted_definition(task, folders)
    with quiet_lm_eval():
        loaded = load_configured(definition, folders, None)
        loaded.set_config(key="num_fewshot", value=0)
        loaded.build_all_requests(limit=limit, rank=0, world_size=1)
    return loaded


class Cost:
    """Multiply-adds of a forward pass, computed from the model's shape."""

    def __init__(self, model: Any) -> None:
        self.head = model.get_output_embeddings().weight.numel()
        inner = sum(
            p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "lm_head" not in n
        )
        self.token = inner
        self.pair = (
            2 * model.config.hidden_size * model.config.num_hidden_layers
        )  # attention scores and values of one pair of positions

    def of(self, tokens: float, pairs: float, logits: float) -> float:
        return tokens * self.token + pairs * self.pair + logits * self.head


def floor_and_theirs(
    cost: Cost, encoded: list[tuple[list[int], list[int]]], size: int, max_length: int
) -> tuple[float, float]:
    inputs: dict[tuple[int, ...], int] = {}
    for context, continuation in encoded:
        tokens = tuple([*context, *continuation][-(max_length + 1) :][:-1])
        inputs[tokens] = max(inputs.get(tokens, 0), len(continuation))
    sequences = list(inputs)
    (*forest,) = trees(sequences, 1 << 30, 1 << 30)
    read = sum(
        len({int(n) for k, path in tree.paths.items() for n in path[-inputs[sequences[k]] :]}) for tree in forest
    )
    pairs = sum(p + 1 for tree in forest for p in tree.positions)
    least = cost.of(sum(map(len, forest)), pairs, read)
    # lm-eval: one row per distinct input, longest first, with logits at every position.
    lengths = sorted(map(len, sequences), reverse=True)
    theirs = 0.0
    for at in range(0, len(lengths), size):
        part = lengths[at : at + size]
        cells = len(part) * part[0]
        theirs += cost.of(cells, cells * (part[0] + 1) / 2, cells)
    return least, theirs


def fastest(lm: Any, requests: list[Any]) -> float:
    """Return the seconds of the faster of two runs."""
    return min(seconds(lambda: lm.loglikelihood(requests, disable_tqdm=True))[0] for _ in range(2))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument(
        "--shape", choices=SHAPES, help="random weights of this shape, with the tokenizer of the same name"
    )
    parser.add_argument("--tasks", default=LAB)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, help="lm-eval's batch size, instead of the fastest")
    parser.add_argument(
        "--part", type=int, default=64, help="requests for the selection of the batch size, at least a tenth of all"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()

    from lm_eval.models.huggingface import HFLM

    from wpn_bench.benchmarks.language_model import WpnHF

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer = models.load(models.resolve(options.shape or options.model).path, options.device, options.dtype)
    if options.shape:
        model = random_shape(options.shape, options.dtype, options.device)
    cost = Cost(model)
    folders = [Path(f) for f in task_folders(("benchmarks", "lab"))]
    print(
        "| task | requests | lm-eval `hf`, s (batch) | engine, s | speedup | possible | share | max difference | same choices, scores |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    ratios, equal = [], True
    for task in select(options.tasks.split(","), folders).tasks:
        loaded = asked(task, folders, options.limit)
        requests = list(loaded.instances)

        def lm(kind: type, size: int) -> Any:
            return kind(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=size)

        part = requests[: max(options.part, len(requests) // 10)]
        size = options.batch_size or min(SIZES, key=lambda s: fastest(lm(HFLM, s), part))
        theirs, ours = lm(HFLM, size), lm(WpnHF, size)
        own, other, faster, mine, plain = paired(
            lambda lm=ours, asked=requests: lm.loglikelihood(asked, disable_tqdm=True),
            lambda lm=theirs, asked=requests: lm.loglikelihood(asked, disable_tqdm=True),
            options.pairs,
        )
        encoded = [
            ours._encode_pair(*r.args) if r.args[0] else ([ours.prefix_token_id], ours.tok_encode(r.args[1]))
            for r in requests
        ]
        least, spent = floor_and_theirs(cost, encoded, size, ours.max_length)
        apart = max(abs(a[0] - b[0]) for a, b in zip(mine, plain, strict=True))
        same = choices(requests, mine) == choices(requests, plain)
        same &= scores(loaded, mine) == scores(loaded, plain)
        equal &= same and apart <= 1e-3
        ratios.append(faster)
        print(
            f"| {task} | {len(requests)} | {other:.2f} ({size}) | {own:.2f} |"
            f" {faster:.2f} | {spent / least:.2f} | {faster / (spent / least):.0%} | {apart:.1e} | {'yes' if same else 'NO'} |",
            flush=True,
        )
    print(f"\ngeometric mean: {math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f} times as fast")
    return 0 if equal else 1


def choices(requests: list[Any], answers: list[tuple[float, bool]]) -> list[tuple[int, int | bool]]:
    """Return the most likely choice of each document; for a single continuation, whether greedy decoding generates it."""
    of: dict[int, list[tuple[float, bool]]] = {}
    for request, answer in zip(requests, answers, strict=True):
        of.setdefault(request.doc_id, []).append(answer)
    return [
        (doc, one[0][1] if len(one) == 1 else max(range(len(one)), key=lambda i: one[i][0])) for doc, one in of.items()
    ]


def scores(task: Any, answers: list[tuple[float, bool]]) -> list[dict[str, Any]]:
    """Return lm-eval's metrics of each document, except perplexities, which only repeat the log-likelihoods."""
    of: dict[int, list[tuple[Any, tuple[float, bool]]]] = {}
    for request, answer in zip(task.instances, answers, strict=True):
        of.setdefault(request.doc_id, []).append((request.doc, answer))
    rows = []
    for found in of.values():
        measured = task.process_results(found[0][0], [answer for _, answer in found])
        rows.append({name: value for name, value in measured.items() if not name.endswith("perplexity")})
    return rows


if __name__ == "__main__":
    sys.exit(main())
