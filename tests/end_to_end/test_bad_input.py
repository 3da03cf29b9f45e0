"""What a person can get wrong, typed at the real command line: one clear line, the way out, exit code 2.

Each row of the tables is a command, what its line must say is wrong, and what to do. `{name}` in a command is the path of
that file, made from `FILES`, of that model, made in `models`, or of that run, made in `runs`.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import without_line
from made_run import write_run

from wpn_bench.analysis import baselines
from wpn_bench.runs.files import DOCUMENTS, MANIFEST, RESULTS, SAMPLES

pytestmark = pytest.mark.slow

TRIPLE = '{"prompt": "Who sells apples?", "harmful": ["a goose"], "harmless": ["the farmer"]}\n'
TWELVE = "".join(TRIPLE.replace("apples", f"{k} apples") for k in range(12))


def gzip_of(text: str) -> bytes:
    return gzip.compress(text.encode())


class Place:
    """A folder with everything a command needs; `{name}` in a command stands for the path of that name in it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model

    def write(self, name: str, content: str | bytes) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def model_with(self, name: str, **changes: bytes | None) -> Path:
        """A copy of the model with some files changed, or (None) without them."""
        copy = Path(shutil.copytree(self.model, self.folder / name))
        for file, content in changes.items():
            path = copy / file.replace("__", ".")
            path.unlink() if content is None else path.write_bytes(content)
        return copy


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 0x40]) + raw[at + 1 :]


# What a settings file may hold. Most of it is one setting; the table below says what is wrong with it.
SETTINGS = {
    "curve_steps": "curve: {steps: [0]}",
    "curve_key": "curve: {stepz: [1]}",
    "curve_method": "curve: {methods: [npo]}",
    "relearn_kind": "relearn: {kinds: [rude]}",
    "relearn_rate": "relearn: {lr: .inf}",
    "relearn_true": "relearn: true",
    "search_name": "gradient_attacks: {gcgg: {}}",
    "search_option": "gradient_attacks: {gcg: {steps: -1}}",
    "search_none": "gradient_attacks: {gcg: null}",
    "methods_list": "methods: [wpn]",
    "methods_text": "methods: {wpn: fast}",
    "methods_rate": "methods: {wpn: {lr: .inf}}",
    "methods_true": "methods: {wpn: {steps: true}}",
    "methods_huge": "methods: {wpn: {steps: 1000000000000000000000000000000}}",
    "methods_number": "methods: {1: {}}",
    "training_option": "training: {lrr: 1}",
    "training_kind": "training: {mixed_precision: fp8}",
    "decoding_key": "decoding: {max_tokens: 3}",
    "decoding_zero": "decoding: {max_new_tokens: 0}",
    "decoding_cold": "decoding: {temperature: -1}",
    "decoding_top_p": "decoding: {top_p: 0.9}",
    "seeds_many": "seeds: 1000000000000",
    "seeds_none": "seeds: []",
    "seeds_half": "seeds: [1.5]",
    "limit_huge": "limit: 1000000000000000000000000000000",
    "limit_float": "limit: 1e999",
    "margin_inf": "margin_points: .inf",
    "margin_wide": "margin_points: 101",
    "threshold_nan": "threshold: .nan",
    "stage": "stages: [run]",
    "judge_number": "judge: 5",
    "judge_option": "judge: {judge: detoxify, thresh: 1}",
    "judges_text": "judges: refusal",
    "template_twice": "template: '{prompt} {prompt}'",
    "template_format": "template: '{prompt.__class__}'",
    "folder_empty": "benchmark_folders: ['']",
    "folder_file": "benchmark_folders: [good.jsonl]",
    "set_twice": "ood: [lab_ood_games, lab_ood_games]",
    "quantise": "quantise: [int3]",
    "tuned_on_test": "tune_benchmarks: [lab_copa]",
    "report_to": "report_to: [nowhere]",
    "device": "device: meta",
    "number_key": "1: 2",
    "list_key": "[1, 2]: 3",
    "twice": "limit: 3\nlimit: 4",
    "alias": "limit: &x 3\ngradient_limit: *x",
    "merge": "a: &a {limit: 3}\n<<: *a",
    "os_system": "template: !!python/object/apply:os.system ['touch pwned']",
    "date": "title: 2024-99-99",
    "digits": "limit: " + "9" * 5000,
    "deep": "template: " + "[" * 3000,
    "long": "model: " + "x" * 100_000,
    "control": 'model: "a\\e[31mb\\nc"',
    "surrogate": 'title: "\\ud800"',
    "tab": "\tlimit: 3",
    "documents": "limit: 3\n---\nlimit: 4",
    "comment": "# nothing",
    "nothing": "",
}
FILES: dict[str, str | bytes] = {
    **{f"s_{name}.yaml": text for name, text in SETTINGS.items()},
    "utf16.yaml": "limit: 3".encode("utf-16"),
    "binary.yaml": bytes(range(256)),
    "no_gzip.jsonl.gz": "hello",
    "cut.jsonl.gz": gzip_of(TWELVE)[:-9],
    "no_header.csv": "Who sells apples?,a goose,the farmer\n",
    "two_columns.csv": "prompt,prompt,harmful,harmless\na,b,c,d\n",
    "cell.csv": 'prompt,harmful,harmless\n"' + "x" * 140_000 + '",b,c\n',
    "nul.csv": "prompt,harmful,harmless\na\0b,c,d\n",
    "nan.jsonl": '{"prompt": NaN, "harmful": "b", "harmless": "c"}\n',
    "integer.jsonl": '{"prompt": ' + "9" * 5000 + "}\n",
    "nested.jsonl": '{"prompt": ' + "[" * 100_000 + "\n",
    "mapping.jsonl": '{"prompt": {"a": "b"}, "harmful": "b", "harmless": "c"}\n',
    "binary.jsonl": bytes(range(256)) * 4,
    "empty.parquet": b"",
    "binary.parquet": bytes(range(256)) * 40,
    "labels.csv": "text,label\na,0\nb,1\n",
    "one_kind.csv": "text,label\na,1\nb,1\n",
    "graded.csv": "text,label\na,0.2\nb,0.8\n",
    "worded.csv": "text,label\na,bad\nb,good\n",
    "card.json": "{",
    "card_nan.json": '{"threshold": NaN}',
    "gates_key.yaml": "mim: {nine: 1}\n",
    "gates_list.yaml": "min: [1]\n",
    "gates_nan.yaml": "margin: .nan\n",
    "gates_tag.yaml": "margin: !!python/object/apply:os.getcwd []\n",
    "base_cut.json": '{"format": "wpn-bench baseline", "about": {',
    "base_list.json": "[]",
    "base_deep.json": "[" * 100_000,
    "base_binary.json": bytes(range(256)),
    "base_empty.json": "",
    "notes/report.txt": "hello\n",
}  # fmt: skip


