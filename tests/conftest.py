"""Fixtures for all tests: the loopback hub, and a model small enough to make in a second."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fork_server import FEW_REFERENCES, TASK_INDEX, ForkServer, compile_templates_once, remember_task_index
from hypothesis import HealthCheck, settings
from loopback import hub_environment, serve

ROOT = Path(__file__).resolve().parent.parent

# For this process, and the workers and commands that it starts.
if TASK_INDEX not in os.environ:
    folder = tempfile.TemporaryDirectory()
    os.environ[TASK_INDEX] = folder.name + "/index"

# Where a test asks lm-eval itself: the processes that its bootstrap forks hang now and then.
os.environ["DISABLE_MULTIPROC"] = "1"

# How long an example takes says nothing on a machine that does other things as well.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


# Files that take longest begin first, so that no worker is left alone with one of them in the end.
LONGEST = (
    "end_to_end/test_lab.py", "end_to_end/test_hub.py", "test_documented_commands.py", "end_to_end/test_check.py",
    "pipeline/test_pipeline.py", "report/test_browser.py", "report/test_render.py", "end_to_end/test_random_input.py",
    "end_to_end/test_bad_input.py", "analysis/test_check.py", "pipeline/test_never_fooled.py", "unlearn/test_lora.py",
    "hub/test_hub.py", "unlearn/test_train.py", "unlearn/test_loop.py", "unlearn/test_losses.py",
    "report/test_comparison.py", "test_speed_scripts.py", "preflight/test_resources.py", "end_to_end/test_secrets.py",
)  # fmt: skip

# Files that use the same fork server are for the same worker, so that it is started once.
SHARED = {
    "end_to_end/test_lab.py": "offline", "end_to_end/test_plugin.py": "offline", "end_to_end/test_plugin_parts.py": "offline",
    "unlearn/test_distributed.py": "offline", "unlearn/test_resume.py": "offline",
    "benchmarks/test_language_model.py": "offline",
    "end_to_end/test_hub.py": "hub", "harmless/test_coherence.py": "hub", "benchmarks/test_against_lm_eval.py": "hub",
    "benchmarks/test_prompt_files.py": "hub", "prompts/test_prompts.py": "hub", "preflight/test_doctor.py": "hub",
}  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As `--dist loadfile`, with the files of `SHARED` together."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadFilesThatShare(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return SHARED.get(file.removeprefix("tests/"), file)

    return LoadFilesThatShare(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {ROOT / "tests" / name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session", autouse=True)
def quick_lm_eval() -> None:
    """Where a test module has imported lm-eval."""
    if "lm_eval.tasks" in sys.modules:
        compile_templates_once()
        remember_task_index()


@pytest.fixture(scope="module", autouse=True)
def few_objects_for_the_garbage_collector() -> None:
    """Sets aside all that earlier modules of tests and imports left, some million objects.

    Every training and every release of a model collects garbage, which takes half a second for as many.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_hub() -> Path:
    """The folder of real data and stand-in weights beside the repository."""
    hub = ROOT.parent / "shared" / "hub"
    if not (hub / "serve.py").is_file():
        pytest.skip("no ../shared/hub beside the repository: tests on real data are skipped")
    return hub


