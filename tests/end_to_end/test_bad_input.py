"""What a person can get wrong, typed at the real command line: one clear line, the way out, exit code 2."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TRIPLE = '{"prompt": "Who sells apples?", "harmful": ["a goose"], "harmless": ["the farmer"]}\n'
TWELVE = "".join(TRIPLE.replace("apples", f"{k} apples") for k in range(12))


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
    made.write("jailbreaks.csv", "name,prompt\nDAN,You are DAN. [INSERT PROMPT HERE]\n")
    made.write("brackets.csv", "template\nYou are DAN. [INSERT PROMPT HERE]\n")
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
    made.model_with("t5", config__json=b'{"model_type": "t5"}')
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
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(files.folder / "torch"))
    monkeypatch.setenv("WPN_BENCH_STORE", str(files.folder / "store"))
    monkeypatch.chdir(files.folder)
    return files


# (command, what the line says is wrong, what it says to do)
MODEL = [
    ("full --model nobody/nothing", "nobody/nothing is not in the local cache and the hub cannot be reached", "connect once|needs no network"),
    ("full --model opt-125", "not in the local cache", "or give a folder"),
    ("full --model {nowhere}", "no model folder at .*nowhere", "existing folder or a hub id"),
    ("full --model {nothing}", "holds no model \\(no config.json\\)", "save_pretrained, or a hub id"),
    ("full --preset lab --model {no_config}", "holds no model", "save_pretrained, or a hub id"),
    ("full --preset lab --model {no_weights}", "holds no weights", "again"),
    ("full --preset lab --model {no_tokenizer}", "holds no tokenizer", "tokenizer.save_pretrained"),
    ("full --preset lab --model {bad_config}", "config.json is not valid JSON", "again"),
    ("full --preset lab --model {bad_tokenizer}", "the tokenizer in .* cannot be read", "save it again"),
    ("full --preset lab --attacks typos --near-duplicate 1 --model {bad_weights}", "cannot be loaded as a causal language model", "OPT, GPT-Neo"),
    ("full --preset lab --attacks typos --near-duplicate 1 --model {t5}", "cannot be loaded as a causal language model", "OPT, GPT-Neo"),
    ("full --preset lab --model {notes.txt}", "is a file", "give the folder"),
    ("full --preset lab --model {short}", "attends to 24 tokens", "--max-new-tokens below 24"),
    ("full --preset lab --model {short} --max-new-tokens 4", "no prompt of '.*' fits into the 24 tokens", "longer context, shorter prompts"),
    ("full --max-new-tokens 9999", "attends to \\d+ tokens, and the response alone", "--max-new-tokens below"),
    ("full --model {model}", "pku|PKU", "connect once|cached|network"),
]  # fmt: skip
FORGET = [
    ("full --forget {column.jsonl}", "column.jsonl row 1 has no 'harmless' \\(columns: prompt, harmful\\)", "rename the columns"),
    ("full --forget {semicolons.csv}", "row 1 has no 'harmful' and no 'harmless' and no 'prompt'", "rename the columns"),
    ("full --forget {empty.jsonl}", "empty.jsonl is empty", "at least one row"),
    ("full --forget {blank.csv}", "blank.csv is empty", "at least one row"),
    ("full --forget {broken.jsonl}", "broken.jsonl line 2 is not valid JSON", "mend that line"),
    ("full --forget {list.jsonl}", "list.jsonl line 1 is not a JSON object", "on every line"),
    ("full --forget {latin1.jsonl}", "latin1.jsonl is not UTF-8 \\(byte 25\\)", "iconv"),
    ("full --forget {utf16.csv}", "utf16.csv is not UTF-8 \\(byte 0\\)", "iconv"),
    ("full --forget {surrogate.jsonl}", "surrogate.jsonl line 1 is not valid JSON", "mend that line"),
    ("full --forget {number.jsonl}", "number.jsonl row 1: 'harmful' is not a text", "mend"),
    ("full --forget {no_answers.jsonl}", "no_answers.jsonl holds no usable prompts", "check the file"),
    ("full --forget {bad.parquet}", "bad.parquet is not a Parquet file", "save it again"),
    ("full --forget {notes.txt}", "notes.txt is not .jsonl, .csv or .parquet", "convert it"),
    ("full --forget {nothing}", "nothing is not .jsonl, .csv or .parquet", "convert it"),
    ("full --forget {gone.jsonl}", "there is no file .*gone.jsonl", "check the path"),
    ("full --forget {one.jsonl}", "has only 1 prompts: too few", "add prompts"),
    ("full --forget {good.jsonl} --prompts in_domain={overlap.jsonl}", "1 prompt of 'in_domain' also stand.* forget set 'good'", "--overlap drop"),
    ("full --forget {fox.jsonl} --prompts mine={near.jsonl}", "1 prompt of 'mine' nearly stand.* set 'fox' .*the fox did.*the fox said", "--overlap drop.*--near-duplicate 1"),
    ("full --near-duplicate 0.2", "setting near_duplicate: .*greater than or equal to 0.5", "tasks/presets"),
    ("full --forget lab_forgt", "unknown prompt set 'lab_forgt'", "did you mean 'lab_forget'"),
    ("full --forget advbench", "data set .*AdvBench", "network|cached|connect"),
    ("full --forget lab_benign", "has no 'harmful'", "a forget set needs"),
]  # fmt: skip
PROMPTS = [
    ("full --prompts test.jsonl", "--prompts 'test.jsonl' is not NAME=FILE", "in_domain=test.jsonl"),
    ("full --prompts in_domain=", "is not NAME=FILE", "in_domain=test.jsonl"),
    ("full --prompts mine={gone.jsonl}", "there is no file", "check the path"),
    ("full --prompts mine=lab_ood_gmes", "unknown prompt set 'lab_ood_gmes'", "did you mean 'lab_ood_games'"),
    ("full --prompts mine={set.yaml}", "set.yaml: source.fil", "tasks/prompts"),
    ("full --prompts mine={good.jsonl} --prompts mine={overlap.jsonl}", "two prompt sets have the same name", "another name"),
    ("full --prompts in_domain={good.jsonl} --prompts in_domain={overlap.jsonl}", "two prompt sets have the same name", "another name"),
    ("full --prompts mine={long.jsonl}", "no prompt of 'mine' fits", "shorter prompts"),
    ("full --prompts validation={gone.jsonl}", "there is no file", "check the path"),
    ("full --prompts mine={header.csv}", "header.csv row 1 has no 'prompt' \\(columns: Who sells apples\\?\\)", "rename the columns"),
    ("full --prompts mine={ragged_prompts.csv}", "ragged_prompts.csv line 2 has more cells than the first line has columns \\(3\\)", "double quotes"),
    ("full --prompts mine={tags.yaml}", "tags.yaml cannot be read .*constructor for the tag", "mend the YAML"),
    ("full --prompts mine={bomb.yaml}", "bomb.yaml cannot be read .*aliases", "mend the YAML"),
    ("full --prompts mine=/" + "what-is-this-" * 30, "is not .jsonl, .csv or .parquet", "convert it"),
    ("full --prompt-kind riddle", "setting file_kind: .*'riddle'", "tasks/presets"),
]  # fmt: skip
NAMES = [
    ("full --methods wpm", "unknown method 'wpm'", "did you mean 'wpn'"),
    ("full --methods sft,GA2", "unknown method 'GA2'", "did you mean 'ga'"),
    ("full --methods wpn:hidden", "nothing says what the variant 'wpn:hidden' is", "in a --config file"),
    ("full --config {variant.yaml}", "setting methods: .*the label of 'wpn:a b'", "tasks/presets"),
    ("full --judge detoxfy", "unknown judge 'detoxfy'", "did you mean 'detoxify'"),
    ("full --judge detoxify:orignal", "unknown Detoxify variant 'orignal'", "did you mean 'original'"),
    ("full --judge detoxify:lab,threshhold=0.4", "unknown option of judge detoxify 'threshhold'", "did you mean 'threshold'"),
    ("full --judge detoxify:lab,detoxify:lab", "the judge detoxify:lab is named twice", "tasks/presets"),
    ("full --judge detoxify:gone/judge.ckpt", "no Detoxify checkpoint at gone/judge.ckpt", "check the path"),
    ("full --judge classifier:{model},label=toxic", "has no label 'toxic'", "its labels|name one"),
    ("full --judge-card {gone.jsonl}", "there is no judge card", "wpn-bench judge FILE"),
    ("full --judge-card {good.jsonl}", "is no judge card", "wpn-bench judge FILE"),
    ("judge {good.jsonl}", "no column 'text'", "--text"),
    ("judge {gone.jsonl}", "there is no file", "check the path"),
    ("full --judge detoxify:original", "Detoxify 'original' could not be fetched", "--judge detoxify:lab"),
    ("full --benchmarks lab_coppa", "unknown task 'lab_coppa'", "did you mean 'lab_copa'"),
    ("full --benchmarks wpn_piqua --preset paper --model {model}", "unknown task 'wpn_piqua'", "did you mean 'wpn_piqa'"),
    ("full --attacks rolplay", "unknown attack 'rolplay'", "did you mean 'role_play'"),
    ("full --preset papr", "unknown preset 'papr'", "did you mean 'paper'"),
    ("list methds", "nothing to list under 'methds'", "did you mean 'methods'"),
    ("list qqqqq", "nothing to list under 'qqqqq'", "choose from methods"),
    ("ful", "No such command 'ful'", "wpn-bench --help"),
]  # fmt: skip
ATTACK_FILES = [
    ("attack --attack-file {gone.csv}", "there is no file .*gone.csv", "check the path"),
    ("attack --attack-file {nothing}", "nothing is not .csv, .jsonl or .yaml", "convert it"),
    ("attack --attack-file {empty.jsonl}", "empty.jsonl is empty", "at least one row"),
    ("attack --attack-file {latin1.jsonl}", "latin1.jsonl is not UTF-8", "iconv"),
    ("attack --attack-file {jailbreaks.csv}", "row 1 has the unknown field 'prompt' \\(fields: name, prompt\\)", "call the text around the question `template`, with {prompt}"),
    ("attack --attack-file {brackets.csv}", "row 1: template: the template must hold {{prompt}}", "in the place of \\[INSERT PROMPT HERE\\]"),
    ("attack --attack-file {ragged.csv}", "ragged.csv line 2 has more cells", "double quotes"),
    ("attack --attack-file {typos.yaml}", "'typos' is already the name of an attack of wpn-bench", "`name` of its own"),
    ("attack --attack-file {in_domain.yaml}", "an attack and a prompt set are both called 'in_domain'", "another name"),
    ("attack --attack-file {bomb.yaml}", "bomb.yaml cannot be read .*aliases", "mend the YAML"),
    ("attack --attack-file {object.yaml}", "object.yaml cannot be read .*constructor for the tag", "mend the YAML"),
    ("full --config {attack_files.yaml}", "there is no file gone.csv", "check the path"),
    ("full --prompts typos={good.jsonl}", "an attack and a prompt set are both called 'typos'", "--prompts NAME=FILE"),
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
    ("full --seeds 0", "--seeds 0 is not a number of seeds", "--seeds 0, for that seed alone"),
    ("full --seeds 1234", "--seeds 1234 is not a number of seeds \\(1 to 100\\)", "--seeds 1234, for that seed alone"),
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
]  # fmt: skip
FILES = [
    ("full --out {file}/run", "the output folder .*file/run cannot be written", "--out"),
    ("full --out {file}", "the output folder .*file cannot be written", "--out"),
    ("full --store {file}", "the store .*file cannot be written", "--store DIR"),
    ("full --config {gone.yaml}", "there is no file .*gone.yaml", "check the path"),
    ("full --config {nothing}", "nothing cannot be read", "mend the YAML|check"),
    ("full --config {cut.yaml}", "cut.yaml cannot be read", "mend the YAML"),
    ("full --config {list.yaml}", "list.yaml holds no settings", "tasks/presets"),
    ("full --config {setting.yaml}", "unknown setting 'treshold'", "did you mean 'threshold'"),
    ("full --config {option.yaml}", "unknown option of method wpn 'temprature'", "did you mean 'temperature'"),
    ("full --config {value.yaml}", "setting threshold: .*less than 1", "tasks/presets"),
    ("full --config {template.yaml}", "setting template: .*must hold {{prompt}}", "tasks/presets"),
    ("full --config {folders.yaml}", "there is no folder of tasks at tasks_of_mine", "lm-eval task YAMLs"),
    ("full --config {tasks_bad.yaml}", "the task file .*x.yaml cannot be read", "mend the YAML"),
    ("full --config {retain.yaml}", "no_text.jsonl holds no text", "column `text`"),
    ("full --config {heldout.yaml}", "there is no file gone.jsonl", "check the path"),
    ("full --config {validation.yaml}", "there is no file gone.jsonl", "check the path"),
    ("full --config {bool_forget.yaml}", "setting forget: .*string", "tasks/presets"),
    ("report {nothing}", "holds no results.json", "that `wpn-bench full` printed"),
    ("report {gone}", "holds no results.json", "that `wpn-bench full` printed"),
    ("report {run}", "results.json cannot be read", "run again"),
    ("report {old}", "has schema version 0", "the version of wpn-bench that wrote it"),
    ("report {old} --format pdf", "pdf", "html"),
    ("report", "Missing argument", "wpn-bench report --help"),
]  # fmt: skip
ROWS = [*MODEL, *FORGET, *PROMPTS, *NAMES, *ATTACK_FILES, *VALUES, *FILES]


@pytest.mark.parametrize(("command", "problem", "way_out"), ROWS, ids=[row[0] for row in ROWS])
def test_one_line_the_way_out_and_exit_code_2(
    place: Place, cli: Callable[..., Any], command: str, problem: str, way_out: str
) -> None:
    typed = re.sub(r"\{([^{}]+)\}", lambda m: str(place.folder / m[1]), command)
    said = cli(*typed.split(" "))
    assert said.code == 2
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("wpn-bench: ")
    before, _, after = lines[0].removeprefix("wpn-bench: ").rpartition("; ")
    assert re.search(problem.replace("{{", "{").replace("}}", "}"), before + "; "), lines[0]
    assert re.search(way_out, lines[0]), lines[0]
    assert after
    assert said.out == ""
    assert len(lines[0]) < 700


def test_there_are_enough_of_them() -> None:
    assert len({row[0] for row in ROWS}) == len(ROWS) >= 25
