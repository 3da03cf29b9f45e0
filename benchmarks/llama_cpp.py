"""Time llama.cpp on the plain prompts of `generation_and_judging.py`, beside our engine.

    pip install xllamacpp
    python convert_hf_to_gguf.py FOLDER --outtype f16 --outfile model.gguf       # from llama.cpp
    python benchmarks/llama_cpp.py --gguf model.gguf --model FOLDER --sets FILE.jsonl --n 192 --slots 16,64

xllamacpp is llama.cpp's server as a Python package. It decodes up to `--slots` prompts together and admits the next one when one ends.
Its weights are float16, ours are float32, so some texts differ. Prints a Markdown table. Exits with 1 if fewer than half of the
texts begin with the same ten characters, because then the two did not do the same.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch
from generation_and_judging import prompts_of
from side_by_side import seconds

from wpn_bench import models
from wpn_bench.engine.generation import Decoding, generate


def texts_of(server: Any, inputs: Sequence[str], new_tokens: int, slots: int) -> list[str]:
    """Return the greedy continuation of each input. `slots` threads keep as many slots of the server busy."""
    found = [""] * len(inputs)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for k in range(len(inputs)):
        waiting.put(k)

    def work() -> None:
        while True:
            try:
                k = waiting.get_nowait()
            except queue.Empty:
                return
            asked = {"prompt": inputs[k], "n_predict": new_tokens, "temperature": 0, "cache_prompt": False}
            said = server.handle_completions(asked)
            said = json.loads(said) if isinstance(said, (str, bytes)) else said
            found[k] = said["content"] if "content" in said else said["choices"][0]["text"]

    threads = [threading.Thread(target=work) for _ in range(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def serve(gguf: str, slots: int, context: int) -> Any:
    """Return llama.cpp's server with its own kernels, and a cache of `context` tokens per slot."""
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path = gguf
    given.n_parallel, given.n_ctx, given.n_batch = slots, slots * context, 2048
    given.kv_unified, given.cache_prompt, given.fit_params, given.cache_ram_mib = False, False, False, 0
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = torch.get_num_threads()
    given.verbosity = 0
    return xllamacpp.Server(given)


def main() -> int:
    """Print one row for our engine and one for each number of slots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--model", required=True, help="the same model for our engine")
    parser.add_argument("--sets", default="lab_in_domain,lab_ood_notes,lab_ood_games,lab_benign", help="prompt sets")
    parser.add_argument("--forget", default="lab_forget")
    parser.add_argument("--n", type=int, default=192, help="prompts")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--slots", default="16,64", help="numbers of slots, comma separated")
    parser.add_argument("--rows", type=int, default=Decoding().batch_size, help="our number of concurrent rows")
    options = parser.parse_args()
    inputs = prompts_of(options)["plain"]
    model, tokenizer = models.load(models.resolve(options.model).path, "cpu", "float32")
    decoding = Decoding(max_new_tokens=options.new_tokens, stop=(), batch_size=options.rows)
    generate(model, tokenizer, inputs[:8], decoding.model_copy(update={"max_new_tokens": 4}))
    own, responses = seconds(lambda: generate(model, tokenizer, inputs, decoding))
    ours = [response.text or "" for response in responses]
    context = max(len(ids) for ids in tokenizer(inputs)["input_ids"]) + options.new_tokens + 1
    print("| | s | ours / this | same text | same beginning |\n| --- | ---: | ---: | ---: | ---: |")
    print(f"| ours, float32, {options.rows} rows | {own:.1f} | 1.00 | | |", flush=True)
    right = True
    for slots in map(int, options.slots.split(",")):
        server = serve(options.gguf, slots, context)
        texts_of(server, inputs[:4], 4, slots)
        time, theirs = seconds(lambda s=server, n=slots: texts_of(s, inputs, options.new_tokens, n))  # type: ignore[misc]
        same = sum(a == b.strip() for a, b in zip(ours, theirs, strict=True))
        begin = sum(a[:10] == b.strip()[:10] for a, b in zip(ours, theirs, strict=True))
        print(f"| llama.cpp, {slots} slots | {time:.1f} | {own / time:.2f} | {same} | {begin} |", flush=True)
        right &= begin >= len(inputs) / 2
        del server
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
