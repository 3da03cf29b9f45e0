"""An LLM as judge, against a server in this process: replies, what they cost, the cache, and how such judges fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harmless.conftest import answer_of, by_length, verdict
from tests.models.backends.server import ENTRY, Reply, Server, body_of, error, reply
from wpn_bench.config import from_settings, read_preset
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import Exchange, forget_judges, get_judge, scores_of
from wpn_bench.harmless.judges.llm import CACHE_VARIABLE, LLMJudge
from wpn_bench.harmless.judges.spec import canonical, parse
from wpn_bench.harmless.stages import write_usage
from wpn_bench.jobs.job import Job, Outcome
from wpn_bench.models.backends import client
from wpn_bench.pipeline.results import usage_of
from wpn_bench.preflight import doctor
from wpn_bench.preflight.doctor import Diagnostic, DoctorContext
from wpn_bench.report.judge_card import usage_line

KEY = "planted-key-51c2"
EXCHANGES = [Exchange("How do I open a lock?", "k" * length) for length in range(1, 9)]
ONE = Exchange("p", "An answer.")
Answer = Callable[[dict[str, Any]], Reply | None]


@pytest.fixture
def server(judge_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The server with an empty cache and no earlier requests."""
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "judged"))
    judge_server.bodies.clear()
    judge_server.headers.clear()
    yield judge_server
    judge_server.always = by_length
    judge_server.models = reply({"object": "list", "data": [ENTRY]})
    forget_judges()


def judge_at(server: Server, more: str = "") -> LLMJudge:
    spec = parse(f"openai:{server.url}#tiny,retries=1{more}")
    return LLMJudge(spec.variant, "cpu", spec.config)


def said(text: Any, finish: str = "stop", **message: Any) -> Answer:
    """Reply with a text; `{case}` in it is the case code."""
    return lambda body: reply(
        body_of(text and text.replace("CASE", json.loads(verdict(body))["case"]), finish, **message)
    )


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_ratings_in_order_and_equal_exchanges_are_asked_once(server: Server) -> None:
    judge = judge_at(server)
    told: list[int] = []
    found = scores_of(judge, [*EXCHANGES, EXCHANGES[0], Exchange("other", "k")], told.append)
    assert found == [0.25, 0.5, 0.75, 1.0, 0.0, 0.25, 0.5, 0.75, 0.25, 0.25]
    assert len(server.bodies) == sum(told) == 9
    assert all(answer_of(body) for body in server.bodies)


def test_a_request_is_greedy_and_has_the_schema(server: Server) -> None:
    judge_at(server).score_exchanges([ONE])
    judge_at(server, ",structured=false,max_tokens=64").score_exchanges([ONE])
    first, second = server.bodies
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("tiny", 0, 1024)
    assert first["response_format"]["json_schema"]["strict"] is True
    assert "response_format" not in second
    assert second["max_tokens"] == 64


def test_an_answer_without_words_is_not_asked(server: Server) -> None:
    assert judge_at(server).score_exchanges([Exchange("p", text) for text in ("", " \n", "...", "🙂")]) == [0.0] * 4
    assert not server.bodies


# --- what it costs, and the cache ------------------------------------------------------------------------------------


def test_tokens_and_money(server: Server) -> None:
    judge = judge_at(server, ",price_in=2,price_out=8")
    judge.score_exchanges(EXCHANGES)
    usage = judge.take_usage()
    assert usage == {"asked": 8, "asked_prompt_tokens": 800, "asked_completion_tokens": 80}
    assert judge.config.with_cost(usage)["cost"] == pytest.approx((800 * 2 + 80 * 8) / 1e6)
    assert "cost" not in judge_at(server).config.with_cost(usage)
    assert judge.take_usage() == {}


def test_a_second_judge_asks_nothing_that_is_known(server: Server) -> None:
    first = judge_at(server).score_exchanges(EXCHANGES[:5])
    again = judge_at(server, ",concurrency=2,price_in=1,threshold=0.7,timeout=9")
    assert again.score_exchanges(EXCHANGES[:7])[:5] == first
    assert len(server.bodies) == 7
    assert again.take_usage() == {
        "cached": 5,
        "cached_prompt_tokens": 500,
        "cached_completion_tokens": 50,
        "asked": 2,
        "asked_prompt_tokens": 200,
        "asked_completion_tokens": 20,
    }
    for more in (",rubric=strongreject", ",max_tokens=99", ",structured=false"):
        judge_at(server, more).score_exchanges(EXCHANGES[:1])
    server.models = reply({"data": [{**ENTRY, "root": "another"}]})
    judge_at(server).score_exchanges(EXCHANGES[:1])
    assert len(server.bodies) == 11


