"""The backend for local models on GPUs that vLLM computes (Kwon et al. 2023, "PagedAttention"). It is optional.

It gives responses and log-likelihoods under the same rules as the local backend: the token ids come from the same
tokenizer, and end tokens, stop texts, truncation and the model's own generation settings are applied here. So a response
can differ only where vLLM's rounding changes a token.

vLLM requires other versions of PyTorch and transformers than wpn-bench. So it runs in its own process, with the Python of
an environment that has it (`WPN_BENCH_VLLM_PYTHON`). The end of this process also frees the GPU's memory.

vLLM runs in its batch-invariant mode, in which a result does not depend on the other requests of a batch. Its version and
this mode are part of the digests of the jobs (`identity`). docs/models.md lists how vLLM went wrong for others, and what is
done here about it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from wpn_bench.core import consent
from wpn_bench.core.files import digest_of
from wpn_bench.core.progress import Advance
from wpn_bench.engine import vllm_worker
from wpn_bench.engine.generation import cut_response, end_tokens, too_long
from wpn_bench.engine.sampling import seed_of
from wpn_bench.engine.support import steering
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs import journal
from wpn_bench.models.backends.base import Backend, Decoding, Response, TokenPair, sample_numbers
from wpn_bench.models.ends import ends_of_model
from wpn_bench.models.loading import OTHER_HOLDERS
from wpn_bench.models.tokenizer import encode_prompts
from wpn_bench.redact import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[int, ...]
Question = tuple[Tokens, int]  # a prompt, and the number of the sample, or of its last tokens that are scored

PYTHON = "WPN_BENCH_VLLM_PYTHON"
INVARIANT = "VLLM_BATCH_INVARIANT"
CHUNK = 1024  # questions in one call of vLLM, after which the results are in the journal
PASS_TOKENS = 2048  # tokens in a pass; logits of prompts take 6 bytes for each token and each word of the vocabulary
MEMORY_SHARE = 0.85  # share of the free GPU memory that vLLM may take; the rest is for the logits of prompts
_ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a forked process cannot use CUDA if its parent has used it
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent to anybody
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",  # the model is in a folder
}
# Generation settings that vLLM applies as transformers does; the local backend applies all settings.
_APPLIED = {"repetition_penalty"}
_ASK_VERSION = "from importlib.metadata import version; print(version('vllm'))"


class VLLMBackend(Backend):
    """A model in a folder that vLLM computes. Finished examples are kept in the job's journal.

    There is one process with vLLM at a time, because it holds most of the GPU's memory.
    """

    tokenizer: PreTrainedTokenizerBase

    def __init__(self, ask: Callable[[dict[str, Any]], Any], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Wrap an opened model.

        Args:
            ask: Sends a request to the process with vLLM, and returns its answer.
            tokenizer: The tokenizer from `load_tokenizer`.
            folder: Folder of the model.
        """
        from transformers import GenerationConfig

        from wpn_bench.models import context_length_of

        self.ask, self.tokenizer, self.folder = ask, tokenizer, folder
        self.context_length = context_length_of(folder)
        has_settings = (folder / "generation_config.json").is_file()
        self.settings = GenerationConfig.from_pretrained(folder) if has_settings else None

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Return the name, vLLM's version, and whether it is in batch-invariant mode.

        Raises:
            UserError: vLLM is not installed.
        """
        return {
            "name": "vllm",
            "version": _version_of(_python()),
            "batch_invariant": os.environ.get(INVARIANT, "1") != "0",
        }

    @classmethod
    def check_placement(cls, device: str, offload: str) -> None:
        if not device.startswith("cuda") or offload != "none":
            raise UserError("vLLM needs a GPU that holds the whole model", "use --device cuda --offload none")

    @classmethod
    def open(cls, folder: Path, device: str, dtype: str, offload: str) -> Self:
        """Load a model into vLLM, unless it is there already.

        Args:
            folder: Folder of the model.
            device: Device, which must be a GPU.
            dtype: Data type of the weights. vLLM's own default would change float32 to float16.
            offload: Must be "none".

        Returns:
            The backend.

        Raises:
            UserError: vLLM is not installed, or cannot load the model.
        """
        from wpn_bench import models
        from wpn_bench.core.model_files import model_signature

        cls.check_placement(device, offload)
        identity = cls.identity()
        key = (str(folder), model_signature(folder), device, dtype, tuple(identity.items()))
        if _Process.current is None or _Process.current.key != key or not _Process.current.alive:
            close()
            models.let_go()
            if close not in OTHER_HOLDERS:
                OTHER_HOLDERS.append(close)
            share = _share_of_memory(device)
            opened = _Process(key, _environment(device, identity["batch_invariant"]))
            try:
                opened.ask({"open": arguments(folder, dtype, models.context_length_of(folder), share)})
            except JobFailed as e:
                opened.end()
                hint = f"use --backend local, or set {INVARIANT}=0 if the GPU does not support that mode"
                raise UserError(f"vLLM cannot load {folder.name}: {e}", hint) from None
            _Process.current = opened
        return cls(_Process.current.ask, models.load_tokenizer(folder), folder)

    def generate(self, prompts: Sequence[str], decoding: Decoding, advance: Advance = lambda n: None) -> list[Response]:
        """Generate responses as the local backend does. Samples use other random numbers than there.

        Args:
            prompts: Texts that the model continues.
            decoding: How responses are generated. `batch_size` has no effect.
            advance: Called with the number of responses finished since its last call.

        Returns:
            One response for each prompt, in order.

        Raises:
            UserError: vLLM does not support a setting in the model's generation_config.json.
            JobFailed: vLLM failed, or changed a prompt.
        """
        encoded = encode_prompts(self.tokenizer, prompts) if prompts else []
        model: Any = SimpleNamespace(generation_config=self.settings)
        ends = ends_of_model(model, self.tokenizer) | set(end_tokens(self.tokenizer, prompts))
        fitting = [k for k, ids in enumerate(encoded) if not too_long(len(ids), decoding, self.context_length)]
        advance(len(encoded) - len(fitting))
        parameters = self._sampling(decoding, sorted(ends))

        inputs = [tuple(encoded[k]) for k in fitting]
        questions = list(zip(inputs, sample_numbers(inputs, decoding.independent), strict=True))

        def asked(question: Question) -> dict[str, Any]:
            ids, stream = question
            seed = {} if decoding.temperature is None else {"seed": seed_of(decoding.seed, ids, stream)}
            return {"ids": ids, "scored": 0, "sampling": {**parameters, **seed}}

        def read(answer: dict[str, Any]) -> list[int]:
            tokens: list[int] = answer["new"]
            return tokens[:-1] if tokens and tokens[-1] in ends else tokens

        found = self._answers("vllm", questions, asked, read, advance)
        responses = [Response(None, 0, "prompt too long")] * len(encoded)
        for k, new in zip(fitting, found, strict=True):
            responses[k] = cut_response(self.tokenizer, new or [], decoding.stop, encoded[k])
        return responses

    def loglikelihoods(
        self,
        pairs: Sequence[TokenPair],
        *,
        max_length: int | None = None,
        pass_tokens: int | None = None,
        advance: Advance = lambda n: None,
    ) -> list[tuple[float, bool]]:
        """Compute log-likelihoods from the log-probabilities of prompt tokens.

        vLLM also computes the last token of the continuation, and generates one more. So near the limit of the context,
        two tokens more than in the local backend are truncated on the left.

        Args:
            pairs: Token ids of a context and its continuation.
            max_length: Maximum number of tokens that the model sees; None means its whole context.
            pass_tokens: Has no effect.
            advance: Called with the number of pairs finished since its last call.

        Returns:
            For each pair the sum of log p(continuation | context) in nats, and whether its tokens are the most likely
            ones.

        Raises:
            ValueError: A context or continuation is empty, or a continuation does not fit.
            JobFailed: vLLM failed, changed a prompt, or left out a log-probability.
        """
        room = min((max_length or self.context_length) + 1, self.context_length - 1)
        questions = []
        for context, continuation in pairs:
            if not len(context) or not len(continuation):
                raise ValueError("a context and a continuation must have at least one token each")
            if len(continuation) >= room:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens exceeds the maximum length of the model ({room - 1})"
                )
            questions.append((tuple([*context, *continuation][-room:]), len(continuation)))
        parameters = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 1, "detokenize": False}

        def asked(question: Question) -> dict[str, Any]:
            ids, n = question
            return {"ids": ids, "scored": n, "sampling": parameters}

        def read(answer: dict[str, Any]) -> tuple[float, bool]:
            return sum(value for value, _ in answer["scores"]), all(best for _, best in answer["scores"])

        found = self._answers("vllm_loglikelihoods", questions, asked, read, advance)
        return [(0.0, False) if one is None else (float(one[0]), bool(one[1])) for one in found]

    def digest(self) -> str:
        from wpn_bench.models.locate import folder_digest

        return digest_of([folder_digest(self.folder), self.identity()])

    def _sampling(self, decoding: Decoding, ends: list[int]) -> dict[str, Any]:
        """Return the arguments of `SamplingParams` that all prompts have in common."""
        steered = steering(self.settings)
        if unknown := sorted(steered.keys() - _APPLIED):
            raise UserError(
                f"vLLM does not support settings of the model's generation_config.json: {', '.join(unknown)}",
                "use --backend local",
            )
        return {
            "temperature": decoding.temperature or 0.0,
            "top_p": decoding.top_p or 1.0,
            "repetition_penalty": float(steered.get("repetition_penalty", 1.0)),
            "max_tokens": decoding.max_new_tokens,
            "stop": [mark for mark in decoding.stop if mark],
            "stop_token_ids": ends,
        }

    def _answers(
        self,
        name: str,
        questions: Sequence[Question],
        asked: Callable[[Question], dict[str, Any]],
        read: Callable[[dict[str, Any]], Any],
        advance: Advance,
    ) -> list[Any]:
        """Ask vLLM, equal questions once, and return what `read` finds in each answer.

        A question that another shard asks has the result None.
        """
        copies = Counter(questions)
        distinct = list(copies)
        about = [self.identity(), *(sorted(asked(question)["sampling"].items()) for question in distinct[:1])]
        stored = journal.section(
            name, lambda: journal.fingerprint((ids for ids, _ in distinct), [n for _, n in distinct], *about)
        )
        found = {distinct[k]: value for k, value in stored.known.items()}
        advance(sum(copies[question] for question in found))
        todo = [k for k in range(len(distinct)) if k not in stored.known and stored.in_shard(k)]
        for at in range(0, len(todo), CHUNK):
            part = [distinct[k] for k in todo[at : at + CHUNK]]
            answers = self.ask({"ask": [asked(question) for question in part]})
            for question, answer in zip(part, answers, strict=True):
                if tuple(answer["prompt"]) != question[0]:
                    raise JobFailed("vLLM computed other tokens than those of the prompt")
                found[question] = read(answer)
            stored.add({k: found[distinct[k]] for k in todo[at : at + CHUNK]})
            advance(sum(copies[question] for question in part))
        return [found.get(question) for question in questions]


def arguments(folder: Path, dtype: str, context: int, share: float) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`.

    Args:
        folder: Folder of the model.
        dtype: Data type of the weights.
        context: Number of tokens to which the model can attend.
        share: Share of the GPU's memory.

    Returns:
        The arguments.
    """
    return {
        "model": str(folder),
        "tokenizer": str(folder),
        "dtype": dtype,
        "max_model_len": context,
        "gpu_memory_utilization": share,
        "generation_config": "vllm",  # the model's own settings are applied by `_sampling`
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": False,  # with cached prefixes, log-probabilities of prompts were wrong
        "max_num_batched_tokens": PASS_TOKENS,
        "enable_chunked_prefill": True,
        "load_format": "auto" if consent.pickles_allowed() else "safetensors",
        "trust_remote_code": consent.code_allowed(),
        "seed": 0,
    }


