"""The client of remote endpoints with OpenAI's API. It sends requests in parallel, retries them and reads the replies.

The key is read from an environment variable. It is never written to a file or a message.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wpn_bench.errors import UserError, text_of
from wpn_bench.models.backends.endpoint import KEY_VARIABLE, Endpoint
from wpn_bench.redact import HIDDEN, hide_variable, one_line

BACKOFF_SECONDS = 1.0  # wait before the first retry; it doubles for each further retry
LONGEST_WAIT_SECONDS = 60.0  # longest wait between two attempts, unless the server asks for more
MAX_RETRY_AFTER_SECONDS = 600.0
MAX_FAILURES = 10  # after so many failed requests in a row, the server is considered down
_REPEATED = {408, 409, 425, 429}  # status codes that are retried, like all from 500
_FATAL = {401, 402, 403, 404, 405}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def joined(url: str, more: str) -> str:
    """Append to the path of a URL, before its query.

    Args:
        url: The URL.
        more: The text to append, such as "/models".

    Returns:
        The longer URL.
    """
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + more))


# Parameters that are left out if the server refuses them, with a pattern that finds them in its error message. Without
# `seed`, samples are not reproducible.
OPTIONAL: Mapping[str, str] = {"max_tokens": r"\bmax_tokens\b", "stop": r"\bstop\b", "seed": r"\bseed\b"}
# A schema of the reply is refused in these words.
RESPONSE_FORMAT = "response_format"
STRUCTURED = r"response_?(format|schema)|json_?(schema|object)|json mode|structured.?output|guided|grammar|peg-native|requested parameters"
# The reasons of replies without a text begin with these words, among others.
TOO_LONG, REFUSED, ONLY_REASONING = "prompt too long", "refused", "reasoned without an answer"
UNANSWERED = "no answer after"  # so many attempts
SYSTEM = "system"  # key for the system message; if it is refused, its text is put before the first other message


@dataclass(frozen=True)
class Reply:
    """The reply to one request.

    Attributes:
        text: The generated text; None if there is none.
        n_tokens: Number of generated tokens, including those of the reasoning.
        reason: Why there is no text.
        n_prompt_tokens: Number of tokens in the request.
        finish: Why generation ended, as the server names it, such as `stop`, `length` or `content_filter`.
        refused: Whether the server marks the text as a refusal.
    """

    text: str | None
    n_tokens: int = 0
    reason: str | None = None
    n_prompt_tokens: int = 0
    finish: str = ""
    refused: bool = False


class _Retry(Exception):
    """A request failed, but may succeed later. `wait` is the number of seconds to wait if the server gives one."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Follow no redirect, because the key would be sent to another server."""