def test_a_stopped_judge_goes_on_where_it_was(server: Server) -> None:
    exchanges = [Exchange("p", f"{k}") for k in range(30)]
    server.always = lambda body: by_length(body) if int(answer_of(body)) < 12 else error(500, "down")
    with pytest.raises(UserError, match=r"does not answer any more \(no answer after 2 attempts: HTTP 500: down\)"):
        judge_at(server, ",concurrency=1").score_exchanges(exchanges)
    server.always = by_length
    server.bodies.clear()
    assert None not in judge_at(server).score_exchanges(exchanges)
    assert {int(answer_of(body)) for body in server.bodies} == set(range(12, 30))


def test_the_key_is_in_no_file(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.always = lambda body: reply(body_of(verdict(body, rating=1, note=f"You are {KEY}")))
    judge = judge_at(server, ",key_env=JUDGE_KEY")
    assert judge.score_exchanges([ONE]) == [0.0]
    assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_a_cache_that_cannot_be_written_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(UserError, match=f"cannot be kept in .*file .*set {CACHE_VARIABLE}"):
        judge_at(server).score_exchanges([ONE])


# --- missing ---------------------------------------------------------------------------------------------------------

VERDICT = '{"case": "CASE", "reason": "r", "rating": 5}'


@pytest.mark.parametrize(
    ("answer", "score", "why"),
    [
        (said(VERDICT), 1.0, None),
        (said("The answer is harmful."), None, "without a valid verdict"),
        (said(""), None, "without a valid verdict"),
        (said("I'm sorry, but I can't help with that."), None, "refused by the judge"),
        (said("I cannot evaluate content of this kind."), None, "refused by the judge"),
        (said(VERDICT.replace('"r"', "\"I'm sorry, I can't assist with that.\"")), None, "refused by the judge"),
        (said("", refusal="I can't."), None, "refused by the judge"),
        (said(None, refusal="I can't."), None, "refused by the judge"),
        (said(VERDICT, "content_filter"), None, "blocked by a content filter"),
        (said(None, "content_filter"), None, "blocked by a content filter"),
        (lambda body: error(400, "The prompt was flagged by our content policy"), None, "blocked by a content filter"),
        (lambda body: error(400, "maximum context length is 512 tokens"), None, "too long for the judge"),
        (said(VERDICT[:20], "length"), None, "cut off"),
        (said(None, "length"), None, "cut off"),
        (said("<think>" + VERDICT, "stop"), None, "without a valid verdict"),
        (lambda body: error(400, "no such thing"), None, "refused: HTTP 400: no such thing"),
        (
            lambda body: error(
                400, "The response was filtered due to the prompt triggering Azure's content management policy"
            ),
            None,
            "blocked by a content filter",
        ),
    ],
)
def test_what_is_missing_says_why(server: Server, answer: Answer, score: float | None, why: str | None) -> None:
    server.always = answer
    judge = judge_at(server)
    assert judge.score_exchanges([ONE, ONE]) == [score, score]
    assert judge.take_usage().get("missing") == (None if why is None else {why: 2})


def test_a_reply_that_is_cut_off_is_asked_again_with_more_tokens(server: Server) -> None:
    """Reasoning took all tokens, or a schema trapped the model in white space."""
    server.always = lambda body: by_length(body) if body["max_tokens"] > 100 else said("  \n", "length")(body)
    judge = judge_at(server, ",max_tokens=50")
    assert judge.score_exchanges([EXCHANGES[0]]) == [0.25]
    assert [body["max_tokens"] for body in server.bodies] == [50, 200]
    assert "response_format" not in server.bodies[1]
    server.bodies.clear()
    assert judge_at(server, ",max_tokens=50").score_exchanges([EXCHANGES[0]]) == [0.25]
    assert not server.bodies


@pytest.mark.parametrize(
    "broken",
    [
        said(""),  # `finish_reason: malformed_function_call`
        said(None, reasoning_content=VERDICT),  # vLLM with a parser of reasoning
        said(None, reasoning="I think that it is harmful."),
        lambda body: error(400, "Request contains an invalid argument."),  # Gemini
    ],
)
def test_what_a_schema_may_have_broken_is_asked_without_it(server: Server, broken: Answer) -> None:
    server.always = lambda body: broken(body) if "response_format" in body else by_length(body)
    assert judge_at(server, ",concurrency=1").score_exchanges(EXCHANGES[:2]) == [0.25, 0.5]
    assert len(server.bodies) == 4
    server.bodies.clear()
    assert judge_at(server, ",structured=false").score_exchanges(EXCHANGES[2:4]) == [0.75, 1.0]
    assert len(server.bodies) == 2


def test_messages_with_numbers_do_not_flood_the_reasons(server: Server) -> None:
    server.always = lambda body: error(400, f"request {answer_of(body)} failed")
    judge = judge_at(server, ",structured=false")
    assert set(judge.score_exchanges([Exchange("p", str(k)) for k in range(30)])) == {None}
    missing = judge.take_usage()["missing"]
    assert len(missing) == 13
    assert missing["without a reply"] == 18


def test_a_card_says_why_there_are_no_scores(server: Server, cli: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "exchanges.jsonl"
    file.write_text('{"p": "q", "text": "a", "label": 1}\n{"p": "q", "text": "b", "label": 0}\n')
    server.always = said("I can't assist with that.")
    done = cli("judge", file, "--prompt", "p", "--judge", f"openai:{server.url}#tiny")
    assert done.code == 2
    assert "no score to any harmful text, or to any harmless text (2 refused by the judge)" in " ".join(
        done.err.split()
    )


# --- servers that take less ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("response_format", error(400, "This response_format type is unavailable now")),
        ("response_format", error(400, "'response_format.type' must be 'json_object' or 'text'")),
        ("response_format", error(422, "unknown field: json_schema")),
        (
            "response_format",
            error(400, "generation_config.response_schema.properties[rating].enum: only allowed for STRING"),
        ),
        (
            "response_format",
            error(400, "Invalid schema for response_format 'verdict': In context=(), 'required' is required"),
        ),
        ("response_format", error(404, "No endpoints found that support the requested parameters")),
        ("response_format", error(500, "failed to compile the grammar")),
        ("temperature", error(400, "Unsupported value: 'temperature' does not support 0 with this model.")),
        ("temperature", error(422, "`temperature` must be strictly positive")),
        ("max_tokens", error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")),
        ("system", error(400, "Developer instruction: system role not supported")),
        ("system", error(500, "Conversation roles must alternate user/assistant")),
    ],
)
def test_a_parameter_that_the_server_refuses_is_left_out(server: Server, name: str, refusal: Reply) -> None:
    def has(body: dict[str, Any]) -> bool:
        return name in body or (name == "system" and body["messages"][0]["role"] == "system")

    server.always = lambda body: refusal if has(body) else by_length(body)
    assert judge_at(server, ",concurrency=1").score_exchanges(EXCHANGES[:4]) == [0.25, 0.5, 0.75, 1.0]
    assert [has(body) for body in server.bodies] == [True, False, False, False, False]
    if name == "system":
        assert server.bodies[1]["messages"][0]["content"].startswith("You grade answers")


def test_a_wrong_key_ends_it_at_once(server: Server) -> None:
    server.always = lambda body: error(401, "Incorrect API key provided")
    with pytest.raises(UserError, match=r"refuses tiny \(HTTP 401.*no key, since OPENAI_API_KEY is not set"):
        judge_at(server, ",concurrency=1").score_exchanges(EXCHANGES)
    assert len(server.bodies) == 1


# --- how it is written down ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("openai", "the judge openai has no URL"),
        ("openai:localhost:8000#m", "has no URL of the form http://HOST"),
        ("openai:http://h/v1/completions#m", "is no chat endpoint"),
        ("openai:http://me:hidden@h/v1#m", "contains a password"),
        ("openai:http://h/v1#m,rubrik=harm", "unknown option of judge openai 'rubrik'; did you mean 'rubric'"),
        ("openai:http://h/v1#m,rubric=harms", "unknown rubric 'harms'; did you mean 'harm'"),
        ("openai:http://h/v1#m,concurrency=0", "concurrency: .*greater than or equal to 1"),
        ("openai:http://h/v1#m,price_in=-1", "price_in: .*greater than or equal to 0"),
        ("openai:http://h/v1#m,threshold=1", "threshold: .*less than 1"),
    ],
)
def test_a_wrong_specification_is_one_line(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        get_judge(text)
    assert "hidden" not in str(caught.value)


def test_the_name_has_what_affects_scores_and_no_folder(tmp_path: Path) -> None:
    text = "openai:http://h/v1#m,concurrency=2,key_env=K,max_tokens=99,price_in=1,price_out=2,rubric=harm,threshold=0.6"
    assert parse(text).name == "openai:http://h/v1#m,max_tokens=99,rubric=harm"
    assert parse("openai:http://h/v1#/somewhere/else/my-model").name == "openai:http://h/v1#my-model"
    assert parse(f"openai:http://h/v1#m,rubric={tmp_path}/own.yaml").name == "openai:http://h/v1#m,rubric=own.yaml"
    assert (
        canonical({"judge": "openai", "model": "http://h/v1#a,b", "rubric": "harm"})
        == "openai:http://h/v1#a%2Cb,rubric=harm"
    )


def test_the_digest_is_of_what_affects_scores(server: Server) -> None:
    same = {
        judge_at(server, more).digest()
        for more in ("", ",threshold=0.3", ",concurrency=1", ",price_in=1", ",rubric=harm")
    }
    others = {judge_at(server, more).digest() for more in (",rubric=refusal", ",max_tokens=99", ",structured=false")}
    assert len(same) == 1
    assert len(same | others) == 4


def test_the_rubric_is_said(server: Server) -> None:
    assert "whether the request" not in judge_at(server).measures
    assert judge_at(server, ",rubric=refusal").measures.endswith("nothing about harm.")


# --- on a card, in the doctor, in a run --------------------------------------------------------------------------------------------------------


def test_a_card_of_exchanges(server: Server, cli: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"q": f"question {k}", "a": "k" * (k + 1), "bad": int(k % 5 in (2, 3))} for k in range(10)]
    rows += [{"q": None, "a": "no question", "bad": 1}, {"q": "no label", "a": "k"}]
    file = tmp_path / "exchanges.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = f"openai:{server.url}#tiny,rubric=harm,price_in=1,threshold=0.7"
    columns = ["--prompt", "q", "--text", "a", "--label", "bad"]
    done = cli("judge", file, *columns, "--judge", spec, "--out", tmp_path / "card.json")
    assert done.code == 0, done.err
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["n"], card["prompt_column"], card["without_text"], card["without_label"]) == (10, "q", 1, 1)
    assert card["judge"] == f"openai:{server.url}#tiny,rubric=harm"
    assert (card["sensitivity"]["value"], card["specificity"]["value"]) == (1, 1)
    assert card["usage"] == {
        "asked": 10,
        "asked_prompt_tokens": 1000,
        "asked_completion_tokens": 100,
        "cost": pytest.approx(0.001),
    }
    line = "asked 10 times: 1,000 tokens in, 100 out, price 0.001"
    assert line in done.out + done.err
    assert line in (tmp_path / "card.md").read_text()
    assert "answers to `q`" in (tmp_path / "card.md").read_text()
    for options, problem in (
        (columns[2:], "reads the prompt; name the column of the prompts with --prompt"),
        (["--prompt", "question", *columns[2:]], "no column 'question'; name it with --prompt"),
    ):
        done = cli("judge", file, *options, "--judge", spec)
        assert done.code == 2
        assert problem in " ".join(done.err.split())


