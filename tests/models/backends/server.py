"""A small server in this process that speaks OpenAI's API, and fails in each way that servers fail."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTRY = {"id": "tiny", "owned_by": "me", "max_model_len": 512, "created": 1, "permission": [{"id": "random"}]}
Reply = tuple[int, dict[str, str], bytes]


def body_of(text: Any, finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text, **message}, "text": text, "finish_reason": finish}
    return {"choices": [choice], "usage": {"completion_tokens": 3}}


def reply(body: Any, status: int = 200, **headers: str) -> Reply:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body).encode()


def error(status: int, message: str = "", code: str = "", **headers: str) -> Reply:
    return reply({"error": {"message": message, "code": code}}, status, **headers)


class Server:
    """Answers `echo: PROMPT`. `faults` maps a prompt to the replies before that; a callable may do what it likes."""

    def __init__(self) -> None:
        self.models: Reply = reply({"object": "list", "data": [ENTRY]})
        self.faults: dict[str, list[Reply | Callable[[Any], None]]] = {}
        self.always: Callable[[dict[str, Any]], Reply | None] = lambda body: None
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.delay = 0.0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                return

            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                outer.paths.append(self.path)
                found = self.path in ("/v1/models", "/v1/models?api-version=1")
                self.put(outer.models if found else error(404, "no such page"))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body.get("prompt") or body["messages"][-1]["content"]
                with outer._lock:
                    outer.asked[prompt] += 1
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    outer.times.append(time.monotonic())
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                    waiting = outer.faults.get(prompt)
                    fault = waiting.pop(0) if waiting else outer.always(body)
                time.sleep(outer.delay)
                with outer._lock:
                    outer.at_once -= 1
                if callable(fault):
                    fault(self)
                else:
                    self.put(fault or reply(body_of(f"echo: {prompt}")))

            def put(self, answer: Reply) -> None:
                status, headers, data = answer
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        class Http(ThreadingHTTPServer):
            request_queue_size = 64
            daemon_threads = True

        self._http = Http(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
