"""The lm-eval model `wpn-hf`, which is lm-eval's `hf` with the log-likelihoods of wpn_bench.engine.

Importing this module registers the name:

    import lm_eval
    import wpn_bench.benchmarks.language_model
    lm_eval.simple_evaluate(model="wpn-hf", model_args={"pretrained": "facebook/opt-125m"}, tasks=["piqa"])

    python -m wpn_bench.benchmarks.language_model --model wpn-hf --model_args pretrained=facebook/opt-125m --tasks piqa

Loading, tokenising, truncation and generation use lm-eval's own code.
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
    """A causal language model of transformers. It takes the arguments of lm-eval's `hf`.

    `batch_size` has no effect on log-likelihoods. Their batches contain as many tokens as fit into free memory.
    """

    # Token ids by text, for the requests in progress. lm-eval's own code asks for them one text at a time.
    _encoded: dict[str, list[int]] = {}  # noqa: RUF012 - replaced, never changed

    @property
    def device(self) -> Any:
        """Return the device of the model's inputs, also for a model whose weights are offloaded.

        lm-eval's constructor reads this property before it has created the model. Until then, it is the requested
        device.
        """
        return device_of(self.model) if hasattr(self, "_model") else super().device

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Compute log-likelihoods as lm-eval does, but tokenise all texts in one call, which is faster.

        Args:
            requests: lm-eval instances with the arguments (context, continuation).
            disable_tqdm: Whether to hide the progress bar.

        Returns:
            For each request the log-likelihood of its continuation in nats, and whether greedy decoding would generate
            it.
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
        # `tok_encode` handles a text that already begins with the start token differently, so such texts are left out.
        start = self.tokenizer.decode(self.prefix_token_id)
        texts = [text for text in texts if text and not text.startswith(start)]
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        return dict(zip(texts, self.tokenizer(texts, **special)["input_ids"], strict=True)) if texts else {}

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Tokenise a text as lm-eval does, or return its tokens from the cache of tokenised texts.

        Args:
            string: The text.
            *args: Passed to lm-eval. With further arguments, the cache is not used.
            **kwargs: Passed to lm-eval. With further arguments, the cache is not used.

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
        # Each request is (texts, context tokens, continuation tokens). Each result is passed to lm-eval's cache.
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
            if texts is not None:  # it is None for a window of a rolling log-likelihood
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return scores

    @contextmanager
    def counting(self, total: int, disable: bool) -> Iterator[Callable[[int], object]]:
        """Show a progress bar in lm-eval's style.

        Args:
            total: Number of requests.
            disable: Whether to hide the bar.

        Yields:
            A function that is called with the number of requests finished since its last call.
        """
        from tqdm import tqdm

        with tqdm(total=total, disable=disable or self.rank != 0, desc="Running loglikelihood requests") as bar:
            yield bar.update


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