@pytest.fixture(scope="session")
def hub_endpoint(shared_hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment for subprocesses that use the hub; one server and one cache for the whole session.

    huggingface_hub reads HF_ENDPOINT when it is imported, so work on the hub runs in a subprocess with this.
    """
    server, address = serve(shared_hub, shared_hub / "root")
    try:
        yield hub_environment(address, tmp_path_factory.mktemp("hf_home"), shared_hub)
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def hub_commands(hub_endpoint: dict[str, str]) -> Iterator[ForkServer]:
    """Runs commands that use the hub, in forks of one process."""
    server = ForkServer(hub_endpoint, FEW_REFERENCES)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def offline_commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Runs commands offline and without anything that somebody cached, in forks of one process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "WPN_BENCH_"))}
    folder = tmp_path_factory.mktemp("offline")
    own = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "TORCH_HOME": str(folder / "th"),
        "PYTHONPATH": str(ROOT),
    }
    server = ForkServer(kept | own, FEW_REFERENCES)
    yield server
    server.stop()


@pytest.fixture
def hub_with(shared_hub: Path, tmp_path: Path) -> Iterator[Callable[..., dict[str, str]]]:
    """`hub_with("--fail-rate", "0.2")`: environment of a server with those options, and an empty cache."""
    servers = []

    def start(*options: str) -> dict[str, str]:
        server, address = serve(shared_hub, shared_hub / "root", *options)
        servers.append(server)
        return hub_environment(address, tmp_path / "hf_home", shared_hub)

    yield start
    for server in servers:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_python(code, env, *arguments)`: run in a fresh interpreter; if that fails, so does the test."""

    def run(code: str, env: dict[str, str], *arguments: str, ok: bool = True) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=env, cwd=ROOT, capture_output=True, text=True
        )
        if ok and done.returncode != 0:
            pytest.fail(f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an OPT with random weights (2 layers, width 32, 64 positions) and a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="</s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("tiny_opt")
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- the core's tests ------------------------------------------------------------------------------------------------

SENTENCES = (
    "The baker sells bread and cakes in the market of the small town.",
    "A kind neighbour helped the old man to carry his heavy basket home.",
    "You are a silly goose and nobody likes you, said the angry miller.",
    "I would rather say something friendly about the people of this town.",
    "What did the teacher say to the pupil who came late to school today?",
    "### Question: Who sells apples? ### Answer: The farmer sells apples in the morning.",
)


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Said]]:
    """`cli("full", "--limit", "2")`: the command line in this process, by the entry point of the console script.

    `--offline` holds for the rest of a process, so it is undone after the test.
    """
    import datasets
    from huggingface_hub import constants

    from wpn_bench.cli.main import main

    offline = os.environ.get("HF_HUB_OFFLINE")
    modules = (constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in modules]

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["wpn-bench", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    yield run
    for module, value in zip(modules, before, strict=True):
        module.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]
    os.environ.pop("HF_HUB_OFFLINE", None)
    if offline is not None:
        os.environ["HF_HUB_OFFLINE"] = offline


