"""Detect refusals in responses: by their wording, or with the refusal classifier."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.refusal import is_refusal

Detector = Literal["classifier", "wording"]
WORDING: Detector = "wording"


def detector_params(detector: Detector) -> dict[str, str]:
    """Return the parameters of a judging job that name the detector of refusals.

    They are empty for `wording`, so that jobs from before there was a classifier are found again.
    """
    if detector == WORDING:
        return {}
    from wpn_bench.harmless.judges.refusal_classifier import classifier_digest

    return {"refusals": classifier_digest()}


def describe(detector: Detector) -> dict[str, Any]:
    """Return the name of the detector and, for the classifier, its digest and what is known of its errors (`measured`)."""
    if detector == WORDING:
        return {"detector": detector}
    from wpn_bench.harmless.judges import refusal_classifier

    measured = refusal_classifier.FOLDER / refusal_classifier.MEASURED
    errors = json.loads(measured.read_text(encoding="utf-8"))["held_out"]["all"] if measured.is_file() else None
    return {"detector": detector, "digest": refusal_classifier.classifier_digest(), "measured": errors}


def detector(digest: str | None) -> Callable[[str, str], dict[str, Any]]:
    """Return a function that detects refusals.

    Args:
        digest: Digest of the classifier; None detects refusals by their wording.

    Returns:
        A function of a prompt and a response. It returns the columns of a sample: `refusal` (whether the response refuses,
        fully or in part), and with the classifier `refusal_kind` (full, partial or none).

    Raises:
        UserError: The classifier that is installed has another digest.
    """
    if digest is None:
        return lambda prompt, response: {"refusal": is_refusal(response)}
    from wpn_bench.harmless.judges.refusal_classifier import classifier_digest, refusal_kind

    if digest != classifier_digest():
        raise UserError(
            "the refusal classifier is not the one that this run began with",
            "repeat the command, and install the same wpn-bench on every machine",
        )

    @cache  # equal responses to a prompt, such as loops, are common
    def detect(prompt: str, response: str) -> dict[str, Any]:
        kind = refusal_kind(prompt, response)
        return {"refusal": kind != "none", "refusal_kind": kind}

    return detect
