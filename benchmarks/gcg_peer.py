"""Run nanoGCG on one prompt, for `gcg.py`. It runs in a separate environment without wpn-bench.

python gcg_peer.py CASE.json RESULT.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nanogcg.gcg
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

MARKS: list[float] = []


def marked(steps: Iterable[int]) -> Iterator[int]:
    """Replaces the progress bar and records the CPU time at the start of each step and at the end of the last."""
    for step in steps:
        MARKS.append(time.process_time())
        yield step
    MARKS.append(time.process_time())


def main() -> None:
    case: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(case["threads"])
    nanogcg.gcg.tqdm = marked
    folder = Path(case["model"])
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    # Not AutoTokenizer: transformers 5 saves a class name that transformers 4 does not know.
    special = {name: token for name, token in case["special_tokens"].items() if token}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), clean_up_tokenization_spaces=False, **special
    )
    config = nanogcg.GCGConfig(
        num_steps=case["steps"],
        optim_str_init=" " + case["suffix"],
        search_width=case["candidates"],
        batch_size=case["batch_size"],
        topk=case["topk"],
        n_replace=case["n_replace"],
        seed=case["seed"],
        verbosity="ERROR",
    )
    result = nanogcg.run(model, tokenizer, case["head"] + "{optim_str}" + case["tail"], case["target"], config)
    told = {"best_loss": result.best_loss, "text": case["head"] + result.best_string + case["tail"], "marks": MARKS}
    Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
