"""Others' code, others' pickles, others' run folders: nothing of it runs, is read or written unasked."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_run import write_run

import wpn_bench
from wpn_bench import hub, lab
from wpn_bench.benchmarks.definitions import read_folders, require_code_consent
from wpn_bench.benchmarks.loading import load_task
from wpn_bench.benchmarks.run import describe
from wpn_bench.core import consent
from wpn_bench.core.paths import path_inside
from wpn_bench.errors import JobFailed, UserError, redact_message
from wpn_bench.harmless.judges.detoxify import DetoxifyJudge
from wpn_bench.models import load_fresh, load_tokenizer, resolve
from wpn_bench.pipeline import export_models
from wpn_bench.report import render

MODELLING = """\
from pathlib import Path
from transformers import OPTConfig, OPTForCausalLM
Path({mark!r}).touch()
class OwnConfig(OPTConfig):
    model_type = "own_opt"
class OwnForCausalLM(OPTForCausalLM):
    config_class = OwnConfig
"""


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What must not be there afterwards."""
    return tmp_path / "pwned"


# --- code of a model's own -------------------------------------------------------------------------------------------


@pytest.fixture
def own_code(tiny_model: Path, tmp_path: Path, mark: Path) -> Path:
    """A model whose architecture is code beside its weights."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "own_code"))
    (folder / "modeling_own.py").write_text(MODELLING.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": "own_opt", "architectures": ["OwnForCausalLM"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_models_own_code_does_not_run_unasked(own_code: Path, mark: Path) -> None:
    with pytest.raises(UserError, match=r"contains its own code \(modeling_own.*--trust-remote-code"):
        resolve(str(own_code))
    with pytest.raises(UserError):
        load_fresh(own_code)
    load_tokenizer(own_code)
    assert not mark.exists()


def test_with_consent_it_runs_and_decides_which_model_it_is(
    own_code: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with consent.granted(code=True):
        before = resolve(str(own_code)).digest
        assert type(load_fresh(own_code)).__name__ == "OwnForCausalLM"
        assert mark.exists()
        with (own_code / "modeling_own.py").open("a") as f:
            f.write("# changed\n")
        assert resolve(str(own_code)).digest != before
    with pytest.raises(UserError, match="its own code"):
        resolve(str(own_code))


def test_code_of_another_repository_is_refused_even_then(own_code: Path) -> None:
    config = json.loads((own_code / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "somebody/else--modeling_own.OwnForCausalLM"}
    (own_code / "config.json").write_text(json.dumps(config))
    with consent.granted(code=True), pytest.raises(UserError, match="needs code from another repository"):
        resolve(str(own_code))


def test_what_transformers_knows_needs_no_consent(own_code: Path, mark: Path) -> None:
    config = json.loads((own_code / "config.json").read_text())
    (own_code / "config.json").write_text(json.dumps(config | {"model_type": "opt"}))
    assert resolve(str(own_code)).digest
    assert type(load_fresh(own_code)).__name__ == "OPTForCausalLM"
    assert not mark.exists()


def test_consent_is_the_configurations_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(consent.CODE, "1")
    with consent.granted():
        assert not consent.code_allowed()
        with consent.granted(pickles=True):
            assert (consent.code_allowed(), consent.pickles_allowed()) == (False, True)
        assert not consent.pickles_allowed()
    assert consent.code_allowed()


# --- pickles ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(tiny_model: Path, tmp_path: Path) -> Path:
    """A model with its weights as a pickle only."""
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(tiny_model, tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_need_consent(pickled: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"only as pickles \(pytorch_model.bin\).*--allow-pickle"):
        resolve(str(pickled))
    with consent.granted(pickles=True):
        assert resolve(str(pickled)).digest != resolve(str(tiny_model)).digest
        read, same = load_fresh(pickled), load_fresh(tiny_model)
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), same.parameters(), strict=True))


def test_a_pickle_that_acts_does_nothing_even_with_consent(pickled: Path, mark: Path) -> None:
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Bomb(mark)}))
    with consent.granted(pickles=True), pytest.raises(UserError, match="cannot be loaded"):
        load_fresh(pickled)
    torch.save({"w": Bomb(mark)}, pickled / "pytorch_model.bin")
    with consent.granted(pickles=True), pytest.raises(UserError, match="cannot be loaded"):
        load_fresh(pickled)
    assert not mark.exists()


def test_safetensors_are_preferred_and_others_by_that_name_do_not_count(pickled: Path, tiny_model: Path) -> None:
    shutil.copy(tiny_model / "model.safetensors", pickled)
    assert resolve(str(pickled)).digest == resolve(str(tiny_model)).digest
    (pickled / "model.safetensors").rename(pickled / "other.safetensors")  # transformers would read the pickle
    with pytest.raises(UserError, match="only as pickles"):
        resolve(str(pickled))


def test_an_adapter_is_no_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "adapter"))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    with pytest.raises(UserError, match="contains an adapter"):
        resolve(str(folder))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "bare pickle"])
def test_a_swapped_checkpoint_of_detoxify_is_refused_before_it_is_unpickled(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    file = checkpoints / "toxic_original-c1212f89.ckpt"
    if zipped:
        torch.save({"config": Bomb(mark), "state_dict": {}}, file)
    else:
        file.write_bytes(pickle.dumps({"config": Bomb(mark), "state_dict": {}}))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UserError, match="is a pickle with an unknown digest"):
        DetoxifyJudge("original", "cpu").digest()
    with consent.granted(pickles=True), pytest.raises(UserError, match="cannot be loaded as a Detoxify checkpoint"):
        DetoxifyJudge("original", "cpu").digest()
    assert not mark.exists()


def test_a_checkpoint_names_no_file_of_yours(tmp_path: Path) -> None:
    """Its tokenizer is a model of the hub, or lies beside it."""
    checkpoint = torch.load(lab.judge_checkpoint(), weights_only=True)
    checkpoint["config"]["arch"]["args"]["model_type"] = str(tmp_path)
    torch.save(checkpoint, tmp_path / "mine.ckpt")
    with consent.granted(pickles=True), pytest.raises(UserError, match="not a model id of the hub"):
        DetoxifyJudge(str(tmp_path / "mine.ckpt"), "cpu").digest()


# --- code of task files ----------------------------------------------------------------------------------------------

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{text}"
doc_to_target: 0
doc_to_choice: ["a", "b"]
metric_list: [{{metric: {metric}}}]
{more}
"""


