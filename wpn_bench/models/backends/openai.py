"""The backend of remote endpoints that speak OpenAI's API: vLLM, SGLang, llama.cpp, Ollama, TGI and commercial ones.

A model at an endpoint is written `openai:URL#MODEL[,NAME=VALUE...]` (see `parse_source`). `endpoint_folder` asks the server about it
and writes `backend.json`. The key is read from an environment variable at each request, and is in no file and no message.

A failed request is repeated after a growing delay, and is a missing response in the end. Responses are kept in the job's
per-example checkpoint. If the server stops answering, the job fails, and a repeated run sends only the other requests.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from wpn_bench.core.files import write_json
from wpn_bench.core.json_files import load_json
from wpn_bench.core.progress import Advance
from wpn_bench.errors import UserError, text_of
from wpn_bench.jobs import journal
from wpn_bench.models.backends.base import Backend, Decoding, Response, TokenPair
from wpn_bench.models.backends.endpoint import KEY_VARIABLE, Endpoint, parse_source
from wpn_bench.prompts import Item, Template
from wpn_bench.prompts.templates import Turn, messages_of, turns_of
from wpn_bench.redact import HIDDEN, hide_variable, one_line

BACKOFF_SECONDS = 1.0  # before the first repetition; doubled each time
LONGEST_WAIT_SECONDS = 60.0  # between two attempts, unless the server asks for more
MAX_RETRY_AFTER_SECONDS = 600.0
MAX_STOPS = 4  # OpenAI's limit; longer lists are applied to the response here
MAX_FAILURES = 10  # requests in a row that failed in the end: the server is gone
UNKNOWN_CONTEXT = 2**31  # the server refuses what is too long for it
_REPEATED = {408, 409, 425, 429}  # and all from 500 on
_FATAL = {401, 402, 403, 404, 405}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# Of an entry of /v1/models: what tells one model from another. `created` is the time of the request in vLLM and llama.cpp.
_IDENTITY = ("id", "owned_by", "root", "parent", "max_model_len", "context_length", "context_window", "meta", "digest")


def endpoint_folder(source: str | Endpoint, folder: Path) -> Endpoint:
    """Ask the server about a model, and write `backend.json`, so that `open_backend` finds the endpoint.

    Args:
        source: The endpoint, as text (see `parse_source`) or as settings.
        folder: Where to write; created if necessary.

    Returns:
        The settings with what the server says of itself. Their `digest()` identifies the model in jobs.

    Raises:
        UserError: The server cannot be reached, refuses the key, or does not have the model.
    """
    endpoint = parse_source(source) if isinstance(source, str) else source
    endpoint = identified(endpoint)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "backend.json", endpoint.model_dump(mode="json"))
    return endpoint


def identified(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with the server's entry of its model. Raises `UserError` if the server does not have it."""
    client = _Client(endpoint)
    listed: Any = None
    for url in (endpoint.url, _joined(endpoint.url, "/v1")):  # people leave /v1 out
        status, listed = client.get(_joined(url, "/models"), (500,))  # `transformers serve` without a cache of the hub
        if status in (401, 403) or 300 <= status < 400:
            raise client.refused(status, listed)
        if status == 200 and isinstance(listed, dict):
            endpoint = endpoint.model_copy(update={"url": url})
            break
    else:
        if not endpoint.model:
            raise UserError(f"the endpoint {endpoint.url} lists no models", "add #MODEL")
        return endpoint
    found = listed.get("data") or listed.get("models") or []
    entries = {str(one.get("id") or one.get("name")): one for one in found if isinstance(one, dict)}
    model = endpoint.model or (next(iter(entries)) if len(entries) == 1 else "")
    if not model:
        raise UserError(f"the endpoint {endpoint.url} has several models", f"add one: {_some(entries)}")
    entry = entries.get(model) or entries.get(f"{model}:latest")
    if entry is None:
        status, entry = client.get(_joined(endpoint.url, "/models/" + urllib.parse.quote(model, safe="/:")))
        listed_alone = status == 200 and isinstance(entry, dict) and entry.get("id")
        is_folder = model.startswith(("/", "./", "~")) and _answers(endpoint.model_copy(update={"model": model}))
        if entries and not listed_alone and not is_folder:
            raise UserError(f"the endpoint {endpoint.url} has no model {model!r}", f"it has: {_some(entries)}")
    said = {name: entry[name] for name in _IDENTITY if name in entry} if isinstance(entry, dict) else None
    return endpoint.model_copy(update={"model": model, "server": said or None})


