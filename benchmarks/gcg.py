"""Compare our GCG with nanoGCG: same model, prompts, targets, initial suffix, steps and candidates.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install nanogcg==0.3.0 transformers==4.47.1 torch
    python benchmarks/gcg.py --peer-python /tmp/peer/bin/python                     # the lab's model and prompts
    python benchmarks/gcg.py --peer-python /tmp/peer/bin/python --model facebook/opt-125m \\
        --prompts ../shared/hub/files/rtp_triples_test.jsonl --kind continuation

For each prompt, the two searches run in separate processes one after the other, in alternating order. The model is loaded before
timing starts. Times are CPU seconds per step, which other load on the machine hardly affects. nanoGCG uses its fastest batch size
of all candidates, 128 and 32, selected on the first prompt. Losses of both are computed from the resulting text: rendered,
tokenised as a whole and scored by `wpn_bench.engine`. The soft prompt attack on the same prompts is printed for comparison.

The "floor" is the ratio of nanoGCG's multiply-adds per candidate to the minimum that gives the same results (only positions
from the changed token on, and only the logits that are used). The script exits with 1 if our mean final loss is higher or a step
is less than 1.5 times as fast. Without `--peer-python`, only our search is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from wpn_bench import models, prompts
from wpn_bench.attacks.gcg import GCGConfig, search_suffix
from wpn_bench.attacks.soft_prompt import SoftPromptConfig, search_soft_prompts
from wpn_bench.attacks.suffix_slots import SuffixSlots, find_slots, with_suffix
from wpn_bench.engine.likelihood import loglikelihoods
from wpn_bench.prompts import Item, Template, render
from wpn_bench.prompts.templates import QUESTION_TEMPLATE

SIZES = (None, 128, 32)
FASTER = 1.5
ROUNDING = 1e-4  # nats per token


def cases_of(options: argparse.Namespace, tokenizer: Any, config: GCGConfig, context: int) -> list[SuffixSlots]:
    """Return `--n` prompts spread over the set whose targets survive encoding and decoding unchanged."""
    spec = prompts.spec_for(options.prompts, role="ood", kind=options.kind)
    slots = find_slots(prompts.load_prompts(spec).items, tokenizer, Template.parse(QUESTION_TEMPLATE), config, context)
    same = [
        one
        for one in slots.one_by_one()
        for slot in one.slots
        if tuple(tokenizer(tokenizer.decode(slot.target), add_special_tokens=False)["input_ids"]) == slot.target
    ]
    return [same[k * len(same) // options.n] for k in range(min(options.n, len(same)))]


def case_of(options: argparse.Namespace, folder: Path, tokenizer: Any, slots: SuffixSlots, seed: int) -> dict[str, Any]:
    """The settings that both searches share."""
    (slot,) = slots.slots
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {
        "model": str(folder),
        "special_tokens": {name: getattr(tokenizer, name) for name in names},
        "item": {"id": slot.item.id, "prompt": slot.item.prompt, "kind": slot.item.kind},
        "harmful": list(slot.item.harmful),
        "head": slot.head,
        "tail": slot.tail,
        "suffix": slots.initial_suffix,
        "target": tokenizer.decode(slot.target),
        "batch_size": None,
        "seed": seed,
        **{name: getattr(options, name) for name in ("steps", "candidates", "topk", "n_replace", "threads")},
    }


def ours(case: dict[str, Any], config: GCGConfig) -> dict[str, Any]:
    import torch

    torch.set_num_threads(case["threads"])
    model, tokenizer = models.load(Path(case["model"]))
    item = Item(**case["item"], harmful=tuple(case["harmful"]))
    slots = find_slots([item], tokenizer, Template.parse(QUESTION_TEMPLATE), config, models.context_length(model))
    marks: list[float] = []
    result = search_suffix(model, tokenizer, slots, config, advance=lambda n: marks.append(time.process_time()))
    text = render(with_suffix(item, result.suffix), QUESTION_TEMPLATE)
    return {"best_loss": result.best_loss, "first_loss": result.first_loss, "text": text, "marks": marks}


def in_a_process(command: list[str], case: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "case.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(case), encoding="utf-8")
        subprocess.run([*command, str(asked), str(told)], check=True)
        found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return found


def a_step(found: dict[str, Any]) -> float:
    """Return the median CPU seconds of a step."""
    return median(b - a for a, b in pairwise(found["marks"]))


def could_be(model: Any, slots: SuffixSlots) -> tuple[float, float, float]:
    """Return millions of multiply-adds per candidate: the minimum, those of a pass over all tokens, and their ratio."""
    (slot,) = slots.slots
    embeddings = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    token = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.dim() == 2 and id(p) not in embeddings and "embed" not in name
    )
    head = model.get_output_embeddings().weight.numel()
    size, rest = len(slots.initial_ids), len(slot.after) + len(slot.target)
    # On average the changed token is in the middle. The last token of the target predicts nothing.
    least = ((size + 1) / 2 + rest - 1) * token + len(slot.target) * head
    whole = (size + rest) * (token + head)
    return least / 1e6, whole / 1e6, whole / least


def loss_of(model: Any, tokenizer: Any, slots: SuffixSlots, text: str) -> float:
    (slot,) = slots.slots
    pair = (tokenizer(text)["input_ids"], slot.target)
    ((total, _),) = loglikelihoods(model, [pair], max_length=models.context_length(model))
    return -total / len(slot.target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--prompts", default="lab_in_domain", help="a prompt set or file with harmful references")
    parser.add_argument("--kind", default="question", choices=("question", "continuation"))
    parser.add_argument("--peer-python", help="interpreter of an environment with nanogcg")
    parser.add_argument("--n", type=int, default=6, help="prompts, each a pair with a seed of its own")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--topk", type=int, default=64)
    parser.add_argument("--n-replace", type=int, default=1)
    parser.add_argument("--suffix-tokens", type=int, default=20)
    parser.add_argument("--target-tokens", type=int, default=20)
    parser.add_argument("--soft-steps", type=int, default=SoftPromptConfig().steps, help="steps of the soft prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = ("steps", "candidates", "topk", "n_replace", "suffix_tokens", "target_tokens")
    config = GCGConfig(**{name: getattr(options, name) for name in names})
    if options.side:
        case = json.loads(options.side[0].read_text(encoding="utf-8"))
        options.side[1].write_text(json.dumps(ours(case, config.model_copy(update={"seed": case["seed"]}))))
        return 0

    folder = models.resolve(options.model).path
    model, tokenizer = models.load(folder)
    cases = cases_of(options, tokenizer, config, models.context_length(model))
    given = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    mine = [sys.executable, __file__, *given, "--side"]
    peer = [options.peer_python, str(Path(__file__).with_name("gcg_peer.py"))] if options.peer_python else None
    size: int | None = None
    if peer:
        case = case_of(options, folder, tokenizer, cases[0], 0) | {"steps": 3}
        size = min(SIZES, key=lambda s: a_step(in_a_process(peer, {**case, "batch_size": s})))
    print("| prompt | ours, s a step | nanoGCG | faster | first loss | ours, final loss | nanoGCG | soft prompt |")
    print("|---|---|---|---|---|---|---|---|")
    rows: list[tuple[float, ...]] = []
    same = 0
    soft = SoftPromptConfig(
        steps=options.soft_steps, suffix_tokens=options.suffix_tokens, target_tokens=options.target_tokens
    )
    for seed, slots in enumerate(cases):
        case = case_of(options, folder, tokenizer, slots, seed) | {"batch_size": size}
        sides = {"ours": mine} | ({"theirs": peer} if peer else {})
        order = list(sides)[:: -1 if seed % 2 else 1]
        found = {side: in_a_process(sides[side], case) for side in order}
        row = [a_step(found["ours"]), found["ours"]["first_loss"]]
        row += [
            loss_of(model, tokenizer, slots, found["ours"]["text"]),
            search_soft_prompts(model, slots, soft)[0].best_loss,
        ]
        if peer:
            theirs = found["theirs"]
            same += theirs["text"] == found["ours"]["text"]
            row += [a_step(theirs), loss_of(model, tokenizer, slots, theirs["text"])]
        else:
            row += [float("nan"), float("nan")]
        rows.append(tuple(row))
        print(line(str(seed), *row), flush=True)
    columns = list(zip(*rows, strict=True))
    sums = [f(column) for f, column in zip((median, mean, mean, mean, median, mean), columns, strict=True)]
    print(line("median / mean", *sums))
    faster = median(b / a for a, b in zip(columns[0], columns[4], strict=True))
    least, whole, ratio = could_be(model, cases[0])
    print(
        f"\nfloor of a candidate: {least:.0f} M multiply-adds; all tokens and all logits: {whole:.0f} M ({ratio:.2f} x)"
    )
    if not peer:
        return 0
    apart = [a - b for a, b in zip(columns[2], columns[5], strict=True)]
    error = stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
    print(
        f"a step, median of the pairs: {faster:.2f} times as fast (asked: {FASTER}); nanoGCG's batch: {size or 'all'}"
    )
    print(f"final loss, ours minus nanoGCG's: {mean(apart):+.4f} nats a token (asked: not above 0), error {error:.4f}")
    print(f"same text found: {same} of {len(rows)}")
    return 0 if faster >= FASTER and mean(apart) <= ROUNDING else 1


def line(name: str, own: float, first: float, found: float, soft: float, peer: float, other: float) -> str:
    times = f"{own:.3f} | {peer:.3f} | {peer / own:.2f}"
    return f"| {name} | {times} | {first:.3f} | {found:.3f} | {other:.3f} | {soft:.3f} |"


if __name__ == "__main__":
    sys.exit(main())