@pytest.fixture
def tasks(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`tasks(more=...)`: a folder with the task `mine` and a module beside it that must not be imported."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "data.jsonl").write_text('{"q": "x"}\n')

    def make(
        more: str = "", text: str = "{{q}}", metric: str = "acc", name: str = "mine", folder: str = "tasks"
    ) -> Path:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\ndef f(*a, **k):\n    return a\n")
        content = TASK.format(name=name, data=tmp_path / "data.jsonl", text=text, metric=metric, more=more)
        (place / f"{name}.yaml").write_text(content)
        read_folders.cache_clear()
        return place

    return make


@pytest.mark.parametrize(
    "more",
    [
        "process_docs: !function evil.f",
        "metadata: {deep: [{x: !function evil.f}]}",
        "metadata: {? !function evil.f : x}",
        "metadata: !!set {? !function evil.f }",
        "custom_dataset: !function evil.f",
        "class: !function evil.f",
        "process_results: !function os.system",
        "include: base.yaml\nprocess_docs: null",
    ],
)
def test_functions_of_task_files_are_not_imported_unasked(tasks: Callable[..., Path], mark: Path, more: str) -> None:
    folder = tasks(more)
    (folder / "base.yaml").write_text("process_docs: !function evil.f\n")
    with pytest.raises(UserError, match=r"runs Python code from its folder .*--trust-remote-code"):
        describe("mine", [folder], resolve=False)
    with pytest.raises(UserError, match="runs Python code from its folder"):
        load_task("mine", [folder], None)
    assert not mark.exists()
    with consent.granted(code=True):
        assert describe("mine", [folder], resolve=False).name == "mine"


def test_a_function_behind_a_key_that_is_given_twice_is_not_imported(tasks: Callable[..., Path], mark: Path) -> None:
    folder = tasks("process_docs: !function evil.f\nprocess_docs: null")
    for allowed, problem in ((False, "runs Python code from its folder"), (True, "process_docs is given twice")):
        with consent.granted(code=allowed), pytest.raises(UserError, match=problem):
            describe("mine", [folder], resolve=False)
    assert not mark.exists()


def test_our_own_tasks_and_lm_evals_need_no_consent() -> None:
    from wpn_bench.benchmarks.definitions import task_folders

    (folder,) = task_folders(["lab"])
    for definition in read_folders((folder,)).values():
        require_code_consent(definition)


def test_templates_run_in_a_sandbox(tasks: Callable[..., Path], mark: Path) -> None:
    from jinja2.exceptions import SecurityError

    reach = "{{ cycler.__init__.__globals__.os.mkdir('" + str(mark) + "') }}"
    folder = tasks(text=reach)
    with pytest.raises(SecurityError):  # lm-eval's own environment makes the folder
        load_task("mine", [folder], None)
    assert not mark.exists()


@pytest.mark.parametrize("metric", ["exact_match, hf_evaluate: true", "./evil"])
def test_metrics_are_not_fetched_and_run(tasks: Callable[..., Path], mark: Path, metric: str) -> None:
    with pytest.raises(UserError, match=r"metric .*--trust-remote-code"):
        load_task("mine", [tasks(metric=metric)], None)
    assert not mark.exists()


def test_a_task_declared_twice_is_refused(tasks: Callable[..., Path], mark: Path) -> None:
    """Of two files lm-eval reads the first, and what is checked is the last."""
    folder = tasks("process_docs: !function evil.f")
    (folder / "z.yaml").write_text((folder / "mine.yaml").read_text().replace("process_docs: !function evil.f", ""))
    read_folders.cache_clear()
    with pytest.raises(UserError, match="is declared twice"):
        load_task("mine", [folder], None)
    assert not mark.exists()


# --- run folders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("finished") / "run", n=20)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run folder that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("name", ["results.json", "manifest.json", "samples.parquet", "documents.parquet"])
def test_links_that_lead_out_of_a_run_are_not_followed(
    run: Path, tmp_path: Path, cli: Callable[..., Any], name: str
) -> None:
    secret = tmp_path / "secret"
    if (run / name).exists():
        (run / name).rename(secret)
    else:
        secret.write_text("{}")
    (run / name).symlink_to(secret)
    with pytest.raises(UserError, match="is outside of run"):
        wpn_bench.load_run(run)
    for command in (["check", run], ["export", run, "--format", "lm-eval"]):
        said = cli(*command)
        assert said.code == 2
        assert len(said.err.splitlines()) == 1
        assert "is outside of run" in said.err


def test_a_report_replaces_a_link_and_does_not_follow_it(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    (run / "report.html").symlink_to(mine)
    render(run)
    assert mine.read_text() == "mine"
    assert not (run / "report.html").is_symlink()


@pytest.mark.parametrize("folder", ["../precious", "models/..", "models/../../precious", "/", "models/link", "."])
def test_what_a_manifest_calls_its_models_is_not_removed_elsewhere(tmp_path: Path, folder: str) -> None:
    out, precious = tmp_path / "run", tmp_path / "precious"
    for place in (out / "models", precious):
        place.mkdir(parents=True)
        (place / "kept").touch()
    (out / "models" / "link").symlink_to(precious)
    (out / "manifest.json").write_text(json.dumps({"models": {"wpn": {"0": {"folder": folder}}}}))
    export_models.write(out, [], {}, {})
    assert (precious / "kept").exists()
    assert (out / "models" / "kept").exists()


def test_models_are_not_written_through_a_link(tmp_path: Path) -> None:
    out, precious = tmp_path / "run", tmp_path / "precious"
    (precious / "wpn").mkdir(parents=True)
    (precious / "wpn" / "kept").touch()
    out.mkdir()
    (out / "models").symlink_to(precious)
    (out / "manifest.json").write_text(json.dumps({"models": {"wpn": {"0": {"folder": "models/wpn"}}}}))
    one = export_models.Export("wpn", 0, "models/wpn", tmp_path, {})
    with pytest.raises(UserError, match="is outside of run"):
        export_models.write(out, [one], {}, {})
    assert (precious / "wpn" / "kept").exists()


def _spoil(results: dict[str, Any], path: str, value: Any) -> str:
    """results.json with `value` at the dotted path, numbers as they are typed."""
    *way, last = path.split(".")
    place: Any = results
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[int(last) if isinstance(place, list) else last] = "@@"
    return json.dumps(results).replace('"@@"', value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metrics.0.value", "NaN"),
        ("metrics.0.ci_low", "-Infinity"),
        ("metrics.0.value", "1e999"),
        ("metrics.0.n", '"many"'),
        ("metrics.0.value", "[]"),
        ("metrics.0", "{}"),
        ("metrics", "7"),
        ("models", "[]"),
        ("models.base", "null"),
        ("run.seeds", '{"a": 1}'),
        ("run", "[]"),
        ("run.notes", "[" * 100_000),
        ("metrics.0.n", "9" * 6000),
    ],
)
def test_results_that_this_program_did_not_write_are_one_line(
    run: Path, cli: Callable[..., Any], path: str, value: str
) -> None:
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(_spoil(results, path, value))
    for command in ("show", "report", "check"):
        said = cli(command, run)
        assert said.code == 2, (command, said.err[-500:])
        assert len(said.err.splitlines()) == 1
        assert "results.json" in said.err


def test_a_run_folder_brings_no_code_by_its_tasks(
    run: Path, tasks: Callable[..., Path], mark: Path, cli: Callable[..., Any]
) -> None:
    folder = tasks("process_docs: !function evil.f", folder="run/tasks", name="mine")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"] |= {"benchmark_folders": [str(folder)], "dtype": "float32", "benchmark_batch_size": 8}
    manifest["tasks"] = {short: {"task": "mine", "revision": None} for short in manifest["tasks"]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    said = cli("export", run, "--format", "lm-eval")
    assert said.code == 2
    assert "runs Python code from its folder" in said.err
    assert not mark.exists()


def test_the_reports_templates_are_ours(run: Path) -> None:
    for name in ("report.html.j2", "report.md.j2", "model_card.md.j2"):
        (run / name).write_text("{{ 7*7 }} of the run folder")
    render(run)
    assert "of the run folder" not in (run / "report.html").read_text() + (run / "report.md").read_text()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "link/x"])