def _answers(endpoint: Endpoint) -> bool:
    """Return whether a server answers with a model that it does not list: `transformers serve` lists no folder."""
    asked = endpoint.model_copy(update={"retries": 0})
    try:
        return OpenAIBackend(asked).generate(["Hello"], Decoding(max_new_tokens=1))[0].text is not None
    except UserError:
        return False


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:20]) + (" and others" if len(names) > 20 else "")


def _joined(url: str, more: str) -> str:
    """Append to the path of a URL, before its query."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + more))


class OpenAIBackend(Backend):
    """A model at an endpoint. It gives responses, and no log-likelihoods or weights.

    Args:
        endpoint: Its settings.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        server = endpoint.server or {}
        meta = server.get("meta") or {}
        told = [server.get(n) for n in ("max_model_len", "context_length", "context_window")] + [meta.get("n_ctx")]
        self.context_length = next((n for n in told if isinstance(n, int) and n > 0), UNKNOWN_CONTEXT)

    @classmethod
    def open(cls, folder: Path, device: str = "", dtype: str = "", offload: str = "") -> Self:
        file = folder / "backend.json"
        try:
            return cls(Endpoint(**load_json(file, "write it with `--candidate NAME=openai:URL#MODEL`")))
        except ValidationError as e:
            raise UserError(f"{file}: {e.errors()[0]['msg']}", "name the candidate as openai:URL#MODEL again") from None

    def digest(self) -> str:
        return self.endpoint.digest()

    def loglikelihoods(
        self,
        pairs: Sequence[TokenPair],
        *,
        max_length: int | None = None,
        pass_tokens: int | None = None,
        advance: Advance = lambda n: None,
    ) -> None:
        return None

    def generate(self, prompts: Sequence[str], decoding: Decoding, advance: Advance = lambda n: None) -> list[Response]:
        """Generate responses. A chat endpoint gets each prompt as the message of a user.

        Args:
            prompts: Texts that the model continues, or messages.
            decoding: How responses are generated.
            advance: Called with the number of responses done since its last call.

        Returns:
            One response for each prompt, in order.

        Raises:
            UserError: The server refuses all requests, or answers no longer.
        """
        return self._respond([Item("", prompt) for prompt in prompts], list(prompts), decoding, advance)

    def answer(
        self, items: Sequence[Item], template: Template, decoding: Decoding, advance: Advance = lambda n: None
    ) -> tuple[list[str], list[Response]]:
        if self.endpoint.api == "completions":
            inputs = [template.render(item) for item in items]
            return inputs, self.generate(inputs, decoding, advance)
        inputs = [_shown(item) for item in items]
        return inputs, self._respond(items, inputs, decoding, advance)

    def _respond(
        self, items: Sequence[Item], inputs: Sequence[str], decoding: Decoding, advance: Advance
    ) -> list[Response]:
        """Send the inputs that the checkpoint does not hold."""
        chat = self.endpoint.api == "chat"
        prefixes = [item.answer_prefix if chat else "" for item in items]
        parameters = decoding.model_dump(mode="json", exclude={"batch_size"})
        stored = journal.section(
            "openai", lambda: journal.fingerprint([*inputs, *prefixes], self.digest(), sorted(parameters.items()))
        )
        responses: list[Response | None] = [None] * len(inputs)
        asked = []
        for k, prefix in enumerate(prefixes):
            if k in stored.known:
                text, n_tokens, reason = stored.known[k]
                responses[k] = Response(text, n_tokens, reason)
            elif not stored.in_shard(k):
                responses[k] = Response("", 0)
            elif prefix:
                responses[k] = Response(None, 0, "not available: a chat endpoint takes no beginning of a response")
            else:
                asked.append(k)
        advance(len(inputs) - len(asked))
        client, failures = _Client(self.endpoint), 0
        bodies = {k: self._body(inputs[k], decoding, turns_of(items[k].context), items[k].prompt) for k in asked}
        for k, response, final in client.ask_all(bodies):
            responses[k] = response = _cut(response, decoding.stop)
            if final:
                failures = 0
                stored.add({k: [response.text, response.n_tokens, response.reason]})
            else:
                failures += 1
                if failures >= min(MAX_FAILURES, len(inputs)):
                    raise UserError(
                        f"the endpoint {self.endpoint.url} answers no longer ({response.reason})",
                        "start it, then repeat the command: all its answers are kept",
                    )
            advance(1)
        return [one for one in responses if one is not None]

    def _body(
        self, text: str, decoding: Decoding, turns: Sequence[Turn] | None = None, last: str = ""
    ) -> dict[str, Any]:
        """Return a request. A chat with earlier `turns` ends with the message `last`, not with `text`."""
        body: dict[str, Any] = {"model": self.endpoint.model, "max_tokens": decoding.max_new_tokens}
        if self.endpoint.api == "chat":
            system = [{"role": "system", "content": self.endpoint.system}] if self.endpoint.system else []
            body["messages"] = [
                *system,
                *messages_of(turns or ()),
                {"role": "user", "content": last if turns else text},
            ]
        else:
            body["prompt"] = text
        body["temperature"] = decoding.temperature or 0
        if decoding.temperature is not None:
            body["seed"] = decoding.seed
            if decoding.top_p is not None:
                body["top_p"] = decoding.top_p
        if stop := [one for one in decoding.stop if one][:MAX_STOPS]:
            body["stop"] = stop
        return body


