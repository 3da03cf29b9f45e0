"""The settings of a remote endpoint with OpenAI's API, given as `openai:URL#MODEL[,NAME=VALUE...]`."""

from __future__ import annotations

import re
import urllib.parse
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wpn_bench.core.files import digest_of
from wpn_bench.errors import UserError
from wpn_bench.redact import one_line

PREFIX = "openai:"
KEY_VARIABLE = "OPENAI_API_KEY"


class Endpoint(BaseModel):
    """The settings of an endpoint, as stored in `backend.json`.

    `server` is the server's own description of the model, or None. `key_env` names the environment variable with the
    key. The last four fields do not change responses.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    backend: Literal["openai"] = "openai"
    url: str
    model: str
    api: Literal["chat", "completions"] = "chat"
    system: str = ""
    server: dict[str, Any] | None = None
    key_env: str = KEY_VARIABLE
    concurrency: int = Field(8, ge=1, le=256)
    timeout: float = Field(120.0, gt=0, description="seconds to wait for one response")
    retries: int = Field(7, ge=0, le=50)

    def digest(self) -> str:
        """Return the SHA-256 of the settings that determine the responses."""
        return digest_of(self.model_dump(include={"backend", "url", "model", "api", "system", "server"}))


_OPTIONS = tuple(name for name in Endpoint.model_fields if name not in ("backend", "url", "model", "server"))


def parse_source(source: str) -> Endpoint:
    """Parse `openai:URL#MODEL[,NAME=VALUE...]`, such as `openai:http://localhost:8000/v1#qwen,concurrency=4`.

    The names are `api` (`chat` or `completions`), `system`, `key_env`, `concurrency`, `timeout` and `retries`. A URL
    that ends in `/chat/completions` or `/completions` sets `api`. MODEL can be left out if the server has a single
    model.

    Args:
        source: The text that the user typed.

    Returns:
        The settings, without the server's description of the model.

    Raises:
        UserError: The text is invalid.
    """
    example = f"write {PREFIX}http://HOST:PORT/v1#MODEL"
    address, _, model = source.removeprefix(PREFIX).partition("#")
    model, *pairs = re.split(rf",(?=(?:{'|'.join(_OPTIONS)})=)", model)
    options: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs)
    try:
        url = urllib.parse.urlsplit(address)
        port_is_valid = url.port is None or url.port > 0
    except ValueError:
        raise UserError(f"the URL of {one_line(source, 200)!r} is invalid", example) from None
    if url.scheme not in ("http", "https") or not url.hostname or not port_is_valid:
        raise UserError(f"{one_line(source, 200)!r} has no URL of the form http://HOST or https://HOST", example)
    if url.username or url.password:
        raise UserError(
            f"the URL of the endpoint at {url.hostname} contains a password", f"put the key into {KEY_VARIABLE} instead"
        )
    if any(name != "api-version" for name, _ in urllib.parse.parse_qsl(url.query, keep_blank_values=True)):
        raise UserError(
            f"the URL of the endpoint at {url.hostname} has parameters after '?'", "leave them out; " + example
        )
    path = url.path.rstrip("/")
    for ending, api in (("/chat/completions", "chat"), ("/completions", "completions"), ("/models", None)):
        if path.endswith(ending):
            path = path.removesuffix(ending)
            if api:
                options.setdefault("api", api)
            break
    plain = urllib.parse.urlunsplit((url.scheme, url.netloc, path, url.query, ""))
    try:
        return Endpoint(url=plain, model=model.strip(), **options)
    except ValidationError as e:
        first = e.errors()[0]
        raise UserError(f"{first['loc'][0]} of {one_line(source, 200)!r}: {first['msg'].lower()}", example) from None
