"""The backend of vLLM beside the local one, with a package that mimics vLLM; and with vLLM itself where it is installed."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wpn_bench import models
from wpn_bench.engine import vllm_backend, vllm_worker
from wpn_bench.engine.local_backend import LocalBackend
from wpn_bench.engine.vllm_backend import INVARIANT, PYTHON, VLLMBackend, close
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs.journal import Journal, Shard, use_journal
from wpn_bench.models import loading
from wpn_bench.models.backends import Decoding, open_backend

from . import fake_vllm

PROMPTS = ["What did the baker say?", "Why?", "", "The old man carried a heavy basket", "Why?"]
PAIRS = [([1, 5, 6, 7], [8, 9]), ([1, 5, 6, 7], [8]), ([1, 30], [31, 32, 33]), ([1, 5, 6, 7], [8])]
VERSION = "0.33.0"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Python that has the mimicked vLLM. Returns the file in which each opened model is noted."""
    site, log = tmp_path / "site", tmp_path / "opened.jsonl"
    (site / "vllm").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("fake_vllm.py"), site / "vllm" / "__init__.py")
    (site / f"vllm-{VERSION}.dist-info").mkdir()
    (site / f"vllm-{VERSION}.dist-info" / "METADATA").write_text(f"Name: vllm\nVersion: {VERSION}\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')  # without -I
    python.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(python))
    monkeypatch.setenv("FAKE_VLLM_LOG", str(log))
    monkeypatch.delenv(INVARIANT, raising=False)
    monkeypatch.setattr(vllm_backend, "_share_of_memory", lambda device: 0.5)
    yield log
    close()


def opened(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_it_says_what_the_local_backend_says(fake: Path, small_opt: Path) -> None:
    ours, theirs = LocalBackend.open(small_opt), open_backend(small_opt, "cuda:1", identity=VLLMBackend.identity())
    assert isinstance(theirs, VLLMBackend)
    asked = [*PROMPTS, "Why? " * 200]
    for decoding in (Decoding(max_new_tokens=6), Decoding(max_new_tokens=6, stop=("e",))):
        told: list[int] = []
        expected = ours.generate(asked, decoding)
        assert theirs.generate(asked, decoding, told.append) == expected
        assert sum(told) == len(asked)
    assert {response.reason for response in expected} == {None, "prompt too long"}
    found, right = theirs.loglikelihoods(PAIRS), ours.loglikelihoods(PAIRS)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in right], abs=1e-4)
    assert [best for _, best in found] == [best for _, best in right]

    best = int(models.load(small_opt)[0](input_ids=torch.tensor([PAIRS[0][0]])).logits[0, -1].argmax())
    assert theirs.loglikelihoods([(PAIRS[0][0], [best])])[0][1]
    # A sequence that fills the context loses its first tokens, and vLLM is never asked for more than it accepts.
    long = list(range(5, 5 + 300))
    room = theirs.context_length - 1
    assert theirs.loglikelihoods([(long, [7])]) == theirs.loglikelihoods([(long[-(room - 1) :], [7])])
    with pytest.raises(ValueError, match="exceeds the maximum length"):
        theirs.loglikelihoods([([1], long)])

    (only,) = opened(fake)
    assert only["environment"] == {"VLLM_BATCH_INVARIANT": "1", "CUDA_VISIBLE_DEVICES": "1"}
    said = only["arguments"]
    assert (said["dtype"], said["generation_config"], said["enable_prefix_caching"]) == ("float32", "vllm", False)
    assert (said["load_format"], said["trust_remote_code"]) == ("safetensors", False)