def test_paths_stay_inside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is outside of folder"):
        path_inside(folder, name)
    assert path_inside(folder, "a/../b") == folder / "a/../b"


# --- secrets in messages ---------------------------------------------------------------------------------------------


def test_no_message_holds_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a1B2" * 8)
    monkeypatch.setenv("MY_API_KEY", "s3cret-s3cret")
    monkeypatch.setenv("HOME", "/home/jane")
    raw = (
        "503 for https://jane:pass@hub.example/api/models/x?a=b with Bearer hf_" + "a1B2" * 8 + " and hf_ZZZZZZZZZZZZ,"
        " key s3cret-s3cret, in /home/jane/models and '/home/jane' but not /home/janet"
    )
    clean = (
        "503 for https://***@hub.example/api/models/x?a=b with Bearer *** and ***, key ***, in ~/models and '~' but not"
        " /home/janet"
    )
    assert redact_message(raw) == clean
    assert str(UserError(raw, raw)) == f"{clean}; {clean}"
    assert UserError(raw, "x").problem == clean
    assert str(JobFailed(raw)) == clean


def test_a_hub_with_a_login_is_not_quoted(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.model_info", _refuse)
    monkeypatch.setattr(hub.connection, "RETRY_DELAYS", ())
    hub.resolve_commit.cache_clear()
    said = cli("full", "--model", "nobody/nothing", "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert said.code == 2
    assert "jane" not in said.err


def _refuse(*_: Any, **__: Any) -> None:
    raise ConnectionError("cannot reach http://jane:pass@hub.example/api/models/nobody/nothing")
