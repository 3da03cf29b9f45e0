"""Settings that must be made before torch and the hub's libraries are imported."""

from __future__ import annotations

import os


def configure_libraries() -> None:
    """Disable the libraries' telemetry, and their progress bars and warnings, which are meant for programmers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault(
        "HF_HUB_VERBOSITY", "error"
    )  # each retry would print the URL of the hub, including its password
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    for name in ("huggingface_hub", "datasets", "transformers", "lm_eval", "httpx", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def go_offline() -> None:
    """From now on, download nothing and send no request to the hub."""
    from wpn_bench.hub import go_offline

    go_offline()