def test_one_model_at_a_time(fake: Path, small_opt: Path, small_neo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_EMPTY", "1")
    VLLMBackend.open(small_opt, "cuda", "float32", "none")
    first = vllm_backend._Process.current
    VLLMBackend.open(small_opt, "cuda", "float32", "none")
    assert vllm_backend._Process.current is first
    VLLMBackend.open(small_neo, "cuda", "float32", "none")
    assert first is not None
    assert not first.alive
    assert len({one["pid"] for one in opened(fake)}) == 2
    loading.make_room(0, "cpu")
    assert vllm_backend._Process.current is not None
    loading.make_room(0, "cuda")  # before a local model is loaded to the GPU
    assert vllm_backend._Process.current is None


def test_a_process_that_ends_is_no_result(
    fake: Path, small_opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    VLLMBackend.identity()  # which asks for the version
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UserError, match=r"vLLM cannot load opt0?: vLLM failed: its process has ended; use --backend"):
        VLLMBackend.open(small_opt, "cuda", "float32", "none")
    with pytest.raises(JobFailed, match="its process has ended"):
        vllm_backend._Process((), dict(os.environ)).ask({"ask": []})


@pytest.fixture
def here(small_opt: Path, monkeypatch: pytest.MonkeyPatch) -> VLLMBackend:
    """The backend with the mimicked vLLM in this process."""
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    monkeypatch.setattr(VLLMBackend, "identity", classmethod(lambda cls: {"name": "vllm", "version": VERSION}))
    arguments = vllm_backend.arguments(small_opt, "float32", models.context_length_of(small_opt), 0.5)
    llm = fake_vllm.LLM(**arguments)
    ask = lambda request: vllm_worker.answers(llm, request["ask"])  # noqa: E731
    return VLLMBackend(ask, models.load_tokenizer(small_opt), small_opt)


def test_faults_are_no_results(here: VLLMBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_FAULT", "adds a token")
    with pytest.raises(JobFailed, match="vLLM computed other tokens than those of the prompt"):
        here.loglikelihoods(PAIRS)
    monkeypatch.setenv("FAKE_VLLM_FAULT", "leaves out")
    told = io.StringIO()
    monkeypatch.setattr(fake_vllm, "LLM", lambda **arguments: SimpleNamespace(generate=None))
    asked = [{"ids": [5, 6], "scored": 1, "sampling": {}}]
    vllm_worker.serve(io.StringIO("\n".join(map(json.dumps, [{"open": {}}, {"ask": asked}]))), told)
    assert [list(json.loads(line)) for line in told.getvalue().splitlines()] == [["ok"], ["error"]]
    with pytest.raises(ValueError, match="vLLM left out the log-probability"):
        here.loglikelihoods([([5, 6], [200])])


def test_shards_and_restarts_compute_nothing_twice(here: VLLMBackend, tmp_path: Path) -> None:
    decoding = Decoding(max_new_tokens=4)
    expected = here.generate(PROMPTS, decoding), here.loglikelihoods(PAIRS)
    for shard in (Shard(0, 2), Shard(1, 2)):
        with use_journal(Journal(tmp_path / "journal", shard)):
            here.generate(PROMPTS, decoding)
            here.loglikelihoods(PAIRS)
    asked: list[Any] = []
    here.ask = asked.append
    with use_journal(Journal(tmp_path / "journal")):
        assert (here.generate(PROMPTS, decoding), here.loglikelihoods(PAIRS)) == expected
    assert not asked


def test_independent_samples_of_equal_prompts_have_their_own_seeds(here: VLLMBackend) -> None:
    asked: list[Any] = []
    here.ask = lambda request: asked.extend(request["ask"]) or [{"prompt": one["ids"], "new": []} for one in asked]  # type: ignore[func-returns-value]
    here.generate(["Why?"] * 3, Decoding(temperature=1.0, independent=True))
    assert len({one["sampling"]["seed"] for one in asked}) == 3
    asked.clear()
    here.generate(["Why?"] * 3, Decoding(temperature=1.0))
    assert len(asked) == 1


def test_settings_of_the_model(fake: Path, small_opt: Path, tmp_path: Path) -> None:
    """A repetition penalty is passed on. What vLLM does not know is refused."""
    folder = shutil.copytree(small_opt, tmp_path / "model")
    settings = {"repetition_penalty": 1.3, "temperature": 0.1}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    backend = VLLMBackend(lambda request: asked.append(request) or [], models.load_tokenizer(folder), folder)  # type: ignore[func-returns-value]
    asked: list[Any] = []
    with pytest.raises(ValueError, match="zip"):
        backend.generate(["Why?"], Decoding(temperature=0.7, top_p=0.9, seed=3))
    sampling = asked[0]["ask"][0]["sampling"]
    assert (sampling["repetition_penalty"], sampling["temperature"], sampling["top_p"]) == (1.3, 0.7, 0.9)
    assert 0 <= sampling["seed"] < 2**63
    (folder / "generation_config.json").write_text(json.dumps({"no_repeat_ngram_size": 3}))
    with pytest.raises(UserError, match="no_repeat_ngram_size; use --backend local"):
        VLLMBackend(lambda request: None, models.load_tokenizer(folder), folder).generate(["Why?"], Decoding())


def test_the_version_and_the_mode_are_part_of_the_digest(
    fake: Path, small_opt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = VLLMBackend.identity()
    assert planned == {"name": "vllm", "version": VERSION, "batch_invariant": True}
    backend = VLLMBackend(lambda request: None, models.load_tokenizer(small_opt), small_opt)
    before = backend.digest()
    assert before != LocalBackend.open(small_opt).digest()
    monkeypatch.setenv(INVARIANT, "0")
    assert backend.digest() != before
    with pytest.raises(UserError, match=r"planned for name vllm version .* batch_invariant True, and here is"):
        open_backend(small_opt, "cuda", identity=planned)


def test_where_it_cannot_run(small_opt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="vLLM needs a GPU that holds the whole model; use --device cuda"):
        VLLMBackend.open(small_opt, "cpu", "float32", "none")
    monkeypatch.setenv(PYTHON, "/nowhere/python")
    with pytest.raises(UserError, match=rf"vLLM is not installed for /nowhere/python; .* set {PYTHON}"):
        VLLMBackend.identity()


def test_parity_with_vllm_itself(small_opt: Path) -> None:
    """Runs where `WPN_BENCH_VLLM_PYTHON` (or this Python) has vLLM, and there is a GPU."""
    try:
        identity = VLLMBackend.identity()
    except UserError as e:
        pytest.skip(f"not compared with vLLM itself: {e}")
    if not torch.cuda.is_available():
        pytest.skip("not compared with vLLM itself: there is no GPU")
    ours = LocalBackend.open(small_opt, "cuda")
    expected = ours.generate(PROMPTS, Decoding(max_new_tokens=8)), ours.loglikelihoods(PAIRS)
    try:
        theirs = open_backend(small_opt, "cuda", identity=identity)
        found = theirs.loglikelihoods(PAIRS)
        assert found is not None
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected[1]], abs=1e-2)
        assert theirs.generate(PROMPTS, Decoding(max_new_tokens=8)) == expected[0]
    finally:
        close()
