"""`wpn-hf` against lm-eval's `hf`: the same requests as texts, through lm-eval's own tokenising and truncation."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from fork_server import ForkServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from wpn_bench import models
from wpn_bench.benchmarks.language_model import WpnHF

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "wpn_bench" / "lab" / "assets" / "base"
SENTENCE = (
    "The baker sells bread and cakes in the market, said the angry miller to a kind old neighbour of this town today."
)
WORDS = SENTENCE.split()
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


def both(folder: Path, **options: Any) -> tuple[WpnHF, HFLM]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer = models.load(folder)
    given = {"pretrained": model, "batch_size": 4, **options}
    return WpnHF(tokenizer=copy.deepcopy(tokenizer), **given), HFLM(tokenizer=copy.deepcopy(tokenizer), **given)


@pytest.fixture(
    scope="module", params=[{}, {"add_bos_token": True}, {"add_bos_token": False, "max_length": 24}], ids=str
)
def pair(request: pytest.FixtureRequest, small_lm: Path) -> tuple[WpnHF, HFLM]:
    return both(small_lm, **request.param)


def instances(kind: str, arguments: list[tuple[str, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, k) for k, one in enumerate(arguments)]


@st.composite
def documents(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Contexts with several choices each; some empty, some longer than the window, some that end in spaces."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        context = draw(st.one_of(st.just(""), TEXT, TEXT.map(lambda t: t + "  "), TEXT.map(lambda t: 20 * (t + " "))))
        for choice in draw(st.lists(TEXT, min_size=1, max_size=4)):
            rows.append((context, " " + choice))
    return rows


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=documents())
def test_log_likelihoods_are_those_of_hf(pair: tuple[WpnHF, HFLM], rows: list[tuple[str, str]]) -> None:
    ours, theirs = pair
    rows = [r for r in rows if len(ours.tok_encode(r[1])) <= ours.max_length - 4]  # hf takes none that is longer
    mine = ours.loglikelihood(instances("loglikelihood", rows), disable_tqdm=True)
    plain = theirs.loglikelihood(instances("loglikelihood", rows), disable_tqdm=True)
    assert [m[0] for m in mine] == pytest.approx([p[0] for p in plain], abs=1e-3)
    assert [m[1] for m in mine] == [p[1] for p in plain]


def test_rolling_log_likelihoods_are_those_of_hf(pair: tuple[WpnHF, HFLM]) -> None:
    texts = [(4 * SENTENCE,), ("The baker sells bread.",)]
    ours, theirs = (lm.loglikelihood_rolling(instances("loglikelihood_rolling", texts), True) for lm in pair)
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_the_cache_of_lm_eval_is_told(small_opt: Path) -> None:
    ours, _ = both(small_opt)
    told: list[Any] = []

    class Hook:
        def add_partial(self, *what: Any) -> None:
            told.append(what)

    ours.set_cache_hook(Hook())
    rows = [("The baker", " sells bread"), ("", "A kind")]
    answers = ours.loglikelihood(instances("loglikelihood", rows), disable_tqdm=True)
    assert told == [("loglikelihood", row, answer) for row, answer in zip(rows, answers, strict=True)]


def test_lm_eval_makes_it_by_name(small_lm: Path) -> None:
    assert get_model("wpn-hf") is WpnHF
    given = {"pretrained": str(small_lm), "device": "cpu", "dtype": "float32", "batch_size": 4}
    ours, theirs = get_model("wpn-hf")(**given), get_model("hf")(**given)
    assert ours.device == theirs.device == ours.model.device
    rows = [("The baker sells", " bread"), ("The baker sells", " cakes in the market"), ("", "A kind neighbour")]
    mine, plain = (lm.loglikelihood(instances("loglikelihood", rows), disable_tqdm=True) for lm in (ours, theirs))
    assert [m[0] for m in mine] == pytest.approx([p[0] for p in plain], abs=1e-3)
    assert [m[1] for m in mine] == [p[1] for p in plain]


@pytest.mark.slow
def test_it_scores_on_the_command_line(tmp_path: Path, offline_commands: ForkServer) -> None:
    """As the README has it: `python -m`, the model by its name. The scores are those of lm-eval's `hf`."""
    model = f"pretrained={BASE},dtype=float32"
    out = tmp_path / "results.json"
    # fmt: off
    command = [
        "python", "-m", "wpn_bench.benchmarks.language_model", "--model", "wpn-hf", "--model_args", model,
        "--include_path", str(ROOT / "tasks" / "lab"), "--tasks", "lab_piqa", "--limit", "10", "--device", "cpu",
        "--output_path", str(out), "--log_samples",
    ]
    # fmt: on
    done = offline_commands.completed(command, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    written = next(tmp_path.glob("samples_lab_piqa_*.jsonl"))
    mine = [json.loads(line)["filtered_resps"] for line in written.read_text(encoding="utf-8").splitlines()]
    plain = lm_eval.simple_evaluate(
        model="hf",
        model_args=model,
        tasks=["lab_piqa"],
        device="cpu",
        limit=10,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(ROOT / "tasks" / "lab"), include_defaults=False),
    )["samples"]["lab_piqa"]
    assert len(mine) == len(plain) == 10
    for ours, theirs in zip(mine, plain, strict=True):
        assert [float(ll) for ll, _ in ours] == pytest.approx([ll for ll, _ in theirs["filtered_resps"]], abs=1e-3)
