from __future__ import annotations

from collections import Counter

from wpn_bench import prompts
from wpn_bench.lab import world
from wpn_bench.lab.training_prompts import EACH
from wpn_bench.prompts.leakage import THRESHOLD, Reference


def load(name: str) -> prompts.PromptSet:
    return prompts.load_prompts(prompts.spec_for(name, role="benign", kind="question"))


def test_no_other_set_contains_a_benign_prompt_for_training() -> None:
    found = load("lab_benign_training")
    assert len(found.items) == 5 * EACH
    others = [item for name in world.PROMPT_SETS for item in load(f"lab_{name}").items]
    kinds = Counter(match.kind for match in Reference(others, THRESHOLD).matches(found.items))
    assert kinds["same"] == 0
    # Questions of one template differ in a word or two. A run leaves those out that are too similar to a test question.
    assert len(found.items) - kinds["near"] >= 120
