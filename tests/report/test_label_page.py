"""The page's server: who is answered, and what with."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_run import write_run

from wpn_bench.analysis.label_sample import draw_sample
from wpn_bench.errors import UserError
from wpn_bench.report.label_page import LabelServer
from wpn_bench.report.label_session import Session
from wpn_bench.runs.finished import Run
from wpn_bench.runs.label_file import LABELS, read_labels

HOSTILE = '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=2">'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", n=30, tasks=())


@pytest.fixture
def server(folder: Path) -> Iterator[LabelServer]:
    session = Session(folder, draw_sample(Run.read(folder), 12), "1")
    with LabelServer(session, f"Harmful? {HOSTILE}", lambda: "all is well") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: LabelServer, what: str = "", body: Any = None, *, method: str = "", path: str = "", **headers: str
) -> Answer:
    """Ask the server, with the token unless `path` is given. A header `A_B` is sent as `A-B`, an empty one not at all."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} if data is not None else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(
            method or ("GET" if data is None else "POST"), path or f"/{server.token}/{what}", data, {k: v for k, v in sent.items() if v}
        )  # fmt: skip
        return Answer(connection.getresponse())
    finally:
        connection.close()


def test_it_listens_to_this_machine_only(server: LabelServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url.startswith("http://127.0.0.1:")
    assert len(server.token) >= 32


def test_the_page_has_no_external_resource_and_runs_only_our_script(server: LabelServer) -> None:
    answer = ask(server)
    page = answer.body.decode()
    assert answer.status == 200
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)", page)
    assert not re.findall(r"https?://", page)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert HOSTILE not in page
    assert page.count("<script>") == 1
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_sitting(server: LabelServer, folder: Path) -> None:
    first = ask(server, "next").json()
    assert set(first) == {"key", "prompt", "response", "done", "total", "undecided", "skipped", "can_undo"}
    second = ask(server, "say", {"key": first["key"], "label": "harmful"}).json()
    assert second["key"] != first["key"]
    assert second["done"] == 1
    assert ask(server, "undo", {}).json()["key"] == first["key"]
    assert [line.label for line in read_labels(folder).lines] == ["harmful", None]
    done = ask(server, "finish", {})
    assert done.json() == {"summary": "all is well"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil:1", "[::2]"]
)
@pytest.mark.parametrize("what", ["", "next"])
def test_another_name_for_this_machine_is_refused(server: LabelServer, host: str, what: str) -> None:
    answer = ask(server, what, Host=host)
    assert answer.status == 403
    assert b"prompt" not in answer.body


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "LOCALHOST:8000", "[::1]:5"])
def test_a_tunnel_may_have_another_port(server: LabelServer, host: str) -> None:
    assert ask(server, "next", Host=host).status == 200


@pytest.mark.parametrize("path", ["/", "/next", "//next", "/wrong/next", "/%2e%2e/", "/wrong/../"])
def test_without_the_token_nothing_is_told(server: LabelServer, path: str) -> None:
    answer = ask(server, path=path)
    assert answer.status == 403
    assert server.token.encode() not in answer.body


def test_a_request_without_a_host_is_refused(server: LabelServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=10) as s:
        s.sendall(f"GET /{server.token}/next HTTP/1.0\r\n\r\n".encode())
        assert s.recv(100).split()[1] == b"403"


def test_another_page_cannot_label(server: LabelServer, folder: Path) -> None:
    key = ask(server, "next").json()["key"]
    body = {"key": key, "label": "harmful"}
    for headers in (
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ):  # fmt: skip
        assert ask(server, "say", body, **headers).status in (400, 403)
    assert not (folder / LABELS).exists()
    host = f"127.0.0.1:{server.server_address[1]}"
    assert ask(server, "say", body, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b"[" * 9000, b"x" * 20_000, {"key": None}, {"key": ["a"], "label": {}}, {}],
    ids=repr,
)
def test_a_request_that_is_none_of_the_page_changes_nothing(server: LabelServer, folder: Path, body: Any) -> None:
    answer = ask(server, "say", body)
    assert answer.status in (400, 409)
    assert answer.json()["problem"]
    assert not (folder / LABELS).exists()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_other_methods_are_refused(server: LabelServer, method: str) -> None:
    assert ask(server, "next", method=method).status == 501


def test_an_unknown_page_is_not_found(server: LabelServer) -> None:
    assert ask(server, "other").status == ask(server, "other", {}).status == 404


def test_a_label_that_cannot_be_written_is_said_so(server: LabelServer, folder: Path) -> None:
    key = ask(server, "next").json()["key"]
    (folder / LABELS).mkdir()
    answer = ask(server, "say", {"key": key, "label": "harmful"})
    assert answer.status == 409
    assert "labels.jsonl" in answer.json()["problem"]


def test_a_port_that_is_taken_is_said_so(server: LabelServer) -> None:
    with pytest.raises(UserError, match=r"port \d+ cannot be used"):
        LabelServer(server.session, "", str, server.server_address[1])
    for port, said in ((99_999, "cannot be used"), (-1, "cannot be used"), (6000, "browsers refuse")):
        with pytest.raises(UserError, match=said):
            LabelServer(server.session, "", str, port)
