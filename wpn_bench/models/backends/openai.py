"""The backend for remote endpoints with OpenAI's API: vLLM, SGLang, llama.cpp, Ollama, TGI and commercial ones.

A model at an endpoint is written as `openai:URL#MODEL[,NAME=VALUE...]` (see `parse_source`). `endpoint_folder` asks the
server about this model and writes `backend.json`. The key is read from an environment variable at each request. It is
never written to a file or a message.

A failed request is repeated after increasing delays. If all attempts fail, the response is missing. Responses are kept
in the job's journal. If the server stops answering, the job fails, and a repeated run sends only the remaining
requests.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from wpn_bench.core.files import write_json
from wpn_bench.core.json_files import load_json
from wpn_bench.core.progress import Advance
from wpn_bench.errors import UserError
from wpn_bench.jobs import journal
from wpn_bench.models.backends.base import Backend, Decoding, Response, TokenPair, sample_numbers
from wpn_bench.models.backends.client import (
    OPTIONAL,
    RESPONSE_FORMAT,
    STRUCTURED,
    EndpointClient,
    Reply,
    joined,
)
from wpn_bench.models.backends.endpoint import Endpoint, parse_source
from wpn_bench.prompts import Item, Template
from wpn_bench.prompts.templates import Turn, messages_of, turns_of

MAX_STOPS = 4  # OpenAI's limit of stop texts; with more, the response is cut after it has arrived
UNKNOWN_CONTEXT = 2**31  # the context length is unknown, and the server refuses a prompt that is too long
# Fields in an entry of /v1/models that identify the model. `created` is not one of them, because vLLM and llama.cpp set it
# to the time of the request.
_IDENTITY = ("id", "owned_by", "root", "parent", "max_model_len", "context_length", "context_window", "meta", "digest")


def endpoint_folder(source: str | Endpoint, folder: Path) -> Endpoint:
    """Ask the server about a model, and write `backend.json`, so that `open_backend` can open the endpoint.

    Args:
        source: The endpoint, as text (see `parse_source`) or as settings.
        folder: Folder for the file, which is created if necessary.

    Returns:
        The settings with the server's description of the model. Their `digest()` identifies the model in jobs.

    Raises:
        UserError: The server cannot be reached, refuses the key, or does not have the model.
    """
    endpoint = parse_source(source) if isinstance(source, str) else source
    endpoint = identified(endpoint)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "backend.json", endpoint.model_dump(mode="json"))
    return endpoint


def identified(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with the server's description of its model.

    Raises `UserError` if the server lacks the model.
    """
    client = EndpointClient(endpoint)
    listed: Any = None
    for url in (endpoint.url, joined(endpoint.url, "/v1")):  # users often leave out /v1
        status, listed = client.get(
            joined(url, "/models"), (500,)
        )  # status of `transformers serve` without a hub cache
        if status in (401, 403) or 300 <= status < 400:
            raise client.refused(status, listed)
        if status == 200 and isinstance(listed, dict):
            endpoint = endpoint.model_copy(update={"url": url})
            break
    else:
        if not endpoint.model:
            raise UserError(f"the endpoint {endpoint.url} lists no models", "add the name of the model as #MODEL")
        return endpoint
    found = listed.get("data") or listed.get("models") or []
    entries = {str(one.get("id") or one.get("name")): one for one in found if isinstance(one, dict)}
    model = endpoint.model or (next(iter(entries)) if len(entries) == 1 else "")
    if not model:
        raise UserError(
            f"the endpoint {endpoint.url} has several models", f"add one of them as #MODEL: {_some(entries)}"
        )
    entry = entries.get(model) or entries.get(f"{model}:latest")
    if entry is None:
        status, entry = client.get(joined(endpoint.url, "/models/" + urllib.parse.quote(model, safe="/:")))
        listed_alone = status == 200 and isinstance(entry, dict) and entry.get("id")
        is_folder = model.startswith(("/", "./", "~")) and _answers(endpoint.model_copy(update={"model": model}))
        if entries and not listed_alone and not is_folder:
            raise UserError(f"the endpoint {endpoint.url} has no model {model!r}", f"it has: {_some(entries)}")
    said = {name: entry[name] for name in _IDENTITY if name in entry} if isinstance(entry, dict) else None
    return endpoint.model_copy(update={"model": model, "server": said or None})


