"""Time one step of decoding by the number of rows and of tokens per row: what speculative decoding could gain.

    python benchmarks/decoding_step.py --model FOLDER

A step with T tokens per row checks T - 1 drafted tokens of each row. If all of them are right, it gives T tokens. So the largest
possible gain of drafts is T times the time of a step with one token, divided by the time of a step with T tokens. Both include the
attention to `--context` earlier tokens and the greedy choice of every token. Prints a Markdown table.
"""

from __future__ import annotations

import argparse

import torch
from side_by_side import seconds

from wpn_bench import models
from wpn_bench.engine.cache import new_cache
from wpn_bench.engine.greedy import GreedyHead
from wpn_bench.engine.head import head_input


def main() -> None:
    """Print one row for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--rows", default="8,32,128,256")
    parser.add_argument("--tokens", type=int, default=4, help="tokens per row in a step that checks drafts")
    parser.add_argument("--context", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model, _ = models.load(models.resolve(options.model).path, "cpu", "float32")
    greedy = GreedyHead.of(model)

    @torch.inference_mode()
    def step(rows: int, tokens: int) -> float:
        """Return the shortest time of a step, in seconds."""
        cache, width = new_cache(), options.context
        model.model(input_ids=torch.randint(9, 999, (rows, width)), past_key_values=cache, use_cache=True)
        ids = torch.randint(9, 999, (rows, tokens))

        def work() -> None:
            with head_input(model) as inputs:
                model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=tokens)
            flat = inputs[0].flatten(0, 1)
            _ = model.get_output_embeddings()(flat).argmax(-1) if greedy is None else greedy(flat)

        times = []
        for _ in range(options.repeats + 1):
            times.append(seconds(work)[0])
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[:, :, :width], layer.values[:, :, :width]
        return min(times[1:])

    print(f"| rows | 1 token, ms | {options.tokens} tokens, ms | largest gain |\n| ---: | ---: | ---: | ---: |")
    for rows in map(int, options.rows.split(",")):
        one, several = step(rows, 1), step(rows, options.tokens)
        print(f"| {rows} | {1e3 * one:.0f} | {1e3 * several:.0f} | {options.tokens * one / several:.2f} |", flush=True)


if __name__ == "__main__":
    main()