def close() -> None:
    """End the process with vLLM, which frees its memory."""
    if _Process.current is not None:
        _Process.current.end()
        _Process.current = None


class _Process:
    """The process in which vLLM computes one model (see `vllm_worker`)."""

    current: _Process | None = None

    def __init__(self, key: tuple[Any, ...], environment: dict[str, str]) -> None:
        self.key = key
        # With -I, neither PYTHONPATH nor the folder of the script is searched for modules.
        self._process = subprocess.Popen(
            [_python(), "-I", vllm_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            encoding="utf-8",
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any]) -> Any:
        """Return the answer to a request. Raises `JobFailed` if vLLM fails, and then ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with suppress(OSError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        told = json.loads(line) if line.endswith("\n") else {"error": "its process has ended"}
        if "error" in told:
            self.end()  # after an error, vLLM may not work any more
            raise JobFailed(f"vLLM failed: {one_line(told['error'], 500)}")
        return told["ok"]

    def end(self) -> None:
        """End the process. vLLM ends its own processes when it is told to, so it gets a moment for that."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _python() -> str:
    """Return the Python that has vLLM."""
    return os.environ.get(PYTHON) or sys.executable


@lru_cache
def _version_of(python: str) -> str:
    """Return the version of vLLM in the environment of a Python. Raises `UserError` if there is none."""
    try:
        asked = subprocess.run([python, "-I", "-c", _ASK_VERSION], capture_output=True, text=True, timeout=60)
        found = asked.stdout.strip() if asked.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    if not found:
        raise UserError(
            f"vLLM is not installed for {python}",
            f"install it in an environment of its own, and set {PYTHON} to the path of the Python there",
        )
    return found


def _environment(device: str, invariant: bool) -> dict[str, str]:
    """Return the environment of the process. vLLM uses the first GPU that it sees."""
    environment = {**os.environ, **_ENVIRONMENT, INVARIANT: "1" if invariant else "0"}
    if index := device.partition(":")[2]:
        visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
        environment["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if visible else index
    return environment


def _share_of_memory(device: str) -> float:
    """Return the share of the GPU's memory that vLLM may take. Other processes and models may already use a part."""
    import torch

    free, total = torch.cuda.mem_get_info(torch.device(device))
    return round(MEMORY_SHARE * free / total, 3)
