"""A page in the browser to label answers, served to this machine only.

The page is one file without external resources. Only somebody who knows the token in its address is answered, and only under
a name of this machine: a site in the same browser can neither guess the token nor use a name that it has pointed here (DNS
rebinding). Answers of models reach the page as JSON and are set as text, and its Content-Security-Policy allows no script
but ours.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socketserver
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wpn_bench.errors import UserError, WpnBenchError
from wpn_bench.report.label_session import Session
from wpn_bench.report.templates import environment, templates_dir, trusted

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost", "[::1]")  # with any port: it may be that of an SSH tunnel
LARGEST = 10_000  # bytes of a request
# Ports above 1024 that browsers refuse to visit (WHATWG, Fetch, "bad port").
BLOCKED = {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, *range(6665, 6670), 6679, 6697, 10080}


class LabelServer(ThreadingHTTPServer):
    """Serves one sitting.

    Args:
        session: The sitting.
        question: What the annotator is asked.
        summary: Makes the text that is shown at the end.
        port: The port; 0: any free one.

    Raises:
        UserError: The port is not free, or browsers do not visit it.
    """

    daemon_threads = True

    def __init__(self, session: Session, question: str, summary: Callable[[], str], port: int = 0) -> None:
        self.session, self.question, self.summary = session, question, summary
        self.token = secrets.token_urlsafe(24)
        if port in BLOCKED:
            raise UserError(f"browsers refuse to visit port {port}", "give another with --port, or none")
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as e:
            why = getattr(e, "strerror", None) or e
            raise UserError(f"port {port} cannot be used ({why})", "give another with --port, or none") from e

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(
            self
        )  # that of HTTPServer asks for the name of the address, which may take long

    @property
    def url(self) -> str:
        """The address of the page, with its token."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/{self.token}/"

    def stop_soon(self) -> None:
        """End `serve_forever` after the present request."""
        threading.Thread(target=self.shutdown, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a browser that closes the connection is no error


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "wpn-bench", ""
    timeout = 60

    def do_GET(self) -> None:
        asked = self._allowed()
        if asked == "":
            page, policy = _page(self.server.question)
            self._send(HTTPStatus.OK, page.encode("utf-8", "replace"), "text/html; charset=utf-8", policy)
        elif asked == "next":
            self._answer(lambda: asdict(self.server.session.show()))
        elif asked is not None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        asked = self._allowed()
        if asked is None:
            return
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers.get('Host')}":
            self._refuse(HTTPStatus.FORBIDDEN, "the request comes from another page")
            return
        body = self._body()
        if body is None:
            self._refuse(HTTPStatus.BAD_REQUEST, "not a request of the page")
        elif asked == "say":
            self._answer(lambda: asdict(self.server.session.say(str(body.get("key")), str(body.get("label")))))
        elif asked == "undo":
            self._answer(lambda: asdict(self.server.session.undo()))
        elif asked == "finish":
            self._answer(lambda: {"summary": self.server.summary()})
            self.server.stop_soon()
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def _allowed(self) -> str | None:
        """What is asked for, after the token; None if the request was refused."""
        host = self.headers.get("Host") or ""
        name, colon, port = host.rpartition(":")
        if (name if colon and port.isdigit() else host).lower() not in NAMES:
            self._refuse(HTTPStatus.FORBIDDEN, "not under this name")
            return None
        token, slash, asked = self.path.split("?")[0].removeprefix("/").partition("/")
        if not slash or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "the address is incomplete: use the one that the program has printed")
            return None
        return asked

    def _body(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length") or ""
        if not length.isdigit() or int(length) > LARGEST or self.headers.get_content_type() != "application/json":
            self.close_connection = True  # what was not read would be taken for the next request
            return None
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            return None
        return body if isinstance(body, dict) else None

    def _answer(self, make: Callable[[], dict[str, Any]]) -> None:
        try:
            told = make()
        except WpnBenchError as e:
            self._refuse(HTTPStatus.CONFLICT, str(e))
            return
        self._json(HTTPStatus.OK, told)

    def _refuse(self, status: HTTPStatus, problem: str) -> None:
        self._json(status, {"problem": problem})

    def _json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        # A lone surrogate cannot be encoded: it becomes a question mark.
        body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        self._send(status, body, "application/json; charset=utf-8", "default-src 'none'")

    def _send(self, status: HTTPStatus, body: bytes, kind: str, policy: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", policy),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the address in the log would contain the token


@cache
def _page(question: str) -> tuple[str, str]:
    """The page, and its Content-Security-Policy."""
    folder = templates_dir()
    script, style = ((folder / f"label.{end}").read_text(encoding="utf-8") for end in ("js", "css"))
    page = (
        environment()
        .get_template("label.html.j2")
        .render(question=question, script=trusted(script), style=trusted(style))
    )
    sources = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (script, style)
    ]
    policy = (
        f"default-src 'none'; script-src {sources[0]}; style-src {sources[1]}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy
