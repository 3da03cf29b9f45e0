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

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from wpn_bench.engine.likelihood import loglikelihoods

__all__ = ["WpnHF"]


@register_model("wpn-hf")
class WpnHF(HFLM):
    """Causal models of transformers. Takes what `hf` takes; `batch_size` says nothing here, since batches are cut by
    tokens within the memory there is."""

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