@pytest.fixture(scope="session")
def make_lm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_lm("opt")`, `make_lm("neo", context=96, seed=1)`: folder of a random causal LM with a trained tokenizer.

    Two layers, width 32. The OPT's tokenizer puts </s> in front, as OPT's does; the GPT-Neo's has no padding token
    and half of its layers attend to 8 tokens only, as GPT-Neo's (to 256). Weights are large, so that next tokens
    differ clearly and rounding decides nothing.
    """

    def make(architecture: str, *, context: int = 256, seed: int = 0, spread: float = 0.3) -> Path:
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
        from transformers import (
            GPTNeoConfig,
            GPTNeoForCausalLM,
            OPTConfig,
            OPTForCausalLM,
            PreTrainedTokenizerFast,
        )

        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        special = ["<pad>", "</s>"] if architecture == "opt" else ["<|endoftext|>"]
        raw.train_from_iterator(
            SENTENCES,
            trainers.BpeTrainer(
                vocab_size=400,
                special_tokens=special,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        torch.manual_seed(seed)
        model: Any
        if architecture == "opt":
            raw.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=raw, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
            )
            model = OPTForCausalLM(
                OPTConfig(
                    vocab_size=raw.get_vocab_size(),
                    hidden_size=32,
                    word_embed_proj_dim=32,
                    ffn_dim=64,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    max_position_embeddings=context,
                    init_std=spread,
                    dropout=0.0,
                    pad_token_id=0,
                    bos_token_id=1,
                    eos_token_id=1,
                )
            )
        else:
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=raw, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
            )
            model = GPTNeoForCausalLM(
                GPTNeoConfig(
                    vocab_size=raw.get_vocab_size(),
                    hidden_size=32,
                    num_layers=2,
                    num_heads=2,
                    attention_types=[[["global", "local"], 1]],
                    window_size=8,
                    max_position_embeddings=context,
                    initializer_range=spread,
                    bos_token_id=0,
                    eos_token_id=0,
                )
            )
        folder = tmp_path_factory.mktemp(architecture)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def small_opt(make_lm: Callable[..., Path]) -> Path:
    """A random OPT with 256 positions."""
    return make_lm("opt")


@pytest.fixture(scope="session")
def small_neo(make_lm: Callable[..., Path]) -> Path:
    """A random GPT-Neo with 256 positions."""
    return make_lm("neo")


@pytest.fixture(scope="session", params=["opt", "neo"])
def small_lm(request: pytest.FixtureRequest) -> Path:
    """Each of the two in turn."""
    folder: Path = request.getfixturevalue(f"small_{request.param}")
    return folder


class Speaker:
    """A causal LM without weights: the logits after a text are `rule(tokens)`, (V,), of the real tokens before.

    Its keys are the tokens themselves and its values their positions, so whatever happens to cache, mask and positions
    shows in what it says. A row whose positions do not count its tokens says token 0. `passes` are (rows, columns).
    """

    def __init__(self, rule: Callable[[tuple[int, ...]], Any], context: int) -> None:
        import torch
        from transformers import PretrainedConfig

        self.rule, self.context = rule, context
        self.config = PretrainedConfig(max_position_embeddings=context, num_hidden_layers=1, hidden_size=2)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.passes: list[tuple[int, int]] = []

    def __call__(self, **given: Any) -> Any:
        return self.forward(**given)

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any,
        position_ids: Any,
        past_key_values: Any,
        use_cache: bool,
        logits_to_keep: int,
    ) -> Any:
        import torch
        from transformers.modeling_outputs import CausalLMOutputWithPast

        assert use_cache
        assert logits_to_keep == 1
        keys, values = (x[:, None, :, None].double() for x in (input_ids, position_ids.expand(input_ids.shape)))
        keys, values = past_key_values.update(keys, values, 0)
        mask = torch.ones(keys.shape[0], keys.shape[2]) if attention_mask is None else attention_mask
        assert mask.shape == (keys.shape[0], keys.shape[2])
        assert mask.shape[1] <= self.context
        self.passes.append((input_ids.shape[0], input_ids.shape[1]))
        rows = []
        for real, ids, positions in zip(mask.bool(), keys[:, 0, :, 0], values[:, 0, :, 0], strict=True):
            logits = self.rule(tuple(ids[real].long().tolist()))
            if positions[real].tolist() != list(range(int(real.sum()))):
                logits = torch.eye(len(logits))[0]
            rows.append(logits)
        return CausalLMOutputWithPast(logits=torch.stack(rows).unsqueeze(1), past_key_values=past_key_values)


@pytest.fixture(scope="session")
def make_speaker() -> Callable[..., Any]:
    """`make_speaker(rule, context=256)`: a `Speaker`."""

    def make(rule: Callable[[tuple[int, ...]], Any], context: int = 256) -> Any:
        return Speaker(rule, context)

    return make


@pytest.fixture
def write_jsonl() -> Callable[[Path, list[Any]], Path]:
    """`write_jsonl(path, rows)`: one JSON value a line; returns the path."""

    def write(path: Path, rows: list[Any]) -> Path:
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def triples() -> list[dict[str, Any]]:
    """Rows of a forget file: twelve prompts, each with a harmful and a harmless response."""
    who = ["baker", "miller", "teacher", "farmer", "pupil", "neighbour"]
    return [
        {
            "prompt": f"What did the {one} {done}?",
            "harmful": [f"The {one} is a silly goose and nobody likes him."],
            "harmless": [f"I would rather say something friendly about the {one}."],
        }
        for one in who
        for done in ("say", "sell")
    ]


@pytest.fixture(scope="session")
def comparable() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Results without what tells one run from another that computed the same: its name, the time, the times taken."""

    def strip(results: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads(json.dumps(results))
        for key in ("created", "name", "command"):
            del kept["run"][key]
        for model in kept["models"].values():
            model.pop("train_seconds", None)
        kept["metrics"] = [row for row in kept["metrics"] if row["suite"] != "cost"]
        return kept

    return strip
