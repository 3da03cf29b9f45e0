"""`wpn-hf`: lm-eval's `hf` model with the log-likelihoods of wpn_bench.engine.

Importing this module registers the name:

    import lm_eval
    import wpn_bench.benchmarks.language_model
    lm_eval.simple_evaluate(model="wpn-hf", model_args={"pretrained": "facebook/opt-125m"}, tasks=["piqa"])

    python -m wpn_bench.benchmarks.language_model --model wpn-hf --model_args pretrained=facebook/opt-125m --tasks piqa

Loading, tokenising, truncation and generation are lm-eval's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from wpn_bench.engine.likelihood import loglikelihoods
from wpn_bench.engine.placement import device_of

__all__ = ["WpnHF"]


@register_model("wpn-hf")
class WpnHF(HFLM):
    """A causal language model of transformers. Takes the arguments of lm-eval's `hf`.

    `batch_size` has no effect on log-likelihoods: batches are formed by the number of tokens that fit into free memory.
    """

    # Text -> tokens of the requests in progress: lm-eval's own code asks for them one text at a time.
    _encoded: dict[str, list[int]] = {}  # noqa: RUF012 - replaced, never changed

    @property
    def device(self) -> Any:
        """Device of the model's inputs, also of a model whose weights are offloaded.

        lm-eval's constructor reads this before it has created the model: until then it is the device that was asked for.
        """
        return device_of(self.model) if hasattr(self, "_model") else super().device

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """lm-eval's method, with all texts tokenised in one call.

        The choices of a question share its context, and one call for many texts is faster than many calls.

        Args:
            requests: lm-eval instances; their arguments are (context, continuation).
            disable_tqdm: Show no progress bar.

        Returns:
            For each request the log-likelihood of its continuation in nats, and whether greedy decoding would write it.
        """
        texts = set()
        for context, continuation in (request.args for request in requests):
            if context and self.backend == "causal":
                texts |= {context + continuation, context.rstrip()}
        self._encoded = self._encode_all(sorted(texts))
        try:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._encoded = {}

    def _encode_all(self, texts: list[str]) -> dict[str, list[int]]:
        # `tok_encode` treats a text that already begins with the start token differently: such texts are left to it.
        start = self.tokenizer.decode(self.prefix_token_id)
        texts = [text for text in texts if text and not text.startswith(start)]
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        return dict(zip(texts, self.tokenizer(texts, **special)["input_ids"], strict=True)) if texts else {}

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Tokenise a text as lm-eval does, or return its tokens from the cache of tokenised texts.

        Args:
            string: The text.
            *args: Passed to lm-eval. The cache is used only without further arguments.
            **kwargs: Passed to lm-eval, as `args`.

        Returns:
            The token ids.
        """
        if not args and not kwargs and string in self._encoded:
            return list(self._encoded[string])
        return super().tok_encode(string, *args, **kwargs)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        # Each request is (texts, context tokens, continuation tokens). lm-eval's cache is told of each result.
        if self.backend != "causal" or len(requests) == 0:
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        with self.counting(len(requests), disable_tqdm) as advance:
            scores = loglikelihoods(
                self.model,
                [(context, continuation) for _, context, continuation in requests],
                max_length=self.max_length,
                advance=advance,
            )
        for (texts, _, _), answer in zip(requests, scores, strict=True):
            if texts is not None:  # None: a window of a rolling log-likelihood
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return scores

    @contextmanager
    def counting(self, total: int, disable: bool) -> Iterator[Callable[[int], object]]:
        """Progress bar of lm-eval's style.

        Args:
            total: Number of requests.
            disable: Show nothing.

        Yields:
            A function that takes the number of requests just finished.
        """
        from tqdm import tqdm

        with tqdm(total=total, disable=disable or self.rank != 0, desc="Running loglikelihood requests") as bar:
            yield bar.update


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
