"""`wpn-hf`: lm-eval's `hf` model with our scoring. Import this module, and lm-eval knows the name:

    import lm_eval
    import wpn_bench.benchmarks.language_model
    lm_eval.simple_evaluate(model="wpn-hf", model_args={"pretrained": "facebook/opt-125m"}, tasks=["piqa"])

    python -m wpn_bench.benchmarks.language_model --model wpn-hf --model_args pretrained=facebook/opt-125m --tasks piqa

Loading, tokenising, truncation and everything but log-likelihoods are lm-eval's own code.
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
    """Causal models of transformers. Takes what `hf` takes; `batch_size` says nothing here, since batches are cut by
    tokens within the memory there is."""

    # Tokens of texts that are about to be asked for, one by one, by lm-eval's own code.
    _ahead: dict[str, list[int]] = {}  # noqa: RUF012 - replaced, never changed

    @property
    def device(self) -> Any:
        """Where inputs go, also of a model whose weights are brought as they are needed."""
        return device_of(self.model)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As lm-eval's, with all texts tokenised in one call: choices share a context, and calls cost more than tokens."""
        texts = set()
        for context, continuation in (request.args for request in requests):
            if context and self.backend == "causal":
                texts |= {context + continuation, context.rstrip()}
        self._ahead = self._tokens(sorted(texts))
        try:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._ahead = {}

    def _tokens(self, texts: list[str]) -> dict[str, list[int]]:
        # A text that brings its own first token is left to `tok_encode`, which knows what to do.
        start = self.tokenizer.decode(self.prefix_token_id)
        texts = [text for text in texts if text and not text.startswith(start)]
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        return dict(zip(texts, self.tokenizer(texts, **special)["input_ids"], strict=True)) if texts else {}

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """lm-eval's, or what it said of this text before."""
        if not args and not kwargs and string in self._ahead:
            return list(self._ahead[string])
        return super().tok_encode(string, *args, **kwargs)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding would write it) of each (texts, context, continuation).

        lm-eval's cache is told of each as it is done.
        """
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
        """A function that is told of requests done: lm-eval's kind of bar."""
        from tqdm import tqdm

        with tqdm(total=total, disable=disable or self.rank != 0, desc="Running loglikelihood requests") as bar:
            yield bar.update


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
