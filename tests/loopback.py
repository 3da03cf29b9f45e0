"""A hub on this machine, of the files beside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def without_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies to nowhere for the rest of the test, and no longer: what opens addresses for this process is made with them."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)


def serve(hub: Path, root: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A loopback hub of the files in `root`, and its address."""
    command = [sys.executable, str(hub / "serve.py"), str(root), "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def hub_environment(address: str, home: Path, hub: Path) -> dict[str, str]:
    """This process's environment with the hub at `address`; nothing of the user's own caches or tokens."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    return kept | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "TORCH_HOME": str(hub / "torch_home"),
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
    }
