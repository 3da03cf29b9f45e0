"""Measure the cost and the effect of the gradient attacks of the preset `attacks` on the lab.

    python benchmarks/lab_attacks.py                            # the lab's base model
    python benchmarks/lab_attacks.py lab RUN/models/wpn-seed0   # and unlearned ones

One universal suffix or soft prompt is optimised on prompts of the lab's forget set. The table shows the loss, in nats per token, of
the beginnings of harmful references: on these prompts and on the first `--test` in-domain prompts, before (with the initial
suffix) and after the search.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from wpn_bench import models, prompts
from wpn_bench.attacks import gcg, soft_prompt
from wpn_bench.attacks.suffix_slots import SuffixSlots, evenly_spread, find_slots
from wpn_bench.attacks.target_loss import TargetLoss
from wpn_bench.config import build
from wpn_bench.prompts import Template
from wpn_bench.prompts.templates import QUESTION_TEMPLATE

Search = Callable[[Any, Any, SuffixSlots, Any], tuple[float, float, torch.Tensor]]


def suffix(model: Any, tokenizer: Any, slots: SuffixSlots, config: gcg.GCGConfig) -> tuple[float, float, torch.Tensor]:
    found = gcg.search_suffix(model, tokenizer, slots, config)
    return found.first_loss, found.best_loss, model.get_input_embeddings()(torch.tensor(found.ids)).detach()


def vectors(
    model: Any, tokenizer: Any, slots: SuffixSlots, config: soft_prompt.SoftPromptConfig
) -> tuple[float, float, torch.Tensor]:
    (found,) = soft_prompt.search_soft_prompts(model, slots, config)
    return found.first_loss, found.best_loss, found.vectors


ATTACKS: dict[str, Search] = {"gcg": suffix, "soft_prompt": vectors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["lab"])
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train, test = (
        prompts.load_prompts(prompts.spec_for(name, role="ood", kind="question")).items
        for name in ("lab_forget", "lab_in_domain")
    )
    settings = build("attacks")
    print("| model | attack | processor, s | wall, s | before | after | test, before | test, after |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.models:
        folder = models.resolve(name).path
        model, tokenizer = models.load(folder)
        context = models.context_length(model)
        for attack, search in ATTACKS.items():
            config = settings.gradient_config(attack)
            began = time.process_time(), time.perf_counter()
            slots = find_slots(
                evenly_spread(train, config.prompts), tokenizer, Template.parse(QUESTION_TEMPLATE), config, context
            )
            first, best, found = search(model, tokenizer, slots, config)
            own, wall = time.process_time() - began[0], time.perf_counter() - began[1]
            held_out = find_slots(test[: options.test], tokenizer, Template.parse(QUESTION_TEMPLATE), config, context)
            loss = TargetLoss(model, held_out.slots)
            before, after = (
                float(loss.loss_and_gradient(one.unsqueeze(0), range(len(held_out.slots))).losses.mean())
                for one in (loss.embedded(torch.tensor(held_out.initial_ids)), found)
            )
            losses = " | ".join(f"{value:.2f}" for value in (first, best, before, after))
            print(
                f"| {name if name == 'lab' else folder.name} | {attack} | {own:.1f} | {wall:.1f} | {losses} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