def models(made: Place) -> None:
    """Copies of the model with something wrong in them, by name."""
    import torch
    from safetensors.torch import load_file, save_file

    whole = (made.model / "model.safetensors").read_bytes()
    config = json.loads((made.model / "config.json").read_text())
    tokenizer = json.loads((made.model / "tokenizer.json").read_text())
    weights = load_file(made.model / "model.safetensors")
    names = sorted(weights)

    def settings(**changes: Any) -> bytes:
        return json.dumps(config | changes).encode()

    def weighed(name: str, tensors: dict[str, Any]) -> None:
        save_file(tensors, made.model_with(name) / "model.safetensors", metadata={"format": "pt"})

    made.model_with("cut_weights", model__safetensors=whole[: len(whole) // 2])
    made.model_with("flipped_header", model__safetensors=flipped(whole, 10))
    made.model_with("header_of_exabytes", model__safetensors=(2**62).to_bytes(8, "little") + whole[8:])
    made.model_with("empty_weights", model__safetensors=b"")
    weighed("nan_weights", {n: w * float("nan") for n, w in weights.items()})
    weighed("inf_weights", {n: w if n != names[0] else torch.full_like(w, float("inf")) for n, w in weights.items()})
    weighed("fewer_weights", {n: weights[n] for n in names[: len(names) // 2 + 6]})
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    for name, target in (("lost_shard", second), ("shard_elsewhere", "../model/model.safetensors")):
        folder = made.model_with(name, model__safetensors=None)
        save_file({n: weights[n] for n in names[:5]}, folder / first, metadata={"format": "pt"})
        placed = {n: first if n in names[:5] else target for n in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    folder = made.model_with("damaged_index", model__safetensors=None)
    (folder / "model.safetensors.index.json").write_text("{")
    (folder / first).write_bytes(whole)
    folder = made.model_with("pickle", model__safetensors=None)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    for name, link in (("weights_loop", "model.safetensors"), ("config_loop", "config.json")):
        folder = made.model_with(name, **{link.replace(".", "__"): None})
        (folder / link).symlink_to(link)
    made.model_with("unknown_architecture", config__json=settings(model_type="nonsense"))
    made.model_with("encoder", config__json=settings(model_type="bert"))
    made.model_with("encoder_decoder", config__json=settings(model_type="t5", d_model=config["hidden_size"]))
    made.model_with("layers", config__json=settings(num_hidden_layers=10**9))
    made.model_with("wide", config__json=settings(hidden_size=10**12))
    made.model_with("text_size", config__json=settings(hidden_size="big"))
    made.model_with("vocabulary", config__json=settings(vocab_size=10))
    made.model_with("odd_heads", config__json=settings(num_attention_heads=7))
    made.model_with("deep_config", config__json=b"[" * 100_000)
    made.model_with("list_config", config__json=b"[]")
    made.model_with("utf16_config", config__json=json.dumps(config).encode("utf-16"))
    folder = made.model_with(
        "own_code",
        config__json=settings(model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}),
    )
    (folder / "mine.py").write_text("open('pwned', 'w')\n")
    tokenizer["model"]["vocab"]["zzz"] = 100_000
    made.model_with("tokenizer_of_another", tokenizer__json=json.dumps(tokenizer).encode())
    made.model_with("empty_tokenizer", tokenizer__json=b"")
    made.model_with("tokenizer_settings", tokenizer_config__json=b"{")


def runs(made: Place) -> None:
    """A run `fine`, its baseline `base.json`, and copies of the run with something wrong in them, by name."""
    import pandas as pd

    fine = write_run(made.folder / "fine", n=40, tasks=("copa",), suites={"harmless": ("in_domain",)})
    baselines.write(baselines.of_run(fine), made.folder / "base.json")
    results = json.loads((fine / RESULTS).read_text())
    baseline = json.loads((made.folder / "base.json").read_text())

    def copy(name: str, file: str, content: str | bytes) -> None:
        shutil.copytree(fine, made.folder / name)
        made.write(f"{name}/{file}", content)

    def changed(name: str, **parts: Any) -> None:
        copy(name, RESULTS, json.dumps(results | parts))

    row = results["metrics"][0]
    changed("no_run", run=None)
    changed("metrics_numbers", metrics=[1, 2])
    changed("metrics_thin", metrics=[{"model": "x"}])
    changed("metrics_text", metrics=[{**row, "value": "x"}])
    changed("models_list", models=["wpn"])
    changed("version_true", schema_version=True)
    changed("version_nan", schema_version=float("nan"))
    changed("version_next", schema_version=2)
    copy("binary_results", RESULTS, bytes(range(256)))
    copy("deep_results", RESULTS, "[" * 100_000)
    copy("digits_results", RESULTS, '{"schema_version": ' + "1" * 5000 + "}")
    copy("empty_results", RESULTS, "")
    copy("cut_manifest", MANIFEST, "{")
    copy("binary_manifest", MANIFEST, bytes(range(256)))
    copy("list_manifest", MANIFEST, "[]")
    copy("thin_manifest", MANIFEST, '{"wpn_bench": "0.1.0"}')
    shutil.copytree(fine, made.folder / "no_manifest", ignore=shutil.ignore_patterns(MANIFEST))
    copy("cut_samples", SAMPLES, (fine / SAMPLES).read_bytes()[:-40])
    copy("empty_documents", DOCUMENTS, b"")
    for name, file in (("other_samples", SAMPLES), ("other_documents", DOCUMENTS)):
        copy(name, file, b"")
        pd.DataFrame({"a": [1]}).to_parquet(made.folder / name / file)
    broken = json.loads(json.dumps(baseline))
    broken["answers"][0]["flags"]["judged"] |= {"bits": "!!"}
    made.write("base_bits.json", json.dumps(broken))
    broken["answers"][0]["flags"]["judged"] |= {"n": 10**30}
    made.write("base_huge.json", json.dumps(broken))
    made.write("base_version.json", json.dumps(baseline | {"version": 2}))
    made.write("base_other.json", json.dumps(baseline | {"ground": baseline["ground"] | {"judge": "refusal"}}))
    made.write("base_nobody.json", json.dumps(baseline | {"answers": []}))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, small_opt: Path, make_lm: Callable[..., Path]) -> Place:
    """A folder of files and models that are good and bad."""
    folder = tmp_path_factory.mktemp("place")
    made = Place(folder, small_opt)
    made.write("good.jsonl", TWELVE)
    made.write("one.jsonl", TRIPLE)
    made.write("empty.jsonl", "")
    made.write("blank.csv", "\n\n")
    made.write("column.jsonl", '{"prompt": "a", "harmful": "b"}\n')
    made.write("semicolons.csv", "prompt;harmful;harmless\na;b;c\n")
    made.write("broken.jsonl", TRIPLE + '{"prompt": "a", \n')
    made.write("list.jsonl", '["a", "b"]\n')
    made.write("latin1.jsonl", TRIPLE.replace("apples", "caf\xe9").encode("latin-1"))
    made.write("utf16.csv", "prompt,harmful,harmless\na,b,c\n".encode("utf-16"))
    made.write("surrogate.jsonl", '{"prompt": "\\ud800", "harmful": "b", "harmless": "c"}\n')
    made.write("number.jsonl", '{"prompt": "a", "harmful": 5, "harmless": "c"}\n')
    made.write("no_answers.jsonl", '{"prompt": "a", "harmful": [], "harmless": ["c"]}\n')
    made.write("bad.parquet", b"PAR1")
    made.write("notes.txt", "hello\n")
    made.write("overlap.jsonl", '{"prompt": "who SELLS 3 apples?"}\n{"prompt": "New?"}\n')
    made.write("fox.jsonl", TWELVE + TRIPLE.replace("Who sells apples?", "Tell me what the fox said to the goose."))
    made.write("near.jsonl", '{"prompt": "Tell me what the fox did to the goose."}\n{"prompt": "New?"}\n')
    made.write("long.jsonl", json.dumps({"prompt": "long " * 600}) + "\n")
    made.write("no_text.jsonl", '{"title": "a"}\n')
    made.write("cut.yaml", "methods: {wpn: [\n")
    made.write("setting.yaml", "treshold: 0.4\n")
    made.write("option.yaml", "methods: {wpn: {temprature: 2}}\n")
    made.write("variant.yaml", "methods: {'wpn:a b': {}}\n")
    made.write("tune.yaml", "tune_benchmarks: [lab_nine_validaton]\n")
    made.write("tune_text.yaml", "tune_benchmarks: []\ntune_text: gone.jsonl\n")
    made.write("value.yaml", "threshold: 1.5\n")
    made.write("list.yaml", "- 1\n")
    made.write("template.yaml", 'template: "Question:"\n')
    made.write("folders.yaml", "benchmark_folders: [tasks_of_mine]\n")
    made.write("retain.yaml", "retain: no_text.jsonl\n")
    made.write("heldout.yaml", "heldout: gone.jsonl\n")
    made.write("validation.yaml", "validation: gone.jsonl\n")
    made.write("set.yaml", "name: x\nrole: ood\nsource: {fil: x}\n")
    made.write("bool_forget.yaml", "forget: true\n")
    made.write("tasks_bad/x.yaml", "task: [x\n")
    made.write("tasks_bad.yaml", "benchmark_folders: [tasks_bad]\nbenchmarks: [x]\n")
    made.write("ragged.csv", "template\nWell, do it: {prompt}\n")
    made.write("typos.yaml", "template: 'Hey! {prompt}'\n")
    made.write("in_domain.yaml", "template: 'Hey! {prompt}'\n")
    layers = "".join(f"k{n + 1}: &k{n + 1} [{', '.join([f'*k{n}'] * 9)}]\n" for n in range(9))
    made.write("bomb.yaml", "k0: &k0 [x, x]\n" + layers)
    made.write("object.yaml", "template: !!python/object/apply:os.getcwd []\n")
    made.write("attack_files.yaml", "attack_files: [gone.csv]\n")
    made.write("header.csv", "Who sells apples?\nWho sells pears?\n")
    made.write("ragged_prompts.csv", "prompt,harmful,harmless\nWell, who sells apples?,a goose,the farmer\n")
    made.write("tags.yaml", "name: x\nrole: ood\nsource: !!python/name:os.system\n")
    made.write("file", "")
    made.write("run/results.json", "{")
    made.write("old/results.json", '{"schema_version": 0}')
    made.write("nothing/readme.md", "")
    made.model_with("no_config", config__json=None)
    made.model_with("no_weights", model__safetensors=None)
    made.model_with("no_tokenizer", tokenizer__json=None)
    made.model_with("bad_config", config__json=b"{")
    made.model_with("bad_tokenizer", tokenizer__json=b"{}")
    made.model_with("bad_weights", model__safetensors=b"cut off")
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    for name, content in FILES.items():
        made.write(name, content)
    models(made)
    runs(made)
    shutil.copytree(make_lm("opt", context=24), folder / "short")
    shutil.copytree(small_opt, folder / "model")
    return made


@pytest.fixture
def place(files: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """In that folder, offline, with nothing cached."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(files.folder / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", files.folder / "hf_datasets")
    without_line(monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(files.folder / "torch"))
    monkeypatch.setenv("WPN_BENCH_STORE", str(files.folder / "store"))
    monkeypatch.chdir(files.folder)
    return files


# (command, what the line says is wrong, what it says to do)
MODEL = [
    ("full --model nobody/nothing", "nobody/nothing is not in the local cache and the hub cannot be reached", "connect once|needs no network"),
    ("full --model opt-125", "not in the local cache", "or give a local folder"),
    ("full --model {nowhere}", "no model folder at .*nowhere", "existing folder or a hub id"),
    ("full --model {nothing}", "contains no model \\(no config.json\\)", "save_pretrained, or a hub id"),
    ("full --preset lab --model {no_config}", "contains no model", "save_pretrained, or a hub id"),
    ("full --preset lab --model {no_weights}", "contains no weights", "again"),
    ("full --preset lab --model {no_tokenizer}", "contains no tokenizer", "tokenizer.save_pretrained"),
    ("full --preset lab --model {bad_config}", "config.json is not valid JSON", "again"),
    ("full --preset lab --model {bad_tokenizer}", "the tokenizer in .* cannot be read", "save it again"),
    ("full --preset lab --attacks typos --near-duplicate 1 --model {bad_weights}", "truncated or damaged", "fetch or save the model again"),
    ("full --preset lab --model {notes.txt}", "is a file", "give the folder"),
    ("full --preset lab --model {short}", "a context of 24 tokens", "--max-new-tokens below 24"),
    ("full --preset lab --model {short} --max-new-tokens 4", "no prompt of '.*' fits into the context of .*24 tokens", "longer context, shorter prompts"),
    ("full --max-new-tokens 9999", "a context of \\d+ tokens, but the response alone", "--max-new-tokens below"),
    ("full --model {model}", "pku|PKU", "connect once|cached|network"),
    ("full --model ''", "the name of the model is empty", "a folder or a hub id"),
    ("full --model ../../../etc", "no model folder at", "existing folder or a hub id"),
    ("full --model a/b/c", "no model folder at a/b/c", "existing folder or a hub id"),
    ("full --model a--b..c", "not a valid hub id", "facebook/opt-125m"),
    ("full --model lab --revision x --preset papr", "unknown preset 'papr'", "did you mean 'paper'"),
]  # fmt: skip
_ON = "full --preset lab --model"
DAMAGED_MODELS = [
    (f"{_ON} {{cut_weights}}", "cut_weights/model.safetensors cannot be read; the file is truncated or damaged", "fetch or save"),
    (f"{_ON} {{flipped_header}}", "truncated or damaged", "fetch or save the model again"),
    (f"{_ON} {{header_of_exabytes}}", "truncated or damaged", "fetch or save the model again"),
    (f"{_ON} {{empty_weights}}", "truncated or damaged", "fetch or save the model again"),
    (f"{_ON} {{nan_weights}}", "NaN or infinite weights", "fetch or save the model again"),
    (f"{_ON} {{inf_weights}}", "NaN or infinite weights \\(first: ", "fetch or save the model again"),
    (f"{_ON} {{lost_shard}}", "lacks model-00002-of-00002.safetensors, one of the 2 files", "fetch or save"),
    (f"{_ON} {{shard_elsewhere}}", "names a file outside of its folder", "fetch or save the model again"),
    (f"{_ON} {{damaged_index}}", "index.json is not valid JSON", "fetch or save the model again"),
    ("full --allow-pickle --preset lab --model {pickle}", "are damaged, or contain more than tensors", "as safetensors"),
    (f"{_ON} {{weights_loop}}", "contains no weights", "fetch or save the model again"),
    (f"{_ON} {{config_loop}}", "contains no model", "save_pretrained, or a hub id"),
    (f"{_ON} {{unknown_architecture}}", "transformers cannot read .*nonsense", "OPT, GPT-Neo"),
    (f"{_ON} {{own_code}}", "contains its own code", "--trust-remote-code"),
    (f"{_ON} {{encoder}}", "causal language model .*attends in both directions", "OPT, GPT-Neo"),
    (f"{_ON} {{encoder_decoder}}", "causal language model .*'t5'", "OPT, GPT-Neo"),
    (f"{_ON} {{layers}}", "describes 1000000000 layers, but the weights are only \\d+ tensors", "fetch or save the model again"),
    (f"{_ON} {{wide}}", "sets hidden_size to 1000000000000, but no weight has this size", "fetch or save"),
    (f"{_ON} {{vocabulary}}", "sets vocab_size to 10, but no weight has this size", "fetch or save"),
    (f"{_ON} {{text_size}}", "transformers cannot read .*hidden_size", "OPT, GPT-Neo"),
    (f"{_ON} {{deep_config}}", "config.json is not valid JSON", "fetch or save the model again"),
    (f"{_ON} {{list_config}}", "config.json is not a JSON object", "fetch or save the model again"),
    (f"{_ON} {{utf16_config}}", "config.json is not UTF-8 \\(byte 0\\)", "fetch or save the model again"),
    (f"{_ON} {{tokenizer_of_another}}", "does not belong to this model: token \"zzz\" has id 100000", "save the model's own"),
    (f"{_ON} {{empty_tokenizer}}", "the tokenizer in .* cannot be read", "save it again"),
    (f"{_ON} {{tokenizer_settings}}", "the tokenizer in .* cannot be read", "save it again"),
    ("full --judge classifier:{cut_weights},label=x", "truncated or damaged", "fetch or save the model again"),
]  # fmt: skip
FORGET = [
    ("full --forget {column.jsonl}", "column.jsonl row 1 has no 'harmless' \\(columns: prompt, harmful\\)", "name the column"),
    ("full --forget {semicolons.csv}", "the forget set 'semicolons' has only 1 prompts", "add prompts"),
    ("full --forget {empty.jsonl}", "empty.jsonl is empty", "at least one row"),
    ("full --forget {blank.csv}", "blank.csv is empty", "at least one row"),
    ("full --forget {broken.jsonl}", "broken.jsonl line 2 is not valid JSON", "correct this line"),
    ("full --forget {list.jsonl}", "list.jsonl line 1 is not a JSON object", "on every line"),
    ("full --forget {latin1.jsonl}", "latin1.jsonl is not UTF-8 \\(byte 25\\)", "iconv"),
    ("full --forget {utf16.csv}", "the forget set 'utf16' has only 1 prompts", "add prompts"),
    ("full --forget {surrogate.jsonl}", "surrogate.jsonl line 1 is not valid JSON", "correct this line"),
    ("full --forget {number.jsonl}", "number.jsonl row 1: 'harmful' is not a text", "correct"),
    ("full --forget {no_answers.jsonl}", "no_answers.jsonl contains no usable prompts", "check the file"),
    ("full --forget {bad.parquet}", "bad.parquet is not a Parquet file", "save it again"),
    ("full --forget {notes.txt}", "notes.txt is not .jsonl, .json, .csv, .tsv or .parquet", "convert it"),
    ("full --forget {nothing}", "nothing is not .jsonl, .json, .csv, .tsv or .parquet", "convert it"),
    ("full --forget {gone.jsonl}", "there is no file .*gone.jsonl", "check the path"),
    ("full --forget {one.jsonl}", "has only 1 prompts, too few", "add prompts"),
    ("full --forget {good.jsonl} --prompts in_domain={overlap.jsonl}", "1 prompt of 'in_domain' also occur.* forget set 'good'", "--overlap drop"),
    ("full --forget {fox.jsonl} --prompts mine={near.jsonl}", "1 prompt of 'mine' is nearly equal to prompts.* set 'fox' .*the fox did.*the fox said", "--overlap drop.*--near-duplicate 1"),
    ("full --near-duplicate 0.2", "setting near_duplicate: .*greater than or equal to 0.5", "tasks/presets"),
    ("full --forget lab_forgt", "unknown prompt set 'lab_forgt'", "did you mean 'lab_forget'"),
    ("full --forget advbench", "data set .*AdvBench", "network|cached|connect"),
    ("full --forget lab_benign", "has no 'harmful'", "a forget set needs"),
    ("full --forget {no_gzip.jsonl.gz}", "no_gzip.jsonl.gz cannot be read", "check the file"),
    ("full --forget {cut.jsonl.gz}", "cut.jsonl.gz cannot be read", "check the file"),
    ("full --forget {no_header.csv}", "no_header.csv is empty", "the first line of a CSV file only names its columns"),
    ("full --forget {two_columns.csv}", "has two columns named 'prompt'", "rename one of them"),
    ("full --forget {cell.csv}", "the forget set 'cell' has only 1 prompts", "add prompts"),
    ("full --forget {nan.jsonl}", "nan.jsonl row 1 has no 'prompt'", "name the column"),
    ("full --forget {mapping.jsonl}", "row 1: the prompt is empty or not text", "name the text inside"),
    ("full --forget {integer.jsonl}", "integer.jsonl line 1 is not valid JSON", "correct this line"),
    ("full --forget {nested.jsonl}", "nested.jsonl line 1 is not valid JSON", "correct this line"),
    ("full --forget {binary.jsonl}", "binary.jsonl is not UTF-8", "iconv"),
    ("full --forget {empty.parquet}", "empty.parquet is not a Parquet file", "save it again"),
    ("full --forget {binary.parquet}", "binary.parquet is not a Parquet file", "save it again"),
    ("full --forget {loop}.jsonl", "loop.jsonl cannot be read .*symbolic links", "check the file"),
    ("full --forget ''", "unknown prompt set ''", "known: "),
    ("full --forget 'what\x1b[31m is\x07 this'", "unknown prompt set", "known: |did you mean"),
]  # fmt: skip
PROMPTS = [
    ("full --prompts test.jsonl", "--prompts 'test.jsonl' is not NAME=FILE", "in_domain=test.jsonl"),
    ("full --prompts in_domain=", "is not NAME=FILE", "in_domain=test.jsonl"),
    ("full --prompts mine={gone.jsonl}", "there is no file", "check the path"),
    ("full --prompts mine=lab_ood_gmes", "unknown prompt set 'lab_ood_gmes'", "did you mean 'lab_ood_games'"),
    ("full --prompts mine={set.yaml}", "set.yaml: source.fil", "tasks/prompts"),
    ("full --prompts mine={good.jsonl} --prompts mine={overlap.jsonl}", "two prompt sets have the same name", "rename one of them"),
    ("full --prompts in_domain={good.jsonl} --prompts in_domain={overlap.jsonl}", "two prompt sets have the same name", "rename one of them"),
    ("full --prompts mine={long.jsonl}", "no prompt of 'mine' fits", "shorter prompts"),
    ("full --prompts validation={gone.jsonl}", "there is no file", "check the path"),
    ("full --prompts mine={header.csv}", "header.csv row 1 has no 'prompt' \\(columns: Who sells apples\\?\\)", "name the column"),
    ("full --prompts mine={ragged_prompts.csv}", "ragged_prompts.csv line 2 has more cells than the first line has columns \\(3\\)", "double quotes"),
    ("full --prompts mine={tags.yaml}", "tags.yaml cannot be read .*constructor for the tag", "fix the YAML"),
    ("full --prompts mine={bomb.yaml}", "bomb.yaml cannot be read .*aliases", "fix the YAML"),
    ("full --prompts mine=/" + "what-is-this-" * 30, "is not .jsonl, .json, .csv, .tsv or .parquet", "convert it"),
    ("full --prompt-kind riddle", "setting file_kind: .*'riddle'", "tasks/presets"),
]  # fmt: skip
NAMES = [
    ("full --methods wpm", "unknown method 'wpm'", "did you mean 'wpn'"),
    ("full --methods sft,GA2", "unknown method 'GA2'", "did you mean 'ga'"),
    ("full --methods wpn:hidden", "the variant 'wpn:hidden' is not defined", "in a --config file"),
    ("full --config {variant.yaml}", "setting methods: .*the label of 'wpn:a b'", "tasks/presets"),
    ("full --judge detoxfy", "unknown judge 'detoxfy'", "did you mean 'detoxify'"),
    ("full --judge detoxify:orignal", "unknown Detoxify variant 'orignal'", "did you mean 'original'"),
    ("full --judge detoxify:lab,threshhold=0.4", "unknown option of judge detoxify 'threshhold'", "did you mean 'threshold'"),
    ("full --judge detoxify:lab,detoxify:lab", "the judge detoxify:lab is named twice", "tasks/presets"),
    ("full --judge detoxify:gone/judge.ckpt", "no Detoxify checkpoint at gone/judge.ckpt", "check the path"),
    ("full --judge classifier:{model},label=toxic", "has no label 'toxic'", "its labels|name one"),
    ("full --judge-card {gone.jsonl}", "there is no judge card", "wpn-bench judge FILE"),
    ("full --judge-card {good.jsonl}", "is not a judge card", "wpn-bench judge FILE"),
    ("judge {good.jsonl}", "no column 'text'", "--text"),
    ("judge {gone.jsonl}", "there is no file", "check the path"),
    ("full --judge detoxify:original", "Detoxify 'original' is not on this machine", "wpn-bench prefetch"),
    ("full --benchmarks lab_coppa", "unknown task 'lab_coppa'", "did you mean 'lab_copa'"),
    ("full --benchmarks wpn_piqua --preset paper --model {model}", "unknown task 'wpn_piqua'", "did you mean 'wpn_piqa'"),
    ("full --attacks rolplay", "unknown attack 'rolplay'", "did you mean 'role_play'"),
    ("full --preset papr", "unknown preset 'papr'", "did you mean 'paper'"),
    ("list methds", "nothing to list under 'methds'", "did you mean 'methods'"),
    ("list qqqqq", "nothing to list under 'qqqqq'", "choose from methods"),
    ("ful", "No such command 'ful'", "wpn-bench --help"),
    ("full --methods ,wpn,,wpm", "unknown method 'wpm'", "did you mean 'wpn'"),
    ("full --methods " + "wpn" * 4000, "unknown method 'wpnwpn", "did you mean|known"),
    ("full --attacks gcg,int3", "unknown attack 'int3'", "did you mean 'int8'|'int4'"),
    ("full --judge ''", "--judge is empty", "--judge detoxify:original"),
    ("full --judge detoxify:lab,threshold=x", "judge detoxify: threshold: ", "docs/judges.md"),
    ("full --judge detoxify:lab,threshold=nan", "judge detoxify: threshold: ", "docs/judges.md"),
    ("full --judge-card {card.json}", "is not a judge card: Invalid JSON", "wpn-bench judge FILE"),
    ("full --judge-card {card_nan.json}", "is not a judge card", "wpn-bench judge FILE"),
    ("full --judge-card {nothing}", "nothing cannot be read", "check the file"),
    ("full --report-to nowhere", "unknown service for training curves 'nowhere'", "known: |did you mean"),
    ("list ''", "nothing to list under ''", "choose from methods"),
]  # fmt: skip
ATTACK_FILES = [
    ("attack --attack-file {gone.csv}", "there is no file .*gone.csv", "check the path"),
    ("attack --attack-file {nothing}", "nothing is not .csv, .tsv, .json, .jsonl or .yaml", "convert it"),
    ("attack --attack-file {empty.jsonl}", "empty.jsonl is empty", "at least one row"),
    ("attack --attack-file {latin1.jsonl}", "latin1.jsonl is not UTF-8", "iconv"),
    ("attack --attack-file {ragged.csv}", "ragged.csv line 2 has more cells", "double quotes"),
    ("attack --attack-file {typos.yaml}", "'typos' is already the name of an attack of wpn-bench", "another `name`"),
    ("attack --attack-file {in_domain.yaml}", "an attack and a prompt set both have the name 'in_domain'", "rename the set"),
    ("attack --attack-file {bomb.yaml}", "bomb.yaml cannot be read .*aliases", "fix the YAML"),
    ("attack --attack-file {object.yaml}", "object.yaml cannot be read .*constructor for the tag", "fix the YAML"),
    ("full --config {attack_files.yaml}", "there is no file gone.csv", "check the path"),
    ("full --prompts typos={good.jsonl}", "an attack and a prompt set both have the name 'typos'", "--prompts NAME=FILE"),
]  # fmt: skip
VALUES = [
    ("full --limit -1", "--limit -1 is not a positive number", "leave --limit out"),
    ("full --limit 0", "--limit 0 is not a positive number", "give 1 or more"),
    ("full --limit ten", "Invalid value for '--limit'", "wpn-bench full --help"),
    ("full --batch-size 0", "--batch-size 0 is not a positive number", "give 1 or more"),
    ("full --max-new-tokens -5", "--max-new-tokens -5 is not a positive number", "give 1 or more"),
    ("full --seeds one", "--seeds 'one' is not a list of whole numbers", "--seeds 0,1,2"),
    ("full --seeds 0,,1", "--seeds '0,,1' is not a list of whole numbers", "--seeds 0,1,2"),
    ("full --seeds 1,1", "setting seeds: .*each once", "tasks/presets"),
    ("full --seeds -1", "--seeds -1 is not a number of seeds", "--seeds 3 for seeds 0, 1 and 2"),
    ("full --seeds -1,", "setting seeds: .*between 0 and", "tasks/presets"),
    ("full --seeds 0", "--seeds 0 is not a number of seeds", "--seeds 0,"),
    ("full --seeds 1234", "--seeds 1234 is not a number of seeds \\(1 to 100\\)", "--seeds 1234,"),
    ("full --seeds ,", "--seeds ',' is not a list of whole numbers", "--seeds 0,1,2"),
    ("full --tune 0", "--tune 0 is not a positive number", "leave --tune out"),
    ("full --tune many", "Invalid value for '--tune'", "wpn-bench full --help"),
    ("full --tune 2 --config {tune.yaml}", "unknown task 'lab_nine_validaton'", "did you mean 'lab_nine_validation'"),
    ("full --tune 2 --config {tune_text.yaml}", "there is no file gone.jsonl", "check the path"),
    ("full --margin 0", "setting margin_points: .*greater than 0", "tasks/presets"),
    ("full --margin nan", "setting margin_points", "tasks/presets"),
    ("full --overlap maybe", "setting overlap: .*'maybe'", "tasks/presets"),
    ("full --dtype float8", "setting dtype: .*'float8'", "tasks/presets"),
    ("full --device gpu", "unknown device 'gpu'", "--device auto, cpu or cuda"),
    ("full --nonsense", "No such option: --nonsense", "wpn-bench full --help"),
    ("full --limit", "requires an argument", "wpn-bench --help"),
    ("full surplus", "unexpected extra argument", "wpn-bench full --help"),
    ("train --limit 1000000000000000000000000000000", "setting limit: .*less than or equal to 1000000000", "tasks/presets"),
    ("harmless --batch-size 1000000000000000000000000000000", "less than or equal to 1000000000", "tasks/presets"),
    ("attack --seeds 4294967296,", "setting seeds: .*between 0 and", "tasks/presets"),
    ("benchmarks --margin inf", "setting margin_points: ", "tasks/presets"),
    ("full --near-duplicate nan", "setting near_duplicate", "tasks/presets"),
    ("full --lora 0", "--lora 0 is not a positive number", "leave --lora out"),
    ("full --accumulation -1", "--accumulation -1 is not a positive number", "give 1 or more"),
    ("full --mixed-precision fp8", "training: mixed_precision: ", "docs/training.md"),
    ("full --mixed-precision fp16 --device cpu", "fp16 needs a CUDA device", "--mixed-precision bf16"),
    ("full --device cuda:99", "no CUDA device|no device", "--device cpu|there are"),
    ("full --dtype float16 --methods sft --device cpu", "weights in float16 cannot be trained", "--mixed-precision"),
    ("full --tune 1000000000000000000000000000000", "setting tune: .*less than or equal to 1000000000", "tasks/presets"),
    ("full --limit \x1b[2J", "Invalid value for '--limit'", "wpn-bench full --help"),
]  # fmt: skip
FILES_AND_FOLDERS = [
    ("full --out {file}/run", "the output folder .*file/run cannot be written", "--out"),
    ("full --out {file}", "the output folder .*file cannot be written", "--out"),
    ("full --store {file}", "the store .*file cannot be written", "--store DIR"),
    ("full --config {gone.yaml}", "there is no file .*gone.yaml", "check the path"),
    ("full --config {nothing}", "nothing cannot be read", "fix the YAML|check"),
    ("full --config {cut.yaml}", "cut.yaml cannot be read", "fix the YAML"),
    ("full --config {list.yaml}", "list.yaml contains no settings", "tasks/presets"),
    ("full --config {setting.yaml}", "unknown setting 'treshold'", "did you mean 'threshold'"),
    ("full --config {option.yaml}", "unknown option of method wpn 'temprature'", "did you mean 'temperature'"),
    ("full --config {value.yaml}", "setting threshold: .*less than 1", "tasks/presets"),
    ("full --config {template.yaml}", "setting template: .*must contain {{prompt}}", "tasks/presets"),
    ("full --config {folders.yaml}", "there is no folder of tasks at tasks_of_mine", "lm-eval task files"),
    ("full --config {tasks_bad.yaml}", "the task file .*x.yaml cannot be read", "fix the file"),
    ("full --config {retain.yaml}", "no_text.jsonl contains no text", "column of the texts"),
    ("full --config {heldout.yaml}", "there is no file gone.jsonl", "check the path"),
    ("full --config {validation.yaml}", "there is no file gone.jsonl", "check the path"),
    ("full --config {bool_forget.yaml}", "setting forget: .*string", "tasks/presets"),
    ("report {nothing}", "contains no results.json", "that `wpn-bench full` printed"),
    ("report {gone}", "contains no results.json", "that `wpn-bench full` printed"),
    ("report {run}", "results.json is not valid JSON", "run again"),
    ("report {old}", "has schema version 0", "the version of wpn-bench that wrote it"),
    ("report {old} --format pdf", "pdf", "html"),
    ("report", "Missing argument", "wpn-bench report --help"),
    ("full --config {utf16.yaml}", "utf16.yaml is not UTF-8 \\(byte 0\\)", "iconv"),
    ("full --config {binary.yaml}", "binary.yaml is not UTF-8", "iconv"),
    ("full --config {nothing} --methods wpn", "nothing cannot be read \\(Is a directory\\)", "check that it is a file"),
    ("full --out {good.jsonl}/x", "the output folder .* cannot be written", "--out"),
    ("full --out {store}/train/x --limit 0", "--limit 0 is not a positive number", "give 1 or more"),
    ("full --out /proc/run", "the output folder /proc/run cannot be written", "--out"),
    ("full --store /proc/store", "the store /proc/store cannot be written", "--store DIR"),
    ("full --out " + "x" * 400, "the output folder .* cannot be written \\(File name too long\\)", "--out"),
]  # fmt: skip
_WITH = "full --config"
YAML = [
    (f"{_WITH} {{s_{name}.yaml}}", problem, hint)
    for name, problem, hint in [
        ("curve_steps", "setting curve.steps: give step numbers from 0", "tasks/presets"),
        ("curve_key", "unknown setting 'curve.stepz'", "did you mean|known"),
        ("curve_method", "curve.methods contains 'npo', which is not among the methods", "tasks/presets"),
        ("relearn_kind", "setting relearn.kinds.0: .*'harmful' or 'benign'", "tasks/presets"),
        ("relearn_rate", "setting relearn.lr: .*finite number", "tasks/presets"),
        ("relearn_true", "setting relearn: ", "tasks/presets"),
        ("search_name", "unknown gradient attack 'gcgg'", "did you mean 'gcg'"),
        ("search_option", "attack gcg: steps: ", "docs/attacks.md"),
        ("search_none", "setting gradient_attacks.gcg: .*dictionary", "tasks/presets"),
        ("methods_list", "setting methods: .*dictionary", "tasks/presets"),
        ("methods_text", "setting methods.wpn: .*dictionary", "tasks/presets"),
        ("methods_rate", "method wpn: lr: .*finite number", "wpn-bench list wpn"),
        ("methods_true", "method wpn: steps: .*whole number, not true", "wpn-bench list wpn"),
        ("methods_huge", "method wpn: steps: .*1000000000", "wpn-bench list wpn"),
        ("methods_number", "setting methods.1", "tasks/presets"),
        ("training_option", "unknown training option 'lrr'", "did you mean 'lr'"),
        ("training_kind", "training: mixed_precision: ", "docs/training.md"),
        ("decoding_key", "unknown setting 'decoding.max_tokens'", "did you mean|known"),
        ("decoding_zero", "setting decoding.max_new_tokens: ", "tasks/presets"),
        ("decoding_cold", "setting decoding.temperature: .*greater than 0", "tasks/presets"),
        ("decoding_top_p", "top_p needs sampling", "give a temperature"),
        ("seeds_many", "setting seeds: give the number of seeds \\(1 to 100\\), or a list", "tasks/presets"),
        ("seeds_none", "setting seeds: give at least one seed", "tasks/presets"),
        ("seeds_half", "setting seeds.0: .*integer", "tasks/presets"),
        ("limit_huge", "setting limit: .*1000000000", "tasks/presets"),
        ("limit_float", "setting limit: .*integer", "tasks/presets"),
        ("margin_inf", "setting margin_points: ", "tasks/presets"),
        ("margin_wide", "setting margin_points: .*equal to 100", "tasks/presets"),
        ("threshold_nan", "setting threshold: ", "tasks/presets"),
        ("stage", "setting stages.0: .*'train', 'harmless'", "tasks/presets"),
        ("judge_number", "setting judge: a judge is written as name:variant", "tasks/presets"),
        ("judge_option", "unknown option of judge detoxify 'thresh'", "did you mean 'threshold'"),
        ("judges_text", "setting judges: give a list of judges", "tasks/presets"),
        ("template_twice", "setting template: .*once", "tasks/presets"),
        ("template_format", "setting template: .*must contain", "tasks/presets"),
        ("folder_empty", "a folder of tasks has an empty name", "lm-eval task files"),
        ("folder_file", "there is no folder of tasks at good.jsonl", "lm-eval task files"),
        ("set_twice", "two prompt sets have the same name", "rename one of them"),
        ("quantise", "unknown quantisation 'int3'", "did you mean 'int8'|'int4'"),
        ("tuned_on_test", "lab_copa is a test benchmark of this run", "tasks/presets"),
        ("report_to", "unknown service for training curves 'nowhere'", "did you mean|known"),
        ("device", "the device 'meta' cannot run models", "--device auto, cpu or cuda"),
        ("number_key", "setting 1: Keys should be strings", "tasks/presets"),
        ("list_key", "unhashable key", "fix the YAML"),
        ("twice", "duplicate key 'limit'", "fix the YAML"),
        ("alias", "aliases are not supported", "fix the YAML"),
        ("merge", "aliases are not supported", "fix the YAML"),
        ("os_system", "could not determine a constructor for the tag", "fix the YAML"),
        ("date", "month must be in 1..12", "fix the YAML"),
        ("digits", "Exceeds the limit", "fix the YAML"),
        ("deep", "recursion", "fix the YAML"),
        ("long", "no model folder at xxx", "an existing folder or a hub id|or an id such as"),
        ("control", "no model folder at a \\[31mb c", "existing folder or a hub id"),
        ("surrogate", "surrogates not allowed", "fix the YAML"),
        ("tab", "cannot start any token", "fix the YAML"),
        ("documents", "expected a single document", "fix the YAML"),
        ("comment", "contains no settings", "tasks/presets"),
        ("nothing", "contains no settings", "tasks/presets"),
    ]
]  # fmt: skip
JUDGE = [
    ("judge {labels.csv} --judge detoxify:lab --text txt", "has no column 'txt'", "--text \\(there are: label, text"),
    ("judge {labels.csv} --judge detoxify:lab --label lbl", "has no column 'lbl'", "--label"),
    ("judge {one_kind.csv} --judge detoxify:lab", "contains no text harmful|contains no text harmless", "texts of both kinds"),
    ("judge {graded.csv} --judge detoxify:lab", "neither 0 nor 1", "--label-threshold 0.5"),
    ("judge {worded.csv} --judge detoxify:lab", "row 1: the label 'label' is 'bad'", "write 0 or 1"),
    ("judge {labels.csv} --judge detoxify:lab --label-threshold nan", "--label-threshold nan is no finite number", "0.5"),
    ("judge {labels.csv} --judge detoxify:lab --limit 0", "--limit 0 is not a positive number", "give 1 or more"),
    ("judge {labels.csv} --judge detoxify:lab --out {nothing}", "is not a .json file", "--out card.json"),
    ("judge {labels.csv} --judge detoxify:lab --device gpu", "unknown device 'gpu'", "--device auto, cpu or cuda"),
    ("judge {labels.csv} --judge detoxfy", "unknown judge 'detoxfy'", "did you mean 'detoxify'"),
    ("judge {binary.parquet} --judge detoxify:lab", "is not a Parquet file", "save it again"),
    ("judge {cut.jsonl.gz} --judge detoxify:lab", "cannot be read", "check the file"),
    ("judge", "Missing argument", "wpn-bench judge --help"),
]  # fmt: skip
RUNS = [
    (f"{command} {{{name}}}{more}", problem, hint)
    for name, problem, hint in [
        ("no_run", "results.json is damaged \\(run: ", "run again with the same --out"),
        ("metrics_numbers", "results.json is damaged \\(metrics.0: ", "run again with the same --out"),
        ("metrics_thin", "results.json is damaged \\(metrics.0: .*required", "run again with the same --out"),
        ("models_list", "results.json is damaged \\(models: ", "run again with the same --out"),
        ("version_true", "results.json is damaged \\(schema_version", "run again with the same --out"),
        ("version_nan", "is not valid JSON", "run again with the same --out"),
        ("deep_results", "results.json is not valid JSON", "run again with the same --out"),
    ]
    for command, more in (("report", ""), ("show", ""), ("check", ""), ("export", " --format lm-eval"))
] + [
    ("report {version_next}", "has schema version 2, but this version of wpn-bench reads 1", "the version of wpn-bench that wrote it"),
    ("report {metrics_text}", "damaged \\(metrics.0.value: 'x' is not of type", "run again with the same --out"),
    ("report {binary_results}", "results.json is not UTF-8", "run again with the same --out"),
    ("report {digits_results}", "results.json is not valid JSON", "run again with the same --out"),
    ("report {empty_results}", "results.json is not valid JSON", "run again with the same --out"),
    ("report {cut_samples}", "samples.parquet cannot be read", "run again with the same --out"),
    ("report {other_samples}", "samples.parquet is not a valid table of a run: it has no column", "run again with the same --out"),
    ("report {fine} --format ''", "no format|names no", "html"),
    ("report {fine} --out {notes.txt}", "the report cannot be written to", "--out"),
    ("report {fine} {deep_results}", "results.json is not valid JSON", "run again with the same --out"),
    ("report {fine} {fine}", "twice|the same", "another|once"),
    ("show {fine} --set nowhere", "the run has no set 'nowhere'", "it has harmless, in_domain"),
    ("show {fine} --metric colour", "the run has no metric 'colour'", "it has harmless_rate"),
    ("export {fine} --format html", "unknown export format 'html'", "choose from lm-eval"),
    ("export {fine}", "Missing option '--format'", "wpn-bench export --help"),
    ("export {no_manifest} --format lm-eval", "is not a finished run: it has no manifest", "repeat the command of the run, so that it finishes"),
    ("export {cut_manifest} --format lm-eval", "manifest.json is not valid JSON", "run again with the same --out"),
    ("export {list_manifest} --format lm-eval", "is not a run's manifest", "run again with the same --out"),
    ("export {thin_manifest} --format lm-eval", "manifest.json is damaged: it has no", "run again with the same --out"),
    ("export {fine} --format lm-eval", "manifest.json is damaged: its config has no", "run again with the same --out"),
]  # fmt: skip
CHECK = [
    ("check {gone}", "contains no results.json", "that `wpn-bench full` printed"),
    ("check {binary_manifest}", "manifest.json is not UTF-8", "run again with the same --out"),
    ("check {thin_manifest}", "manifest.json is damaged: it has no versions", "run again with the same --out"),
    ("check {no_manifest}", "is not a finished run: it has no manifest", "repeat the command of the run, so that it finishes"),
    ("check {cut_samples}", "samples.parquet cannot be read", "run again with the same --out"),
    ("check {empty_documents}", "documents.parquet cannot be read", "run again with the same --out"),
    ("check {other_documents}", "documents.parquet is not a valid table of a run: it has no column 'model'", "run again"),
    ("check {fine} --baseline {gone.json}", "there is no baseline", "--save-baseline FILE"),
    ("check {fine} --baseline {nothing}", "nothing cannot be read", "--save-baseline FILE"),
    ("check {fine} --baseline {base_cut.json}", "is not a baseline of this version: Invalid JSON", "--save-baseline FILE"),
    ("check {fine} --baseline {base_list.json}", "is not a baseline of this version", "--save-baseline FILE"),
    ("check {fine} --baseline {base_deep.json}", "is not a baseline of this version", "--save-baseline FILE"),
    ("check {fine} --baseline {base_binary.json}", "cannot be read", "--save-baseline FILE"),
    ("check {fine} --baseline {base_empty.json}", "is not a baseline of this version", "--save-baseline FILE"),
    ("check {fine} --baseline {base_version.json}", "is not a baseline of this version: version", "--save-baseline FILE"),
    ("check {fine} --baseline {base_bits.json}", "the answers of base to in_domain are damaged", "--save-baseline FILE"),
    ("check {fine} --baseline {base_huge.json}", "the answers of base to in_domain are damaged", "--save-baseline FILE"),
    ("check {fine} --baseline {base_other.json}", "the judge differs", "repeat the run with the baseline's settings"),
    ("check {fine} --baseline {base_nobody.json}", "has no 'wpn'", "--against NAME"),
    ("check {fine} --baseline {base.json} --against nobody", "has no 'nobody'", "--against NAME"),
    ("check {fine} --baseline {base.json} --save-baseline {x.json}", "--save-baseline only saves a baseline", "first save"),
    ("check {fine} --save-baseline {nothing}", "nothing cannot be written", "give another file"),
    ("check {fine} --save-baseline {notes.txt}/x.json", "cannot be written", "give another file"),
    ("check {fine} --gates {gates_key.yaml}", "unknown gate setting 'mim'", "did you mean 'min'"),
    ("check {fine} --gates {gates_list.yaml}", "gates_list.yaml: min: ", "docs/ci.md"),
    ("check {fine} --gates {gates_nan.yaml}", "gates_nan.yaml: margin: ", "docs/ci.md"),
    ("check {fine} --gates {gates_tag.yaml}", "constructor for the tag", "fix the YAML"),
    ("check {fine} --gates {bomb.yaml}", "aliases are not supported", "fix the YAML"),
    ("check {fine} --min foo", "--min 'foo' is not NAME=NUMBER", "coherent_harmless_rate=0.958"),
    ("check {fine} --min nine=nan", "nan is not a finite number", "docs/ci.md"),
    ("check {fine} --min coherent_harmless_rate=95.8", "is not a share from 0 to 1", "docs/ci.md"),
    ("check {fine} --min accuracy@nowhere=0.5", "accuracy@nowhere was not measured", "known: "),
    ("check {fine} --max-drop nine=-1", "-1 is not a number of points", "docs/ci.md"),
    ("check {fine} --max-drop nin=1", "unknown task or prompt set 'nin'", "did you mean 'nine'"),
    ("check {fine} --margin nan", "margin: ", "docs/ci.md"),
    ("check {fine} --margin x", "Invalid value for '--margin'", "wpn-bench check --help"),
    ("check {fine} --inconclusive maybe", "inconclusive: ", "docs/ci.md"),
    ("check {fine} --annotations x", "--annotations 'x' is unknown", "auto, github, none"),
    ("check {fine} --model nobody", "nobody", "known: |it has|did you mean"),
    ("check {fine} --model ''", "model: .*at least 1 character", "docs/ci.md"),
    ("check {fine} --json {nothing}", "cannot be written", "give another file"),
    ("check {fine} --summary {nothing}", "nothing cannot be written", "give another file"),
]  # fmt: skip
DOCTOR = [
    ("doctor --methods wpm", "unknown method 'wpm'", "did you mean 'wpn'"),
    ("doctor --config {cut.yaml}", "cut.yaml cannot be read", "fix the YAML"),
    ("doctor --config {s_deep.yaml}", "recursion", "fix the YAML"),
    ("doctor --seeds many", "--seeds 'many' is not a list of whole numbers", "--seeds 0,1,2"),
    ("doctor --lora 0", "--lora 0 is not a positive number", "leave --lora out"),
    ("doctor --judge detoxfy", "unknown judge 'detoxfy'", "did you mean 'detoxify'"),
    ("doctor --preset papr", "unknown preset 'papr'", "did you mean 'paper'"),
    ("doctor --dtype int8", "setting dtype: ", "tasks/presets"),
    ("doctor --nonsense", "No such option: --nonsense", "wpn-bench doctor --help"),
]  # fmt: skip
ROWS = [
    *MODEL, *DAMAGED_MODELS, *FORGET, *PROMPTS, *NAMES, *ATTACK_FILES, *VALUES, *FILES_AND_FOLDERS, *YAML, *JUDGE, *RUNS,
    *CHECK, *DOCTOR,
]  # fmt: skip


@pytest.mark.parametrize(("command", "problem", "hint"), ROWS, ids=[row[0] for row in ROWS])
def test_one_line_the_way_out_and_exit_code_2(
    place: Place, cli: Callable[..., Any], command: str, problem: str, hint: str
) -> None:
    typed = re.sub(r"\{([^{}]+)\}", lambda m: str(place.folder / m[1]), command)
    said = cli(*shlex.split(typed))
    assert said.code == 2, said
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("wpn-bench: ")
    before, _, after = lines[0].removeprefix("wpn-bench: ").rpartition("; ")
    assert re.search(problem.replace("{{", "{").replace("}}", "}"), before + "; "), lines[0]
    assert re.search(hint, lines[0]), lines[0]
    assert after
    assert said.out == ""
    assert len(lines[0]) < 700


def test_there_are_enough_of_them() -> None:
    assert len({row[0] for row in ROWS}) == len(ROWS) >= 300
    assert not Path("pwned").exists()


# --- by the shell, and what it must not cost -------------------------------------------------------------------------

BY_THE_SHELL = [
    ("full --model {cut_weights} --preset lab", "truncated or damaged"),
    ("full --config {s_os_system.yaml}", "constructor for the tag"),
    ("full --forget {nested.jsonl}", "not valid JSON"),
    ("check {fine} --baseline {base_bits.json}", "are damaged"),
    ("report {deep_results}", "not valid JSON"),
]


@pytest.mark.parametrize(("command", "problem"), BY_THE_SHELL, ids=[row[0] for row in BY_THE_SHELL])
def test_the_same_in_a_process_of_its_own(place: Place, command: str, problem: str) -> None:
    typed = re.sub(r"\{([^{}]+)\}", lambda m: str(place.folder / m[1]), command)
    root = str(Path(__file__).resolve().parents[2])
    env = {k: v for k, v in os.environ.items() if k != "WPN_BENCH_DEBUG"} | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    program = [sys.executable, "-m", "wpn_bench", *shlex.split(typed)]
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert problem in line


def test_code_in_files_is_never_run(place: Place) -> None:
    """After all of the above: a pickle, two YAML tags and a model's own Python would each have made this file."""
    assert not list(place.folder.rglob("pwned"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        "full --preset lab --model {nan_weights} --out {out}",
        "full --config {s_methods_rate.yaml} --out {out}",
        "full --prompts in_domain={binary.jsonl} --out {out}",
        "full --judge-card {card.json} --out {out}",
        "report {metrics_text} --out {out}",
        "check {fine} --gates {gates_nan.yaml} --json {out}/x.json",
    ],
)
def test_nothing_is_computed_before_and_nothing_is_lost(
    place: Place, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    """The store stays as it was, no stage is run, and a folder that held something holds it still."""
    from wpn_bench.jobs import executor
    from wpn_bench.jobs.store import Store

    shelf = Store(tmp_path / "store")
    with contextlib.suppress(FileExistsError), shelf.build("train", "a" * 64, {}) as made:
        (made / "model.safetensors").write_bytes(b"hours of work")
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("an older run")
    monkeypatch.setenv("WPN_BENCH_STORE", str(shelf.root))
    ran: list[str] = []
    monkeypatch.setattr(executor, "execute_job", lambda store, job, *rest: ran.append(job.label))
    before = everything(tmp_path)
    typed = re.sub(r"\{([^{}]+)\}", lambda m: str(out if m[1] == "out" else place.folder / m[1]), command)
    assert cli(*shlex.split(typed)).code == 2
    assert ran == []
    after = everything(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert not any(name.startswith(("store/generate", "store/calibrate", "store/vet")) for name in after)
