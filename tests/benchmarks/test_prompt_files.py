"""The declared prompt sets: well formed, and their columns are those of the real data."""

from __future__ import annotations

import json

import pytest
from fork_server import ForkServer

from wpn_bench.prompts import declared, read_spec

# name -> (role, items at least, items at most) on the stand-in hub.
EXPECTED = {
    "pku_forget": ("forget", 700, 2899),
    "pku_test": ("in_domain", 150, 691),
    "advbench": ("ood", 520, 520),
    "harmbench": ("ood", 200, 200),
    "do_not_answer": ("ood", 930, 939),
    "rtp_toxic": ("ood", 900, 993),
    "rtp_nontoxic": ("benign", 1300, 1403),
    "truthfulqa": ("benign", 800, 817),
    "xstest_safe": ("benign", 250, 250),
    "xstest_unsafe": ("ood", 200, 200),
    "wikitext_retain": ("retain", 5000, 12000),
    "wikitext_validation": ("validation", 2000, 3760),
    "wikitext_heldout": ("heldout", 2000, 4358),
}

COUNT = """
import json, sys
from wpn_bench.prompts import declared, load_prompts, load_texts, read_spec
files, out = declared(), {}
for name in sys.argv[1:]:
    spec = read_spec(files[name])
    if spec.kind == "text":
        out[name] = [len(load_texts(spec).texts), 0, 0]
    else:
        items = load_prompts(spec).items
        out[name] = [len(items), sum(bool(i.harmful) for i in items), sum(bool(i.harmless) for i in items)]
print("RESULT" + json.dumps(out))
"""


@pytest.mark.parametrize("name", EXPECTED)
def test_every_file_is_well_formed(name: str) -> None:
    spec = read_spec(declared()[name])
    assert spec.name == name
    assert spec.role == EXPECTED[name][0]
    assert spec.source.hub
    assert spec.licence
    assert spec.citation.startswith("https://")
    assert spec.warning or spec.role not in {"forget", "in_domain", "ood"}


@pytest.mark.hub
@pytest.mark.slow
def test_columns_and_filters_fit_the_data(hub_commands: ForkServer) -> None:
    out = json.loads(hub_commands.python(COUNT, *EXPECTED).rpartition("RESULT")[2])
    for name, (_, least, most) in EXPECTED.items():
        assert least <= out[name][0] <= most, (name, out[name])
    for name in ("pku_forget", "pku_test"):
        assert out[name][0] == out[name][1] == out[name][2], (name, out[name])
