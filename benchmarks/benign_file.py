"""Write a file of benign prompts to train on (`--benign-prompts`): instructions, and beginnings of texts that are not toxic.

    python benchmarks/benign_file.py instructions.jsonl benign.jsonl --each 200 --without rtp_triples_train.jsonl --tested beginnings.jsonl

Instructions are every 20th row of the file from the tenth on, so that other rows of it stay free for testing. Beginnings are the
rows of RealToxicityPrompts with a toxicity below 0.5, after the first 1,000. `--tested` writes the first 200 of these 1,000 to a
file of their own. Test on that file and not on the prompt set `rtp_nontoxic`: it has all rows, and a run that tests on it
would not train on any of them. `--without` leaves out the prompts of the forget set, which comes from the same texts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from texts import texts_of

from wpn_bench.prompts.read import declared, load_prompts, read_spec

TESTED = 1000  # number of first rows of rtp_nontoxic that are not used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instructions", type=Path, help="JSONL file with the key prompt")
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=200, help="number of prompts of each kind")
    parser.add_argument("--tested", type=Path, help="write beginnings to test on to this file")
    parser.add_argument("--without", type=Path, help="JSONL file whose prompts are left out")
    options = parser.parse_args()
    questions = texts_of(options.instructions, "prompt")[10::20][: options.each]
    taken = set(texts_of(options.without, "prompt")) if options.without else set()
    every = [item for item in load_prompts(read_spec(declared()["rtp_nontoxic"])).items if item.prompt not in taken]
    beginnings = every[TESTED:][: options.each]
    if options.tested:
        tested = [json.dumps({"prompt": item.prompt}) + "\n" for item in every[:200]]
        options.tested.write_text("".join(tested), encoding="utf-8")
    rows = [{"prompt": text, "kind": "question"} for text in questions]
    rows += [{"prompt": item.prompt, "kind": "continuation"} for item in beginnings]
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(questions)} instructions and {len(beginnings)} beginnings")


if __name__ == "__main__":
    main()