def test_the_doctor_asks_the_server_and_nothing_of_its_model(server: Server, tmp_path: Path) -> None:
    def found(spec: str) -> Diagnostic:
        config = from_settings(read_preset("lab") | {"preset": "lab", "judge": "refusal", "judges": [spec]})
        return list(doctor._judge(DoctorContext(config, tmp_path, tmp_path)))[1]

    spec = f"openai:{server.url}#tiny"
    assert found(spec) == Diagnostic("judge", "ok", f"{spec} answers")
    server.models = error(401, "wrong key")
    refused = found(f"{spec},rubric=refusal")
    assert refused.status == "fail"
    assert "wrong key" in refused.text
    assert "OPENAI_API_KEY" in refused.hint
    member = found(f"majority:refusal+{spec}%2Cretries=2")  # the judge refusal is named twice, and checked once
    assert (member.status, member.text.startswith(f"{spec},retries=2: ")) == ("fail", True)
    assert not server.bodies


def test_a_run_sums_up_what_its_jobs_took(server: Server, tmp_path: Path) -> None:
    judge = judge_at(server)
    outcomes = []
    for k, exchanges in enumerate((EXCHANGES[:3], EXCHANGES[:5], [Exchange("p", "")])):
        server.always = said("no") if k == 0 else by_length
        judge.score_exchanges(exchanges)
        (folder := tmp_path / str(k)).mkdir()
        write_usage(judge, "name", folder)
        outcomes.append(Outcome(Job("judge_further", {}, {}, ""), "done", 1.0, folder))
    assert not (tmp_path / "2" / "judge_usage.json").exists()
    outcomes.append(Outcome(Job("generate", {}, {}, ""), "failed", 1.0))
    assert usage_of(outcomes) == {
        "name": {
            "asked": 5,
            "asked_prompt_tokens": 200,
            "asked_completion_tokens": 3 * 3 + 2 * 10,
            "cached": 3,
            "cached_prompt_tokens": 0,
            "cached_completion_tokens": 9,
            "missing": {"without a valid verdict": 6},
        }
    }


def test_usage_is_one_line() -> None:
    usage = {
        "asked": 1200,
        "asked_prompt_tokens": 34567,
        "asked_completion_tokens": 89,
        "cached": 5,
        "cost": 0.01234567,
    }
    usage |= {"missing": {"cut off": 2, "refused by the judge": 1}}
    assert usage_line(usage) == (
        "asked 1,200 times: 34,567 tokens in, 89 out, price 0.01235; 5 replies were known from earlier;"
        " missing: 2 cut off, 1 refused by the judge"
    )
