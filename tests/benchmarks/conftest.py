"""A task of three documents on local data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wpn_bench.core import consent

DOCUMENTS = [
    {"q": "Sky?", "options": ["blue", "green"], "right": 0},
    {"q": "Grass?", "options": ["blue", "green"], "right": 1},
    {"q": "Snow?", "options": ["white", "black"], "right": 0},
]

HELPER = "def choices(doc):\n    return doc['options']\n"

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
output_type: multiple_choice
test_split: test
num_fewshot: 0
doc_to_text: "Q: {{{{q}}}} A:"
doc_to_target: right
doc_to_choice: !function helper.choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0, title: Colours, chance: 0.5, licence: CC0, citation: "none"}}
"""


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the task `wpn_colours`, the group `colours` of it, and its helper, whose code may run."""
    monkeypatch.setenv(consent.CODE, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
    (folder / "helper.py").write_text(HELPER)
    (folder / "colours.yaml").write_text(TASK.format(name="wpn_colours", data=data))
    (folder / "group.yaml").write_text("group: colours\ntask: [wpn_colours]\n")
    return folder