def _answers(endpoint: Endpoint) -> bool:
    """Return whether the server answers for a model that it does not list. `transformers serve` lists no folders."""
    asked = endpoint.model_copy(update={"retries": 0})
    try:
        return OpenAIBackend(asked).generate(["Hello"], Decoding(max_new_tokens=1))[0].text is not None
    except UserError:
        return False


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:20]) + (" and others" if len(names) > 20 else "")


class OpenAIBackend(Backend):
    """A model at an endpoint. It gives responses, but no log-likelihoods or weights.

    Args:
        endpoint: Settings of the endpoint.

    Attributes:
        response_format: The form in which a chat shall reply, as the parameter of this name, if the server can; None leaves it open.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.response_format: Mapping[str, Any] | None = None
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
        """Generate responses. A chat endpoint gets each prompt as a message of the user.

        Args:
            prompts: Texts that the model continues, or messages.
            decoding: How responses are generated.
            advance: Called with the number of responses finished since its last call.

        Returns:
            One response for each prompt, in order.

        Raises:
            UserError: The server refuses all requests, or does not answer any more.
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
        """Send the inputs that have no response in the journal yet."""
        chat = self.endpoint.api == "chat"
        prefixes = [item.answer_prefix if chat else "" for item in items]
        parameters = decoding.model_dump(mode="json", exclude={"batch_size"})
        form = [json.dumps(self.response_format)] if self.response_format else []
        stored = journal.section(
            "openai",
            lambda: journal.fingerprint([*inputs, *prefixes, *form], self.digest(), sorted(parameters.items())),
        )
        responses: list[Response | None] = [None] * len(inputs)
        asked = []
        for k, prefix in enumerate(prefixes):
            if k in stored.known:
                responses[k] = Response(*stored.known[k])
            elif not stored.in_shard(k):
                responses[k] = Response("", 0)
            elif prefix:
                responses[k] = Response(
                    None, 0, "not available: a chat endpoint does not accept the beginning of a response"
                )
            else:
                asked.append(k)
        advance(len(inputs) - len(asked))
        client = EndpointClient(self.endpoint, {**OPTIONAL, RESPONSE_FORMAT: STRUCTURED})
        bodies = {k: self._body(inputs[k], decoding, turns_of(items[k].context), items[k].prompt) for k in asked}
        # With different seeds, a server that honours seeds gives different samples to equal inputs.
        for k, number in enumerate(sample_numbers(inputs, decoding.independent)):
            if number and k in bodies:
                bodies[k]["seed"] += number
        for k, reply, final in client.ask_all(bodies, len(inputs)):
            responses[k] = response = _cut(reply, decoding.stop)
            if final:
                stored.add({k: [response.text, response.n_tokens, response.reason, response.space]})
            advance(1)
        return [one for one in responses if one is not None]

    def _body(
        self, text: str, decoding: Decoding, turns: Sequence[Turn] | None = None, last: str = ""
    ) -> dict[str, Any]:
        """Return a request. With earlier `turns`, the chat ends with the message `last` and not with `text`."""
        body: dict[str, Any] = {"model": self.endpoint.model, "max_tokens": decoding.max_new_tokens}
        if self.endpoint.api == "chat":
            system = [{"role": "system", "content": self.endpoint.system}] if self.endpoint.system else []
            body["messages"] = [
                *system,
                *messages_of(turns or ()),
                {"role": "user", "content": last if turns else text},
            ]
            if self.response_format:
                body[RESPONSE_FORMAT] = self.response_format
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


def _cut(reply: Reply, stop: Sequence[str]) -> Response:
    text = reply.text
    for mark in filter(None, stop):
        text = text and text.split(mark)[0]
    space = bool(text) and str(text)[:1].isspace()
    return Response(text and text.strip(), reply.n_tokens, reply.reason, space)