class EndpointClient:
    """Sends requests from several threads and retries them.

    Args:
        endpoint: Settings of the endpoint.
        optional: Parameters that are left out if the server refuses them (see `OPTIONAL`).
    """

    def __init__(self, endpoint: Endpoint, optional: Mapping[str, str] = OPTIONAL) -> None:
        hide_variable(endpoint.key_env)
        self.endpoint = endpoint
        self.key = os.environ.get(endpoint.key_env, "").strip()
        if not self.key and endpoint.key_env != KEY_VARIABLE:
            raise UserError(f"the environment variable {endpoint.key_env} is not set", "put the endpoint's key into it")
        if not (self.key.isascii() and self.key.isprintable()):
            raise UserError(f"{endpoint.key_env} contains characters that are not allowed in a key", "set it again")
        # A proxy for the web cannot reach a server on this machine.
        local = urllib.parse.urlsplit(endpoint.url).hostname in _LOOPBACK
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)
        self._lock = threading.Lock()
        self._not_before = 0.0  # the server asked to send no request before this time
        self._optional = optional
        self._refused: set[str] = set()  # parameters that this server does not accept
        self._stopped = threading.Event()

    def get(self, url: str, accepted: Sequence[int] = ()) -> tuple[int, Any]:
        """Return the status code and the JSON content of a page.

        Args:
            url: The URL.
            accepted: Status codes of errors that are returned after three attempts and not raised.

        Returns:
            The status code and the content; None if it is not JSON.

        Raises:
            UserError: The server does not answer.
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
        raise UserError(f"the endpoint {self.endpoint.url} cannot be reached ({why})", "start it, or correct the URL")

    def refused(self, status: int, error: Any) -> UserError:
        """Return the error for a request that would be refused again if it were repeated.

        Args:
            status: Status code of the refusal.
            error: Error message of the server.

        Returns:
            The error, which the caller raises.
        """
        key = f"the key in {self.endpoint.key_env}" if self.key else f"no key, since {self.endpoint.key_env} is not set"
        hints = {
            401: f"the request had {key}; set a valid key",
            402: "add credit to the account, then repeat the command; all answers are kept",
            403: f"the request had {key}; set a key that may use this model",
            404: "check the URL (most end in /v1), the model and `api=chat|completions`",
        }
        return UserError(
            f"the endpoint {self.endpoint.url} refuses {self.endpoint.model} (HTTP {status}: {self._text(error)})",
            "give the URL to which it redirects"
            if status < 400
            else hints.get(status, "fix this, then repeat the command; all answers are kept"),
        )

    def ask_all(self, bodies: Mapping[int, dict[str, Any]], total: int) -> Iterator[tuple[int, Reply, bool]]:
        """Send requests, `concurrency` at the same time.

        Args:
            bodies: The requests by position.
            total: Number of requests, including those that were answered before.

        Yields:
            The position, the reply, and whether the reply is final. It is not final if all attempts failed.

        Raises:
            UserError: The server refuses all requests, such as for a wrong key, or does not answer any more.
        """
        failures = 0
        for k, reply, final in self._replies(bodies):
            yield k, reply, final
            failures = 0 if final else failures + 1
            if failures >= min(MAX_FAILURES, total):
                raise UserError(
                    f"the endpoint {self.endpoint.url} does not answer any more ({reply.reason})",
                    "start it again, then repeat the command; all its answers are kept",
                )

    def _replies(self, bodies: Mapping[int, dict[str, Any]]) -> Iterator[tuple[int, Reply, bool]]:
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
                    self._stopped.set()  # before the other threads send more requests that will be refused
                    done.put(e)

        # Daemon threads, so that Ctrl-C does not wait for them.
        for _ in range(min(self.endpoint.concurrency, len(bodies))):
            threading.Thread(target=work, daemon=True, name="endpoint").start()
        try:
            for _ in bodies:
                found = done.get()
                if isinstance(found, BaseException):
                    self._stopped.set()
                    while not done.empty():  # keep the replies that have arrived
                        if not isinstance(more := done.get(), BaseException):
                            yield more
                    raise found
                yield found
        finally:
            self._stopped.set()

    def _ask(self, body: dict[str, Any]) -> tuple[Reply, bool]:
        """Send one request until it succeeds. Returns the reply, and whether it is final."""
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
        return Reply(None, 0, f"{UNANSWERED} {self.endpoint.retries + 1} attempts: {why}"), False

    def _wait(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _attempt(self, body: dict[str, Any]) -> Reply:
        path = "/chat/completions" if self.endpoint.api == "chat" else "/completions"
        adapted = self._adapted(body)
        try:
            return self._reply(self._send(joined(self.endpoint.url, path), adapted, self.endpoint.timeout))
        except urllib.error.HTTPError as e:
            return self._failed(e.code, self._error_of(e), e.headers, body, adapted)
        except json.JSONDecodeError as e:
            raise _Retry("the body is not JSON") from e
        except http.client.IncompleteRead as e:
            raise _Retry("the body ended too soon") from e
        except TimeoutError as e:
            raise _Retry(f"no response within {self.endpoint.timeout:g} s") from e
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise _Retry(self._said(e)) from e

    def _adapted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request without the parameters that the server does not accept."""
        adapted = {name: value for name, value in body.items() if name not in self._refused}
        if "max_tokens" in self._refused:
            adapted["max_completion_tokens"] = body["max_tokens"]
        if SYSTEM in self._refused and _has(body, SYSTEM):
            system, first, *more = body["messages"]
            adapted["messages"] = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *more]
        return adapted

    def _failed(self, status: int, error: Any, headers: Any, body: dict[str, Any], sent: Mapping[str, Any]) -> Reply:
        """Return the reply to a refused request.

        Raises `_Retry` if a retry may succeed, and `UserError` if the server will refuse all requests.
        """
        details = error.get("error", error) if isinstance(error, dict) else {}
        said = self._text(error)
        code = str(details.get("code") or details.get("type") or "") if isinstance(details, dict) else ""
        known = f"{code} {said}".lower()
        if "insufficient_quota" in known or (status == 429 and "billing" in known):
            raise self.refused(status, error)
        too_long = r"context.{0,3}(length|window|size)|prompt is too long|too many tokens"
        if status == 413 or (status in (400, 422, 500) and re.search(too_long, known)):
            return Reply(None, 0, TOO_LONG)
        refused = [name for name, words in self._optional.items() if _has(sent, name) and re.search(words, known)]
        # Gateways without a server that takes a parameter, and servers that fail to use it.
        failed = [name for name in refused if name in (RESPONSE_FORMAT, SYSTEM)]
        if failed and status in (404, 500, 501):
            self._refused.add(failed[0])
            return self._attempt(body)
        if status in _REPEATED or status >= 500:
            raise _Retry(f"HTTP {status}: {said}" if said else f"HTTP {status}", _retry_after(headers))
        if status in (400, 403, 422) and re.search(
            r"content.{0,3}(filter|policy|management)|moderation|flagged", known
        ):
            return Reply(None, 0, "blocked by the endpoint's content filter")
        if status in (400, 422):
            if refused:
                self._refused.add(refused[0])
                return self._attempt(body)
            if "temperature" in known:
                raise UserError(
                    f"the endpoint {self.endpoint.url} does not support the decoding settings of this run ({said})",
                    "choose a model that supports `temperature`, or another --temperature",
                )
            return Reply(None, 0, f"{REFUSED}: HTTP {status}: {said}")
        if status in _FATAL or 300 <= status < 400:
            raise self.refused(status, error)
        return Reply(None, 0, f"{REFUSED}: HTTP {status}: {said}")

    def _reply(self, found: Any) -> Reply:
        """Read the reply from the server's JSON. Raises `_Retry` if the JSON contains no reply."""
        if isinstance(found, dict) and found.get("error"):  # some gateways report errors with status 200
            error = found["error"]
            code = error.get("code") if isinstance(error, dict) else None
            return self._failed(code if isinstance(code, int) else 500, found, {}, {}, {})
        choices = found.get("choices") if isinstance(found, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            raise _Retry("the answer contains no choice")
        n_tokens, n_prompt = (_count(found.get("usage"), f"{side}_tokens") for side in ("completion", "prompt"))
        finish = str(choice.get("finish_reason") or "")
        message = choice.get("message") if self.endpoint.api == "chat" else choice
        if not isinstance(message, dict) or finish == "error":
            raise _Retry("the choice is empty")
        text = message.get("content" if self.endpoint.api == "chat" else "text")
        if isinstance(text, list):  # a list of parts, some of which may be images or reasoning
            text = "".join(
                str(one.get("text") or "") for one in text if isinstance(one, dict) and one.get("type") == "text"
            )
        refused = not text and isinstance(message.get("refusal"), str)
        if refused:
            text = message["refusal"]
        why = None
        if not text and finish == "content_filter":
            why = "blocked by the endpoint's content filter"
        elif not text and message.get("tool_calls"):
            why = "called a tool instead of answering"
        elif not text and finish == "length":
            why = "no answer within max_new_tokens (reasoning took all of them)"
        elif not text and any(message.get(name) for name in ("reasoning_content", "reasoning")):
            why = ONLY_REASONING  # a repeated greedy request gives the same
        if why:
            return Reply(None, n_tokens, why, n_prompt, finish)
        if not isinstance(text, str):
            raise _Retry("the choice is empty")
        return Reply(self._hidden(text), n_tokens, None, n_prompt, finish, refused)

    def _send(self, url: str, body: Mapping[str, Any] | None, timeout: float) -> Any:
        """Send one request and return the JSON of the response.

        The whole exchange must end within `timeout` seconds.
        """
        headers = {"Accept": "application/json", "User-Agent": "wpn-bench"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode("utf-8")  # json.dumps escapes unpaired surrogates
        deadline = time.monotonic() + timeout
        with self._opener.open(urllib.request.Request(url, data, headers), timeout=timeout) as response:
            parts = []
            # Some servers send spaces to keep the connection alive. For them, the timeout of the socket never expires.
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


def _has(body: Mapping[str, Any], name: str) -> bool:
    """Return whether a request has a parameter or, for `SYSTEM`, a system message."""
    messages = body.get("messages") or [{}]
    return name in body or (name == SYSTEM and messages[0].get("role") == "system")


def _count(usage: Any, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def _retry_after(headers: Any) -> float | None:
    """Return how many seconds the server asks to wait, from a number or a date in the headers."""
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