def _shown(item: Item) -> str:
    """Return a message as text, after the earlier turns of its chat."""
    if (turns := turns_of(item.context)) is None:
        return item.context + item.prompt
    return "\n".join(f"[{m['role']}] {m['content']}" for m in [*messages_of(turns), *messages_of([(item.prompt,)])])


def _cut(response: Response, stop: Sequence[str]) -> Response:
    text = response.text
    if text is None:
        return response
    for mark in filter(None, stop):
        text = text.split(mark)[0]
    return Response(text.strip(), response.n_tokens, response.reason)


class _Retry(Exception):
    """A request failed in a way that may pass. `wait`: the seconds that the server asks for."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Follow none: the key would be sent to another server."""


class _Client:
    """Sends requests from several threads, with retries."""

    def __init__(self, endpoint: Endpoint) -> None:
        hide_variable(endpoint.key_env)
        self.endpoint = endpoint
        self.key = os.environ.get(endpoint.key_env, "").strip()
        if not self.key and endpoint.key_env != KEY_VARIABLE:
            raise UserError(f"the environment variable {endpoint.key_env} is not set", "put the endpoint's key into it")
        if not (self.key.isascii() and self.key.isprintable()):
            raise UserError(f"{endpoint.key_env} holds characters that no key has", "set it again")
        # A proxy for the web cannot reach a server on this machine.
        local = urllib.parse.urlsplit(endpoint.url).hostname in _LOOPBACK
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)
        self._lock = threading.Lock()
        self._not_before = 0.0  # the server asked all requests to wait until then
        self._renamed: set[str] = set()  # parameters that this server does not take
        self._stopped = threading.Event()

    def get(self, url: str, accepted: Sequence[int] = ()) -> tuple[int, Any]:
        """Return the status and the content of a page (None: no JSON). Raises `UserError` if nothing answers.

        A status in `accepted` is returned after three attempts.
        """
        for attempt in range(3):
            try:
                return 200, self._send(url, None, min(self.endpoint.timeout, 30.0))
            except urllib.error.HTTPError as e:
                if e.code not in _REPEATED and (e.code < 500 or e.code == 501):
                    return e.code, self._error_of(e)
                why = f"HTTP {e.code}"
                if e.code in accepted and attempt == 2:
                    return e.code, None
            except json.JSONDecodeError:
                return 0, None
            except (OSError, http.client.HTTPException, ValueError) as e:
                why = self._said(e)
            time.sleep(BACKOFF_SECONDS * attempt)
        raise UserError(f"the endpoint {self.endpoint.url} cannot be reached ({why})", "start it, or mend the URL")

    def refused(self, status: int, error: Any) -> UserError:
        """Return the error for a request that no repetition helps."""
        key = f"the key in {self.endpoint.key_env}" if self.key else f"no key, since {self.endpoint.key_env} is not set"
        hints = {
            401: f"the request had {key}: set the right one",
            402: "pay the account, then repeat the command: all answers are kept",
            403: f"the request had {key}: set one that may use this model",
            404: "look at the URL (most end in /v1), the model and `api=chat|completions`",
        }
        return UserError(
            f"the endpoint {self.endpoint.url} refuses {self.endpoint.model} (HTTP {status}: {self._text(error)})",
            "give the URL to which it redirects"
            if status < 400
            else hints.get(status, "mend that, then repeat the command: all answers are kept"),
        )

    def ask_all(self, bodies: Mapping[int, dict[str, Any]]) -> Any:
        """Send requests, `concurrency` at a time.

        Args:
            bodies: The requests by position.

        Yields:
            Position, response, and whether it is final; if not, all attempts failed.

        Raises:
            UserError: The server refuses all requests, such as for a wrong key.
        """
        waiting: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for pair in bodies.items():
            waiting.put(pair)

        def work() -> None:
            while not self._stopped.is_set():
                try:
                    k, body = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((k, *self._ask(body)))
                except BaseException as e:
                    done.put(e)

        # Daemons, so that Ctrl-C does not wait for them.
        for _ in range(min(self.endpoint.concurrency, len(bodies))):
            threading.Thread(target=work, daemon=True, name="endpoint").start()
        try:
            for _ in bodies:
                found = done.get()
                if isinstance(found, BaseException):
                    self._stopped.set()
                    while not done.empty():  # what was answered before is kept
                        if not isinstance(more := done.get(), BaseException):
                            yield more
                    raise found
                yield found
        finally:
            self._stopped.set()

    def _ask(self, body: dict[str, Any]) -> tuple[Response, bool]:
        """Send one request until it succeeds. Returns the response, and whether it is final."""
        why = ""
        for attempt in range(self.endpoint.retries + 1):
            self._wait(max(0.0, self._not_before - time.monotonic()))
            try:
                return self._attempt(body), True
            except _Retry as e:
                why = text_of(e)
                if e.wait is not None:
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + e.wait)
            if self._stopped.is_set():
                break
            if attempt < self.endpoint.retries:
                self._wait(min(LONGEST_WAIT_SECONDS, BACKOFF_SECONDS * 2**attempt) * random.uniform(0.75, 1.25))
        return Response(None, 0, f"no answer after {self.endpoint.retries + 1} attempts: {why}"), False

    def _wait(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _attempt(self, body: dict[str, Any]) -> Response:
        path = "/chat/completions" if self.endpoint.api == "chat" else "/completions"
        adapted = {name: value for name, value in body.items() if name not in self._renamed}
        if "max_tokens" in self._renamed:
            adapted["max_completion_tokens"] = body["max_tokens"]
        try:
            return self._response(self._send(_joined(self.endpoint.url, path), adapted, self.endpoint.timeout))
        except urllib.error.HTTPError as e:
            return self._failed(e.code, self._error_of(e), e.headers, body, adapted)
        except json.JSONDecodeError as e:
            raise _Retry("the body is no JSON") from e
        except http.client.IncompleteRead as e:
            raise _Retry("the body ended too soon") from e
        except TimeoutError as e:
            raise _Retry(f"nothing within {self.endpoint.timeout:g} s") from e
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise _Retry(self._said(e)) from e

    def _failed(self, status: int, error: Any, headers: Any, body: dict[str, Any], sent: Mapping[str, Any]) -> Response:
        """Return the response of a refused request, or raise `_Retry`, or `UserError` if all requests will be refused."""
        details = error.get("error", error) if isinstance(error, dict) else {}
        said = self._text(error)
        code = str(details.get("code") or details.get("type") or "") if isinstance(details, dict) else ""
        known = f"{code} {said}".lower()
        if "insufficient_quota" in known or (status == 429 and "billing" in known):
            raise self.refused(status, error)
        too_long = r"context.{0,3}(length|window|size)|prompt is too long|too many tokens"
        if status == 413 or (status in (400, 422, 500) and re.search(too_long, known)):
            return Response(None, 0, "prompt too long")
        if status in _REPEATED or status >= 500:
            raise _Retry(f"HTTP {status}: {said}" if said else f"HTTP {status}", _retry_after(headers))
        if status in (400, 403, 422) and re.search(
            r"content.{0,3}(filter|policy|management)|moderation|flagged", known
        ):
            return Response(None, 0, "blocked by the endpoint's content filter")
        if status in (400, 422):
            for name in ("max_tokens", "stop", "seed"):
                # `stop` is also applied here; without `seed`, the same samples cannot be drawn again.
                if name in sent and re.search(rf"\b{name}\b", known):
                    self._renamed.add(name)
                    return self._attempt(body)
            if "temperature" in known:
                raise UserError(
                    f"the endpoint {self.endpoint.url} does not decode as this run does ({said})",
                    "choose a model that takes `temperature`, or another --temperature",
                )
            return Response(None, 0, f"refused: HTTP {status}: {said}")
        if status in _FATAL or 300 <= status < 400:
            raise self.refused(status, error)
        return Response(None, 0, f"refused: HTTP {status}: {said}")

    def _response(self, found: Any) -> Response:
        """Read the response from the server's JSON. Raises `_Retry` if it holds none."""
        if isinstance(found, dict) and found.get("error"):  # some gateways report errors with status 200
            error = found["error"]
            code = error.get("code") if isinstance(error, dict) else None
            return self._failed(code if isinstance(code, int) else 500, found, {}, {}, {})
        choices = found.get("choices") if isinstance(found, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            raise _Retry("the answer holds no choice")
        usage = found.get("usage")
        n = usage.get("completion_tokens") if isinstance(usage, dict) else None
        n_tokens = n if isinstance(n, int) else 0
        finish = choice.get("finish_reason")
        message = choice.get("message") if self.endpoint.api == "chat" else choice
        if not isinstance(message, dict) or finish == "error":
            raise _Retry("the choice is empty")
        text = message.get("content" if self.endpoint.api == "chat" else "text")
        if isinstance(text, list):  # parts, of which some are images or thoughts
            text = "".join(
                str(one.get("text") or "") for one in text if isinstance(one, dict) and one.get("type") == "text"
            )
        if not text and isinstance(message.get("refusal"), str):
            text = message["refusal"]
        if not text and finish == "content_filter":
            return Response(None, n_tokens, "blocked by the endpoint's content filter")
        if not text and message.get("tool_calls"):
            return Response(None, n_tokens, "called a tool instead of answering")
        if not text and finish == "length":
            return Response(None, n_tokens, "no answer within max_new_tokens (reasoning took all of them)")
        if not isinstance(text, str):
            raise _Retry("the choice is empty")
        return Response(self._hidden(text), n_tokens)

    def _send(self, url: str, body: Mapping[str, Any] | None, timeout: float) -> Any:
        """Send one request and return the JSON of the response, all within `timeout` seconds."""
        headers = {"Accept": "application/json", "User-Agent": "wpn-bench"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode("utf-8")  # escaped: a lone surrogate is sent as it is
        deadline = time.monotonic() + timeout
        with self._opener.open(urllib.request.Request(url, data, headers), timeout=timeout) as response:
            parts = []
            # Servers that send spaces to keep a connection alive would never reach the time limit of the socket.
            while part := response.read1(65536):
                parts.append(part)
                if time.monotonic() > deadline:
                    raise TimeoutError
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
        return json.loads(b"".join(parts))

    def _error_of(self, e: urllib.error.HTTPError) -> Any:
        try:
            text = e.read(20_000).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException, ValueError):
            return None
        try:
            return json.loads(text)
        except ValueError:
            return text

    def _text(self, error: Any) -> str:
        """Return what an error says, in one line without the key."""
        if isinstance(error, dict):
            error = error.get("error", error)
        if isinstance(error, dict):
            error = error.get("message") or error.get("detail") or json.dumps(error)
        return self._hidden(one_line(str(error or ""), 300))

    def _said(self, e: BaseException) -> str:
        reason = getattr(e, "reason", None)
        return self._hidden(text_of(reason if isinstance(reason, BaseException) else e) or type(e).__name__)

    def _hidden(self, text: str) -> str:
        return text.replace(self.key, HIDDEN) if self.key else text


def _retry_after(headers: Any) -> float | None:
    """Return the seconds that a server asks to wait, from a number or a date."""
    value = headers.get("Retry-After") if headers else None
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS) if seconds == seconds else None
