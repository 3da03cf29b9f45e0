"""Time sampled answers against `transformers.generate(num_return_sequences=...)` at its best batch.

    python benchmarks/leak_speed.py --model HuggingFaceTB/SmolLM2-135M-Instruct                  # 100 prompts x 128 samples
    python benchmarks/leak_speed.py --model HuggingFaceTB/SmolLM2-135M-Instruct --n 4 --samples 64 --repeats 1

Both sides have the model in memory and sample at temperature 1 from all tokens, up to `--new-tokens`. `generate` gets as many prompts at once
as are fastest on the first prompts (of `--sizes`), sorted by length. The samples differ, because the random numbers do; so the table also
has the new tokens of both sides. Times are medians of alternating runs. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from typing import Any

from side_by_side import paired, seconds

from wpn_bench import models, prompts
from wpn_bench.engine.generation import Decoding, generate
from wpn_bench.prompts import PromptSet
from wpn_bench.prompts.templates import choose_template


def by_generate(model: Any, tokenizer: Any, inputs: list[str], size: int, options: argparse.Namespace) -> int:
    """Sample with transformers, and return the number of new tokens.

    Args:
        model: The model.
        tokenizer: Its tokenizer, which pads on the left.
        inputs: Rendered prompts, sorted by length.
        size: Number of prompts at once.
        options: The command line.

    Returns:
        The number of new tokens up to the end of each answer.
    """
    import torch

    told = 0
    for at in range(0, len(inputs), size):
        batch = tokenizer(inputs[at : at + size], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(
                **batch.to(model.device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=options.samples,
                max_new_tokens=options.new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = out[:, batch["input_ids"].shape[1] :]
        ended = (new == tokenizer.eos_token_id).cumsum(1) > 0
        told += int((~ended).sum())
    return told


def prompts_of(options: argparse.Namespace) -> PromptSet:
    return prompts.load_prompts(prompts.spec_for(options.set, role="ood", kind="question")).head(options.n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="lab")
    parser.add_argument("--set", default="lab_in_domain")
    parser.add_argument("--n", type=int, default=100, help="number of prompts")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--sizes", default="1,2,4", help="numbers of prompts at once that generate tries")
    parser.add_argument("--part", type=int, default=4, help="number of prompts on which the sizes are tried")
    parser.add_argument("--rows", type=int, default=128, help="rows that our engine decodes at the same time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    folder = models.resolve(options.model).path
    model, tokenizer = models.load(folder, models.pick_device(options.device), "float32")
    tokenizer.padding_side = "left"
    template = choose_template("auto", tokenizer)
    inputs = [template.render(item) for item in prompts_of(options).items]
    inputs.sort(key=lambda text: len(tokenizer(str(text))["input_ids"]))
    sizes = [int(size) for size in options.sizes.split(",")]
    part = inputs[: options.part]
    by_generate(model, tokenizer, part[:1], 1, options)  # untimed
    tried = {size: seconds(lambda size=size: by_generate(model, tokenizer, part, size, options))[0] for size in sizes}
    best = min(tried, key=lambda size: tried[size]) if len(sizes) > 1 else sizes[0]
    decoding = Decoding(
        max_new_tokens=options.new_tokens, stop=(), batch_size=options.rows, temperature=1.0, independent=True
    )
    repeated = [text for text in inputs for _ in range(options.samples)]
    ours, theirs, ratio, own, other = paired(
        lambda: sum(one.n_tokens for one in generate(model, tokenizer, repeated, decoding)),
        lambda: by_generate(model, tokenizer, inputs, best, options),
        options.repeats,
    )
    print(
        f"{len(inputs)} prompts x {options.samples} samples of up to {options.new_tokens} tokens, {options.repeats} runs"
    )
    print("| | seconds | new tokens | tokens a second |\n|---|---|---|---|")
    print(f"| wpn-bench, {options.rows} rows | {ours:.1f} | {own:,} | {own / ours:.0f} |")
    print(f"| generate, {best} prompts at once | {theirs:.1f} | {other:,} | {other / theirs:.0f} |")
    print(f"| ratio | {ratio:.2f} | {own / max(1, other):.2f} | {(own / ours) / (other / theirs):.2f} |")


if __name__ == "__main__":
    main()
