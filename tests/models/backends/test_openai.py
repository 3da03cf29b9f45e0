"""Remote endpoints, against a small server in this process that fails in each way that servers fail."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.models.backends.server import ENTRY, Reply, Server, body_of, error, reply
from wpn_bench.core.progress import Reporter
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs import journal
from wpn_bench.jobs.executor import LocalExecutor
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.journal import Journal, Shard
from wpn_bench.jobs.store import Store
from wpn_bench.models.backends import Decoding, Response, client, open_backend, scoring_tokenizer
from wpn_bench.models.backends.endpoint import Endpoint, parse_source
from wpn_bench.models.backends.openai import OpenAIBackend, endpoint_folder
from wpn_bench.prompts import Item, Template
from wpn_bench.prompts.items import ITEMS, item_row, read_rows, write_rows

KEY = "planted-key-8d1f"
DECODING = Decoding(max_new_tokens=5, stop=("###",))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Server()
    yield made
    made.stop()


def endpoint(server: Server, **settings: Any) -> Endpoint:
    return Endpoint(url=server.url, model="tiny", **({"retries": 3, "timeout": 5.0} | settings))


def ask(server: Server, *prompts: str, **settings: Any) -> list[Response]:
    return OpenAIBackend(endpoint(server, **settings)).generate(prompts or ("Why?",), DECODING)


# --- what a source says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai:http://localhost:8000/v1#qwen", {"url": "http://localhost:8000/v1", "model": "qwen"}),
        ("openai:http://localhost:8000/v1/#org/qwen:7b", {"url": "http://localhost:8000/v1", "model": "org/qwen:7b"}),
        ("openai:https://x.org/v1/chat/completions#m", {"url": "https://x.org/v1", "api": "chat"}),
        ("openai:https://x.org/v1/completions#m", {"url": "https://x.org/v1", "api": "completions"}),
        ("openai:http://[::1]:80/v1", {"url": "http://[::1]:80/v1", "model": ""}),
        ("openai:https://x.org/a?api-version=2#m", {"url": "https://x.org/a?api-version=2", "model": "m"}),
        (
            "openai:http://h/v1#a,b,concurrency=20,key_env=MY_KEY,timeout=9.5,system=Be brief, please.",
            {"model": "a,b", "concurrency": 20, "key_env": "MY_KEY", "timeout": 9.5, "system": "Be brief, please."},
        ),
    ],
)
def test_a_source_is_parsed(source: str, expected: dict[str, Any]) -> None:
    found = parse_source(source).model_dump()
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("openai:localhost:8000#m", "has no URL of the form http://HOST"),
        ("openai:", "has no URL of the form http://HOST"),
        ("openai:http://#m", "has no URL of the form http://HOST"),
        ("openai:http://h:99999/v1#m", "is invalid"),
        ("openai:http://me:hidden@h/v1#m", "the URL of the endpoint at h contains a password"),
        ("openai:http://h/v1?key=hidden#m", "has parameters after"),
        ("openai:http://h/v1#m,concurrency=0", "concurrency of .*greater than or equal to 1"),
        ("openai:http://h/v1#m,api=responses", "api of .*'chat' or 'completions'"),
    ],
)
def test_an_invalid_source_is_one_line(source: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        parse_source(source)
    assert "hidden" not in str(caught.value)


# --- what the server says of itself ----------------------------------------------------------------------------------


def test_a_folder_holds_the_endpoint_and_what_the_server_says(server: Server, tmp_path: Path) -> None:
    made = endpoint_folder(f"openai:{server.url}#tiny", tmp_path / "candidate")
    assert made.server == {"id": "tiny", "owned_by": "me", "max_model_len": 512}
    backend = open_backend(tmp_path / "candidate")
    assert isinstance(backend, OpenAIBackend)
    assert (backend.endpoint, backend.digest(), backend.context_length) == (made, made.digest(), 512)
    assert backend.loglikelihoods([([1], [2])]) is None
    with pytest.raises(JobFailed, match="gives no log-likelihoods"):
        scoring_tokenizer(backend)


def test_the_digest_is_of_the_model_and_not_of_how_it_is_reached(server: Server, tmp_path: Path) -> None:
    first = endpoint_folder(f"openai:{server.url}#tiny", tmp_path)
    server.models = reply({"data": [{**ENTRY, "created": 2, "permission": []}]})  # vLLM says the time of the request
    assert endpoint_folder(f"openai:{server.url}#tiny,concurrency=2,timeout=1", tmp_path).digest() == first.digest()
    others = [
        first.model_copy(update=u)
        for u in ({"url": "http://x"}, {"model": "b"}, {"api": "completions"}, {"system": "s"})
    ]
    server.models = reply({"data": [{**ENTRY, "max_model_len": 1024}]})
    others.append(endpoint_folder(f"openai:{server.url}#tiny", tmp_path))
    assert len({one.digest() for one in [first, *others]}) == 6


def test_without_v1_and_without_a_model(server: Server, tmp_path: Path) -> None:
    made = endpoint_folder(f"openai:{server.url.removesuffix('/v1')}", tmp_path)
    assert (made.url, made.model) == (server.url, "tiny")
    server.models = reply({"data": [ENTRY, {"id": "other"}]})
    with pytest.raises(UserError, match="has several models; add one of them as #MODEL: tiny, other"):
        endpoint_folder(f"openai:{server.url}", tmp_path)


@pytest.mark.parametrize(
    ("models", "source", "said"),
    [
        (reply({"data": [ENTRY]}), "#tinny", "has no model 'tinny'; it has: tiny"),
        (error(401, "Incorrect API key provided"), "#tiny", "no key, since OPENAI_API_KEY is not set"),
        (reply({}, 308, Location="https://elsewhere/v1"), "#tiny", "give the URL to which it redirects"),
        (error(404), "", "lists no models; add the name of the model as #MODEL"),
    ],
)
def test_what_the_server_refuses_is_said_before_anything_is_asked(
    server: Server, tmp_path: Path, models: Reply, source: str, said: str
) -> None:
    server.models = models
    with pytest.raises(UserError, match=said):
        endpoint_folder(f"openai:{server.url}{source}", tmp_path / "candidate")
    assert not (tmp_path / "candidate").exists()


@pytest.mark.parametrize("models", [error(404), error(501), (200, {}, b"<html>"), reply({"data": []}), reply([])])
def test_a_server_that_lists_nothing_is_used_all_the_same(server: Server, tmp_path: Path, models: Reply) -> None:
    server.models = models
    made = endpoint_folder(f"openai:{server.url}#tiny", tmp_path)
    assert (made.url, made.model, made.server) == (server.url, "tiny", None)


def test_nothing_listens(server: Server, tmp_path: Path) -> None:
    server.stop()
    with pytest.raises(UserError, match=r"cannot be reached \(.*refused\)"):
        endpoint_folder(f"openai:{server.url}#tiny", tmp_path)


# --- how it is asked -------------------------------------------------------------------------------------------------


def test_a_chat_endpoint_gets_messages(server: Server) -> None:
    items = [Item("1", "Why?"), Item("2", "Who?", context="Q: a A: b\n"), Item("3", "How?", answer_prefix="Sure,")]
    backend = OpenAIBackend(endpoint(server, system="Be brief."))
    inputs, responses = backend.answer(items, Template.parse("Q: {prompt} A:"), DECODING)
    assert inputs == ["Why?", "Q: a A: b\nWho?", "How?"]
    assert responses == [
        Response("echo: Why?", 3),
        Response("echo: Q: a A: b\nWho?", 3),
        Response(None, 0, "not available: a chat endpoint does not accept the beginning of a response"),
    ]
    assert {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "max_tokens": 5,
        "temperature": 0,
        "stop": ["###"],
    } in server.bodies
    assert len(server.bodies) == 2
    assert set(server.paths) == {"/v1/chat/completions"}


def test_plain_completions_get_the_rendered_text(server: Server) -> None:
    backend = OpenAIBackend(endpoint(server, api="completions"))
    inputs, responses = backend.answer(
        [Item("1", "Why?", answer_prefix="Sure,")], Template.parse("Q: {prompt} A:"), DECODING
    )
    assert inputs == [server.bodies[0]["prompt"]] == ["Q: Why? A: Sure,"]
    assert responses == [Response("echo: Q: Why? A: Sure,", 3)]
    assert server.paths == ["/v1/completions"]


def test_sampling_and_stops(server: Server) -> None:
    stop = ("a1", "a2", "a3", "Why", "", "a5")
    decoding = Decoding(temperature=0.7, top_p=0.9, seed=3, stop=stop)
    assert OpenAIBackend(endpoint(server)).generate(["Why?"], decoding) == [Response("echo:", 3)]
    assert {n: server.bodies[0][n] for n in ("temperature", "top_p", "seed", "stop")} == {
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["a1", "a2", "a3", "Why"],
    }


def test_twenty_requests_at_once_and_no_more(server: Server) -> None:
    server.delay = 0.05
    prompts = [f"Prompt {k}" for k in range(60)]
    done: list[int] = []
    backend = OpenAIBackend(endpoint(server, concurrency=20))
    assert backend.generate(prompts, DECODING, done.append) == [Response(f"echo: {p}", 3) for p in prompts]
    assert server.most_at_once == 20
    assert sum(done) == 60
    assert set(server.asked.values()) == {1}


# --- faults ----------------------------------------------------------------------------------------------------------


def half_a_body(handler: Any) -> None:
    data = json.dumps(body_of("cut off")).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])


def half_a_chunk(handler: Any) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'40\r\n{"choices"')


def half_without_length(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(json.dumps(body_of("cut off")).encode()[:30])


def hang_up(handler: Any) -> None:
    handler.connection.close()


def no_http(handler: Any) -> None:
    handler.wfile.write(b"hello\r\n\r\n")


def silence(handler: Any) -> None:
    time.sleep(1.0)


def spaces_forever(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


PASSING = {
    "429": error(429, "slow down"),
    "429 with seconds": error(429, "slow down", Retry_After="0"),
    "429 with a date": error(429, "slow down", Retry_After=formatdate(usegmt=True)),
    "429 with nonsense": error(429, "slow down", Retry_After="soon"),
    "408": error(408),
    "500": error(500, "internal error"),
    "502 of a proxy": (502, {}, b"<html>Bad Gateway</html>"),
    "503 without a body": (503, {}, b""),
    "529": error(529, "overloaded"),
    "half a body": half_a_body,
    "half a chunk": half_a_chunk,
    "half without a length": half_without_length,
    "hang-up": hang_up,
    "no HTTP": no_http,
    "invalid JSON": (200, {}, b"{choices: none}"),
    "no UTF-8": (200, {}, b'"\xff\xfe'),
    "empty": (200, {}, b""),
    "null": reply(None),
    "no choice": reply({"choices": []}),
    "null choice": reply({"choices": [None]}),
    "no message": reply({"choices": [{"finish_reason": "stop"}]}),
    "null content": reply(body_of(None)),
    "finish error": reply(body_of("half", "error")),
    "error with status 200": reply({"error": {"message": "overloaded", "code": 503}}),
    "silence": silence,
    "spaces forever": spaces_forever,
}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_loses_nothing(server: Server, name: str) -> None:
    server.faults["Why?"] = [PASSING[name]] * 2  # type: ignore[list-item]
    assert ask(server, "Why?", "Who?", timeout=0.3) == [Response("echo: Why?", 3), Response("echo: Who?", 3)]
    assert server.asked == {"Why?": 3, "Who?": 1}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_stays_is_a_missing_response(server: Server, name: str) -> None:
    server.faults["Why?"] = [PASSING[name]] * 9  # type: ignore[list-item]
    why, who = ask(server, "Why?", "Who?", timeout=0.2, retries=1)
    assert (why.text, who) == (None, Response("echo: Who?", 3))
    assert str(why.reason).startswith("no answer after 2 attempts: ")
    assert server.asked["Why?"] == 2


def test_the_server_decides_how_long_to_wait(server: Server) -> None:
    server.faults["Why?"] = [error(429, Retry_After="0.4")]
    ask(server)
    assert server.times[1] - server.times[0] >= 0.4


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(body_of("")), Response("", 3)),
        (reply(body_of("  An answer ### and more")), Response("An answer", 3)),
        (reply(body_of([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])), Response("ab", 3)),
        (reply({"choices": [{"message": {"content": "x"}}]}), Response("x", 0)),
        (reply({**body_of("x"), "usage": None}), Response("x", 0)),
        (reply(body_of(None, refusal="I cannot help.")), Response("I cannot help.", 3)),
        (reply(body_of(None, "content_filter")), Response(None, 3, "blocked by the endpoint's content filter")),
        (reply(body_of(None, "tool_calls", tool_calls=[{}])), Response(None, 3, "called a tool instead of answering")),
        (
            reply(body_of(None, "length", reasoning_content="Let me think")),
            Response(None, 3, "no answer within max_new_tokens (reasoning took all of them)"),
        ),
        (
            error(400, "This model's maximum context length is 512 tokens", "context_length_exceeded"),
            Response(None, 0, "prompt too long"),
        ),
        (error(500, "the request exceeds the available context size"), Response(None, 0, "prompt too long")),
        (error(413), Response(None, 0, "prompt too long")),
        (
            error(400, "The response was filtered", "content_filter"),
            Response(None, 0, "blocked by the endpoint's content filter"),
        ),
        (error(403, "your input was flagged"), Response(None, 0, "blocked by the endpoint's content filter")),
        (error(422, "strange prompt"), Response(None, 0, "refused: HTTP 422: strange prompt")),
    ],
)
def test_what_is_final_is_not_asked_again(server: Server, answer: Reply, expected: Response) -> None:
    server.faults["Why?"] = [answer]
    assert ask(server) == [expected]
    assert server.asked == {"Why?": 1}


def test_parameters_that_a_model_does_not_take(server: Server) -> None:
    """Reasoning models of OpenAI take neither `max_tokens` nor `stop`."""

    def picky(body: dict[str, Any]) -> Reply | None:
        for name in ("max_tokens", "stop"):
            if name in body:
                return error(400, f"Unsupported parameter: '{name}' is not supported with this model.")
        return reply(body_of("An answer ### and more"))

    server.always = picky
    prompts = [str(k) for k in range(30)]
    assert ask(server, *prompts) == [Response("An answer", 3)] * 30
    assert server.bodies[-1]["max_completion_tokens"] == 5
    server.always = lambda body: error(400, "Unsupported value: 'temperature' does not support 0 with this model.")
    with pytest.raises(UserError, match="does not support the decoding settings of this run"):
        ask(server)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (error(401, "Incorrect API key provided"), "set a valid key"),
        (error(402, "no credit left"), "add credit to the account"),
        (error(429, "You exceeded your current quota", "insufficient_quota"), "answers are kept"),
        (error(404, "The model `tiny` does not exist"), "check the URL"),
        (reply({}, 307, Location="https://elsewhere/v1"), "give the URL to which it redirects"),
    ],
)
def test_what_all_requests_would_get_ends_the_job_at_once(server: Server, answer: Reply, said: str) -> None:
    server.always = lambda body: answer
    with pytest.raises(UserError, match=said):
        ask(server, *map(str, range(50)), concurrency=2)
    assert sum(server.asked.values()) <= 4


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(server) == [Response("echo: Why?", 3)]


# --- in a run --------------------------------------------------------------------------------------------------------


def generate_job(tmp_path: Path, made: Endpoint, n: int = 20) -> Job:
    prompts = tmp_path / "prompts"
    prompts.mkdir(exist_ok=True)
    write_rows(prompts / ITEMS, [item_row(Item(str(k), f"Prompt {k}", (), ())) for k in range(n)])  # type: ignore[arg-type]
    params = {"template": "{prompt}", "decoding": DECODING.model_dump(mode="json"), "dtype": "float32"}
    needs = {"model": External(tmp_path / "candidate", made.digest()), "prompts": External(prompts, "p")}
    return Job("generate", params, needs, "candidate: answer prompts", {"device": "cpu"})


def run(tmp_path: Path, job: Job) -> Outcome:
    (outcome,) = LocalExecutor(Store(tmp_path / "store"), Reporter()).run([job]).values()
    return outcome


def test_a_run_resumes_and_the_key_is_in_no_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_SERVER", KEY)  # the name does not say that it holds a secret
    made = endpoint_folder(
        f"openai:{server.url}#tiny,key_env=MY_SERVER,retries=1,concurrency=1", tmp_path / "candidate"
    )
    job = generate_job(tmp_path, made)
    gone = [error(500, f"trace: Bearer {KEY}")] * 2
    server.faults = {f"Prompt {k}": list(gone) for k in range(8, 20)}
    stopped = run(tmp_path, job)
    assert stopped.status == "failed"
    assert "does not answer any more (no answer after 2 attempts: HTTP 500: trace: Bearer ***" in str(stopped.reason)
    assert [server.asked[f"Prompt {k}"] for k in range(8)] == [1] * 8
    server.asked.clear()
    server.faults = {"Prompt 9": [error(503, KEY)] * 2, "Prompt 10": [reply(body_of(f"your key is {KEY}"))]}
    done = run(tmp_path, job)
    assert done.status == "done"
    assert done.path is not None
    assert set(server.asked) == {f"Prompt {k}" for k in range(8, 20)}
    rows = read_rows(done.path / "responses.jsonl")
    missing = {r["id"]: r["reason"] for r in rows if r["response"] is None}
    assert missing == {"9": "no answer after 2 attempts: HTTP 503: ***"}
    assert rows[8]["response"] == "echo: Prompt 8"
    assert rows[10]["response"] == "your key is ***"
    assert all(h["Authorization"] == f"Bearer {KEY}" for h in server.headers)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert stopped.crash is not None
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in "".join(capfd.readouterr())


def test_a_wrong_key_is_in_no_message(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    made = endpoint_folder(f"openai:{server.url}#tiny", tmp_path / "candidate")
    server.always = lambda body: error(401, f"Incorrect API key provided: {KEY}")
    outcome = run(tmp_path, generate_job(tmp_path, made))
    assert "the request had the key in OPENAI_API_KEY" in str(outcome.reason)
    assert outcome.crash is not None
    assert KEY not in str(outcome.reason) + outcome.crash.read_text()


def test_a_key_that_is_not_set_or_no_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="MY_SERVER is not set; put the endpoint's key into it"):
        ask(server, key_env="MY_SERVER")
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    with pytest.raises(UserError, match="contains characters that are not allowed in a key"):
        ask(server)
    monkeypatch.delenv("OPENAI_API_KEY")
    ask(server)
    assert "Authorization" not in server.headers[-1]


def test_shards_ask_each_prompt_once(server: Server, tmp_path: Path) -> None:
    prompts = [f"Prompt {k}" for k in range(9)]
    backend = OpenAIBackend(endpoint(server))
    for shard in (Shard(0, 2), Shard(1, 2), None):
        with journal.use_journal(Journal(tmp_path, shard)):
            found = backend.generate(prompts, DECODING)
    assert found == [Response(f"echo: {p}", 3) for p in prompts]
    assert set(server.asked.values()) == {1}
    with journal.use_journal(Journal(tmp_path)):
        other = OpenAIBackend(replace_model(backend.endpoint)).generate(prompts[:1], DECODING)
    assert other == [Response("echo: Prompt 0", 3)]
    assert server.asked["Prompt 0"] == 2  # another model has a cache of its own


def replace_model(made: Endpoint) -> Endpoint:
    return made.model_copy(update={"model": "other"})


def test_demonstrations_of_a_chat_template_are_turns_of_the_conversation(server: Server) -> None:
    item = Item("1", "Why?", context='[["Who?", "Me."]]')
    inputs, _ = OpenAIBackend(endpoint(server)).answer([item], Template.parse("Q: {prompt} A:"), DECODING)
    assert server.bodies[0]["messages"] == [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "Why?"},
    ]
    assert inputs == ["[user] Who?\n[assistant] Me.\n[user] Why?"]


def test_a_server_that_cannot_list_its_models_is_used_all_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.01)
    server.models = error(500)
    assert endpoint_folder(f"openai:{server.url}#/a/folder", tmp_path).server is None


def test_a_model_that_is_not_listed_is_accepted_if_it_answers(server: Server, tmp_path: Path) -> None:
    assert endpoint_folder(f"openai:{server.url}#/a/folder", tmp_path).model == "/a/folder"
    server.always = lambda body: error(404, "no such model")
    with pytest.raises(UserError, match="has no model"):
        endpoint_folder(f"openai:{server.url}#other", tmp_path)
