"""Measure how often `prefetch` succeeds over an unreliable connection, and a run without network after it.

    python benchmarks/bad_line.py ../shared/hub --times 5

Each repetition starts with an empty cache. `wpn-bench prefetch` uses a loopback hub that answers 503 to a fifth of the requests
and truncates a fifth of the response bodies. Then the hub is stopped and `wpn-bench full --offline` runs with the cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUICK = "methods: {sft: {steps: 5}}\nattacks: [typos]\ndecoding: {max_new_tokens: 16}\n"
ROOT = Path(__file__).resolve().parent.parent


def served(hub: Path, log: Path, seed: int, rate: float) -> tuple[subprocess.Popen[str], str]:
    """Start an unreliable hub and yield it with its address."""
    bad = ["--fail-rate", str(rate), "--cut-rate", str(rate), "--seed", str(seed), "--log", str(log)]
    command = [sys.executable, str(hub / "serve.py"), str(hub / "root"), "--port", "0", *bad]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def typed(command: str, folder: Path, **env: str) -> tuple[int, float, str]:
    """Run `wpn-bench command` in `folder`; return exit code, seconds and the last line of the output."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "wpn_bench", *command.split()],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
    )
    lines = (done.stdout + done.stderr if done.returncode == 0 else done.stderr).splitlines()
    return done.returncode, time.monotonic() - started, lines[-1] if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hub", type=Path)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--runs", type=int, default=1, help="number of repetitions that also run without a hub")
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--model", default="facebook/opt-125m")
    parser.add_argument("--run", default="--limit 4 --config quick.yaml", help="options of the run without a hub")
    asked = parser.parse_args()
    hub = asked.hub.resolve()
    good = {"prefetch": 0, "full": 0}
    for k in range(asked.times):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "quick.yaml").write_text(QUICK)
            server, address = served(hub, folder / "log", k, asked.rate)
            env = {"HF_HOME": str(folder / "hf"), "TORCH_HOME": str(hub / "torch_home")}
            try:
                code, seconds, said = typed(f"prefetch --model {asked.model}", folder, HF_ENDPOINT=address, **env)
            finally:
                server.terminate()
                server.wait()
            requests = (folder / "log").read_text().splitlines()
            busy = sum(line.endswith(" 503") for line in requests)
            print(
                f"{k}: prefetch exit {code}, {seconds:.0f} s, {len(requests)} answers, {busy} of them 503", flush=True
            )
            good["prefetch"] += code == 0
            if code:
                print(f"   {said}")
            if code or k >= asked.runs:
                continue
            options = f"--model {asked.model} {asked.run} --offline --out out --store store"
            code, seconds, said = typed(f"full {options}", folder, HF_ENDPOINT=address, **env)
            good["full"] += code == 0
            print(
                f"{k}: full --offline without a hub exit {code}, {seconds:.0f} s{f': {said}' if code else ''}",
                flush=True,
            )
    print(
        f"prefetch {good['prefetch']} of {asked.times}, then full {good['full']} of {min(asked.runs, good['prefetch'])}"
    )


if __name__ == "__main__":
    main()
