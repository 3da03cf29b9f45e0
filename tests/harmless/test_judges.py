"""Every judge: the contract, how it is written down, classifiers of several shapes, checkpoints of one's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.backends.server import Server
from wpn_bench import lab
from wpn_bench.core import consent
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import JUDGES, Exchange, Judge, get_judge, scores_of
from wpn_bench.harmless.judges.detoxify import load_checkpoint
from wpn_bench.harmless.judges.spec import canonical, parse, parse_list
from wpn_bench.jobs.journal import Journal, Shard, use_journal

RUDE = "You are a silly goose."
KIND = "The baker is kind, the bread is good."
ANY_ANSWER = "^(?P<harmful>[A-Za-z])|^(?P<harmless>[^A-Za-z]|$)"  # a random model gives no verdict in words


# --- the contract, for every registered judge ------------------------------------------------------------------------


def score_all(judge: Judge, texts: list[str], advance: Callable[[int], object] = lambda n: None) -> list[float | None]:
    """The scores of responses, each to one and the same prompt."""
    return judge.score_exchanges([Exchange("p", text) for text in texts], advance)


@pytest.fixture(scope="module", params=list(JUDGES))
def judge(
    request: pytest.FixtureRequest,
    make_classifier: Callable[..., Path],
    make_lm: Callable[..., Path],
    judge_server: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Judge:
    template = tmp_path_factory.mktemp("guard") / "template.jinja"
    template.write_text("Q: {{ prompt }}\nA: {{ response }}\nVerdict:", encoding="utf-8")
    specs = {
        "detoxify": "detoxify:lab",
        "classifier": f"classifier:{make_classifier('bert', ['toxic'])}",
        "openai": f"openai:{judge_server.url}#tiny",
        "majority": f"majority:detoxify:lab+refusal+classifier:{make_classifier('bert', ['toxic'])}",
        "guard": f"guard:{make_lm('opt')},pattern={ANY_ANSWER},new_tokens=2,template={template}",
    }
    return get_judge(specs.get(request.param, request.param))


def test_scores_are_shares_in_order_and_equal_for_equal_texts(judge: Judge) -> None:
    texts = [RUDE, KIND, "I'm sorry, but I can't help with that.", RUDE, "goose 🙂", "שלום", KIND]
    told: list[int] = []
    scores = score_all(judge, texts, told.append)
    assert len(scores) == len(texts) == sum(told)
    assert all(score is not None and 0 <= score <= 1 for score in scores)
    assert (scores[0], scores[1]) == (scores[3], scores[6])
    assert score_all(judge, texts[::-1]) == pytest.approx(scores[::-1], abs=1e-4)
    assert score_all(judge, []) == []


def test_shares_of_a_judge_that_keeps_a_journal_are_put_together_without_it(judge: Judge, tmp_path: Path) -> None:
    """And one that keeps none is not asked for a share: each share would ask it for everything."""
    texts = [f"{who} {k} times" for k in range(40) for who in (RUDE, KIND)]
    exchanges = [Exchange("p", text) for text in texts]
    for number in range(2):
        with use_journal(Journal(tmp_path, Shard(number, 2))):
            part = scores_of(judge, exchanges)
        assert judge.journalled or part == [None] * len(texts)
    journal = Journal(tmp_path)
    known = {section: dict(found) for section, found in journal.sections.items()}
    assert bool(known) == judge.journalled
    with use_journal(journal):
        assert scores_of(judge, exchanges) == score_all(judge, texts)
    # Whatever was scored now was known before.
    assert {key: found for key, found in journal.sections.items() if key in known} == known


def test_an_empty_text_is_not_harmful(judge: Judge) -> None:
    assert all(score is not None and score < 0.5 for score in score_all(judge, ["", " \n\t"]))


@pytest.mark.slow
def test_a_text_of_a_million_letters_has_a_score(judge: Judge) -> None:
    # Words that no vocabulary holds are one token each: some ten windows, not hundreds.
    (score,) = score_all(judge, [f"{'x' * 199} " * 5000])
    assert score is not None
    assert 0 <= score <= 1


def test_the_digest_is_stable(judge: Judge) -> None:
    assert judge.digest() == type(judge)(judge.variant, "cpu", judge.config).digest()
    assert len(judge.digest()) == 64


@settings(max_examples=60)
@given(st.lists(st.text(max_size=40), max_size=4))
def test_the_refusal_judge_scores_anything(texts: list[str]) -> None:
    scores = get_judge("refusal").score(texts)
    assert scores == [get_judge("refusal").score([text])[0] for text in texts]
    assert set(scores) <= {0.0, 1.0}


def test_what_is_refused_is_harmless_by_the_refusal_judge() -> None:
    texts = ["I'm sorry, but I can't help with that.", "Step one: take a hammer.", ""]
    assert get_judge("refusal").score(texts) == [0.0, 1.0, 0.0]


# --- how a judge is written down -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "scorer", "threshold"),
    [
        ("detoxify:lab", "detoxify:lab", None),
        ("refusal", "refusal", None),
        (
            "classifier:unitary/toxic-bert,threshold=0.4,label=toxic",
            "classifier:unitary/toxic-bert,label=toxic",
            0.4,
        ),
        (
            {"judge": "classifier", "model": "a/b", "label": "x, y", "invert": True, "revision": None},
            "classifier:a/b,invert=true,label=x%2C y",
            None,
        ),
        ({"judge": "detoxify", "threshold": 0.25}, "detoxify", 0.25),
    ],
)
def test_a_spec_keeps_what_it_was_given(given_: Any, scorer: str, threshold: float | None) -> None:
    text = canonical(given_)
    assert canonical(text) == text
    assert (parse(text).scorer, parse(text).config.threshold) == (scorer, threshold)


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=9), st.booleans())
def test_any_label_survives(model: str, label: str, invert: bool) -> None:
    found = parse(canonical({"judge": "classifier", "model": model, "label": label, "invert": invert}))
    assert found.variant == model
    assert dict(found.options) == {"label": label, "invert": str(invert).lower()}


def test_a_list_of_judges() -> None:
    given_ = ["detoxify:lab,threshold=0.4,refusal", "classifier:a/b,label=toxic", ""]
    assert parse_list(given_) == ["detoxify:lab,threshold=0.4", "refusal", "classifier:a/b,label=toxic"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("detoxify:lab,unbiased", "'unbiased' is not option=value"),
        ("detoxify:lab,threshold=0.1,threshold=0.2", "'threshold' is given twice"),
        ("detoxify:lab,label=toxic", "unknown option of judge detoxify 'label'"),
        ("detoxify:lab,threshold=1.5", "threshold: Input should be less than 1"),
        ("detoxify:nowhere/judge.ckpt", "no Detoxify checkpoint at nowhere/judge.ckpt"),
        ("classifier", "names no model"),
        ("refusal:strict", "has no variants"),
        ("refusl", "did you mean 'refusal'"),
    ],
)
def test_slips_in_a_spec(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        get_judge(spec)


def test_a_name_tells_no_path(tmp_path: Path, make_classifier: Callable[..., Path]) -> None:
    folder = make_classifier("bert", ["toxic"])
    spec = parse(f"classifier:{folder},label=toxic,threshold=0.3")
    assert spec.name == f"classifier:{folder.name},label=toxic"
    assert spec.shown == f"classifier:{folder.name},label=toxic,threshold=0.3"
    assert parse("classifier:unitary/toxic-bert").name == "classifier:unitary/toxic-bert"
    assert parse("detoxify:/home/me/judge.ckpt").name == "detoxify:judge.ckpt"


# --- classifiers -----------------------------------------------------------------------------------------------------


def logits(folder: Path, text: str) -> torch.Tensor:
    """What transformers itself makes of a text."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found: torch.Tensor = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits[0]
    return found


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize(
    ("labels", "problem_type", "options", "expected"),
    [
        (["kind", "rude"], None, ",label=rude", lambda z: z.softmax(0)[1]),
        (["kind", "rude"], "single_label_classification", ",label=KIND,invert=true", lambda z: 1 - z.softmax(0)[0]),
        (["insult", "threat", "other"], "multi_label_classification", ",label=threat", lambda z: z[1].sigmoid()),
        (["kind", "rude"], None, ",label=1,activation=sigmoid", lambda z: z[1].sigmoid()),
        (["toxic"], None, "", lambda z: z[0].sigmoid()),
    ],
)
@pytest.mark.slow
def test_scores_are_those_of_transformers(
    make_classifier: Callable[..., Path],
    architecture: str,
    labels: list[str],
    problem_type: str | None,
    options: str,
    expected: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    folder = make_classifier(architecture, labels, problem_type=problem_type)
    texts = [RUDE, KIND, "goose"]
    wanted = [float(expected(logits(folder, text))) for text in texts]
    assert get_judge(f"classifier:{folder}{options}").score(texts) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_the_worst_window_of_a_long_text_counts(make_classifier: Callable[..., Path], architecture: str) -> None:
    """160 positions, of which 152 hold words; the scores are those of the windows, each alone."""
    from wpn_bench.engine.classify import windows

    judge = get_judge(f"classifier:{make_classifier(architecture, ['kind', 'rude'])},label=rude")
    text = " ".join(["calm words"] * 150 + ["silly goose"] + ["good bread"] * 150)
    parts = windows(judge._classifier(), text)  # type: ignore[attr-defined]
    assert len(parts) > 3
    each = [score for score in judge.score(parts) if score is not None]
    assert judge.score([text]) == pytest.approx([max(each)], abs=1e-5)
    assert max(each) - min(each) > 1e-3


def test_the_digest_covers_weights_label_and_activation(make_classifier: Callable[..., Path]) -> None:
    one, other = (make_classifier("bert", ["kind", "rude"], seed=seed) for seed in (0, 1))
    specs = [
        f"classifier:{one},label=rude",
        f"classifier:{one},label=kind",
        f"classifier:{one},label=rude,invert=true",
        f"classifier:{one},label=rude,activation=sigmoid",
        f"classifier:{other},label=rude",
    ]
    assert len({get_judge(spec).digest() for spec in specs}) == len(specs)
    assert get_judge(f"classifier:{one},label=1").digest() == get_judge(specs[0]).digest()
    assert get_judge(f"{specs[0]},threshold=0.3").digest() == get_judge(specs[0]).digest()


def test_a_label_must_be_named_and_known(make_classifier: Callable[..., Path]) -> None:
    folder = make_classifier("bert", ["LABEL_0", "LABEL_1"])
    with pytest.raises(UserError, match=r"has 2 labels \(LABEL_0, LABEL_1\), and the judge does not say which to read"):
        get_judge(f"classifier:{folder}").digest()
    with pytest.raises(UserError, match=r"no label 'toxic' \(its labels: LABEL_0, LABEL_1\)"):
        get_judge(f"classifier:{folder},label=toxic").digest()


def test_what_is_no_classifier(make_classifier: Callable[..., Path], small_opt: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks 1 weights of a classifier"):
        get_judge(f"classifier:{small_opt},label=0").digest()
    with pytest.raises(UserError, match="is a regression"):
        get_judge(f"classifier:{make_classifier('bert', ['x'], problem_type='regression')}").digest()
    with pytest.raises(UserError, match="contains no model"):
        get_judge(f"classifier:{tmp_path}").digest()


# --- Detoxify checkpoints of one's own -------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The lab's judge, as a user's own checkpoint."""
    shutil.copytree(lab.judge_checkpoint().parent, tmp_path / "own")
    return tmp_path / "own" / "judge.ckpt"


def test_a_checkpoint_of_ones_own(own: Path) -> None:
    mine = get_judge(f"detoxify:{own}")
    assert mine.score([RUDE, KIND]) == get_judge("detoxify:lab").score([RUDE, KIND])
    before = mine.digest()
    settings = json.loads((own.parent / "tokenizer_config.json").read_text())
    (own.parent / "tokenizer_config.json").write_text(json.dumps({**settings, "extra": 1}))
    assert mine.digest() != before


def test_checkpoints_that_are_none(own: Path, tmp_path: Path) -> None:
    good = torch.load(own, weights_only=True)
    name = next(iter(good["state_dict"]))
    spoilt = {
        "cut": {**good, "state_dict": {k: v for k, v in good["state_dict"].items() if k != name}},
        "other": {"weights": {}},
        "code": {**good, "extra": Path("x")},  # a pickle of more than plain values could run anything
    }
    said = {"cut": "lacks 1 of its weights", "other": "cannot be loaded", "code": "cannot be loaded"}
    for kind, checkpoint in spoilt.items():
        torch.save(checkpoint, own)
        with pytest.raises(UserError, match=said[kind]):
            load_checkpoint(own)
    own.write_text("no checkpoint")
    with pytest.raises(UserError, match="cannot be loaded as a Detoxify checkpoint"):
        load_checkpoint(own)


def test_a_checkpoint_without_toxicity(own: Path) -> None:
    checkpoint = torch.load(own, weights_only=True)
    labels = [f"label {k}" for k in range(len(checkpoint["config"]["dataset"]["args"]["classes"]))]
    checkpoint["config"]["dataset"]["args"]["classes"] = labels
    torch.save(checkpoint, own)
    with pytest.raises(UserError, match="is a pickle with an unknown digest"):
        get_judge(f"detoxify:{own}").digest()
    with consent.granted(pickles=True), pytest.raises(UserError, match="has no label `toxicity`"):
        get_judge(f"detoxify:{own}").digest()
