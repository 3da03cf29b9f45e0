"""Write a file of benign prompts to train on (`--benign-prompts`): instructions, and beginnings of texts that are not toxic.

    python benchmarks/benign_file.py instructions.jsonl benign.jsonl --each 200

Instructions are every 20th row of the file from the tenth on, so that other rows of it stay free for testing. Beginnings are the
rows of RealToxicityPrompts with a toxicity below 0.5, after the first 1,000, which the prompt set `rtp_nontoxic` may test on.
A run leaves out those that it tests on in any case.
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
    options = parser.parse_args()
    questions = texts_of(options.instructions, "prompt")[10::20][: options.each]
    beginnings = load_prompts(read_spec(declared()["rtp_nontoxic"])).items[TESTED:][: options.each]
    rows = [{"prompt": text, "kind": "question"} for text in questions]
    rows += [{"prompt": item.prompt, "kind": "continuation"} for item in beginnings]
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(questions)} instructions and {len(beginnings)} beginnings")


if __name__ == "__main__":
    main()
