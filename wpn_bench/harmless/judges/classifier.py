"""A judge that reads the probability of one label from any Hugging Face sequence classifier.

The label is the harmful one, or with `invert` the harmless one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from wpn_bench.core.files import digest_of
from wpn_bench.core.progress import Advance
from wpn_bench.core.registry import close_matches
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import JudgeConfig
from wpn_bench.harmless.judges.model_judge import ModelJudge, ModelJudgeConfig

if TYPE_CHECKING:
    from wpn_bench.engine.classify import Classifier

Activation = Literal["softmax", "sigmoid"]


class ClassifierConfig(ModelJudgeConfig):
    """Options of `ClassifierJudge`."""

    label: str | None = Field(
        None, description="name or number of the label to read; needed if the model has several labels"
    )
    invert: bool = Field(
        False, description="whether the label is the harmless one, so that the score is 1 minus its probability"
    )
    activation: Activation | None = Field(None, description="softmax or sigmoid; None uses the model's configuration")


class ClassifierJudge(ModelJudge):
    """Scores a response by the probability of one label.

    A text longer than the classifier's input is scored in windows, and the highest score counts.
    """

    name = "classifier"
    title = "Text classifier"
    measures = "A text classifier scores what its training data called by the label's name, and nothing else."
    source = "https://huggingface.co/models?pipeline_tag=text-classification"
    usage = "classifier:HUB_ID|FOLDER,label=NAME"
    journalled = True
    Config = ClassifierConfig
    config: ClassifierConfig

    def __init__(self, variant: str, device: str, config: JudgeConfig | None = None) -> None:
        super().__init__(variant, device, config)
        self._loaded: Classifier | None = None

    def digest(self) -> str:
        self._classifier()  # loading it now reports an unusable classifier before other jobs run
        settings = self._settings()
        at, activation = self._label(settings), self._activation(settings)
        return digest_of(
            {"model": self._model.digest, "label": at, "activation": activation, "invert": self.config.invert}
        )

    def score(self, texts: Sequence[str], advance: Advance = lambda n: None) -> list[float | None]:
        from wpn_bench.engine.classify import scores

        found = scores(self._classifier(), texts, advance)
        return [None if math.isnan(score) else score for score in found]

    def _settings(self) -> Any:
        from transformers import AutoConfig

        from wpn_bench.core import consent

        try:
            return AutoConfig.from_pretrained(self._model.path, trust_remote_code=consent.code_allowed())
        except (ValueError, OSError, KeyError) as e:
            raise self._unreadable(e) from e

    def _label(self, settings: Any) -> int:
        """Return the index of the label in the logits."""
        labels = {int(k): str(v) for k, v in settings.id2label.items()}
        asked = self.config.label
        if asked is None and len(labels) == 1:
            return 0
        known = ", ".join(labels.values())
        if asked is None:
            raise UserError(
                f"{self.variant} has {len(labels)} labels ({known}), and the judge does not say which to read",
                f"add ,label={labels[0]}",
            )
        for at, label in labels.items():
            if asked.casefold() in (label.casefold(), str(at)):
                return at
        near = close_matches(asked, labels.values())
        hint = f"did you mean {near[0]!r}?" if near else "name one of these"
        raise UserError(f"{self.variant} has no label {asked!r} (its labels: {known})", hint)

    def _activation(self, settings: Any) -> Activation:
        """Choose the activation as transformers does: softmax for labels that exclude each other, and else sigmoid."""
        if self.config.activation:
            return self.config.activation
        if settings.problem_type == "regression":
            raise UserError(
                f"{self.variant} is a regression model, which gives no probability",
                "add ,activation=sigmoid if its scores are logits",
            )
        several = settings.problem_type == "multi_label_classification" or settings.num_labels == 1
        return "sigmoid" if several else "softmax"

    def _classifier(self) -> Classifier:
        if self._loaded is not None:
            return self._loaded
        import torch
        from transformers import AutoModelForSequenceClassification

        from wpn_bench import models
        from wpn_bench.engine.classify import Classifier
        from wpn_bench.models.tokenizer import read_tokenizer

        path, settings = self._model.path, self._settings()
        at, activation, invert = self._label(settings), self._activation(settings), self.config.invert
        tokenizer = read_tokenizer(path)
        if not tokenizer.is_fast:
            raise UserError(f"{self.variant} has no fast tokenizer", "save it again with a tokenizer.json")
        if tokenizer.pad_token_id is None:  # decoders need one, because they read the last token before the padding
            tokenizer.pad_token = tokenizer.eos_token
        try:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, **models.reading(path)
            )
        except (ValueError, OSError, KeyError, RuntimeError) as e:
            raise self._unreadable(e) from e
        # transformers initialises missing weights at random. For instance, a language model has no classification head.
        lacking = sorted(set(loading["missing_keys"]) & {name for name, _ in model.named_parameters()})
        if lacking:
            raise UserError(
                f"{self.variant} lacks {len(lacking)} weights of a classifier (first: {lacking[0]})",
                "give a model that was trained to classify",
            )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id

        def harm(logits: Any) -> Any:
            column = logits.softmax(-1)[:, at] if activation == "softmax" else logits[:, at].sigmoid()
            return 1 - column if invert else column

        self._loaded = Classifier.of(model.to(self.device).eval(), tokenizer, harm)
        return self._loaded

    def _unreadable(self, e: Exception) -> UserError:
        return UserError(
            f"{self.variant} cannot be loaded as a text classifier ({' '.join(str(e).split())[:160]})",
            "give a model that AutoModelForSequenceClassification reads",
        )
