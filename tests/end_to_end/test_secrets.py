"""Secrets planted wherever a run could pick one up; then every byte that it leaves and prints is searched for them."""

from __future__ import annotations

import base64
import binascii
import gzip
import os
import re
import shutil
import socket
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from fork_server import FEW_REFERENCES, ForkServer

from wpn_bench import lab
from wpn_bench.redact import HIDDEN

ROOT = Path(__file__).resolve().parents[2]
USER, FOLDER, IN_NAME = "quintessa", "plantedfolder", "hf_PlantedInAFileName0123456789"
SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOfTheHub0123456789",
    "WANDB_API_KEY": "plantedwandb0123456789abcdef0123456789ab",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED012345678",
    "AWS_SECRET_ACCESS_KEY": "planted/aws/secret/Zm9vYmFyMDEyMzQ1Njc4OQ",
    "MLFLOW_TRACKING_PASSWORD": "plantedmlflowpassword",
    "NOTES_OF_MINE": "plantedelsewhere4711",
}
ADDRESSES = {
    "HF_ENDPOINT": "http://plantedname:plantedhubpassword@127.0.0.1:9",
    "HTTPS_PROXY": "http://plantedproxyuser:plantedproxypassword@127.0.0.1:9",
    "WANDB_BASE_URL": "http://127.0.0.1:9/plantedwandbhost",
}
IN_ADDRESSES = ("plantedname", "plantedhubpassword", "plantedproxyuser", "plantedproxypassword", "plantedwandbhost")
NEVER = (*SECRETS.values(), *IN_ADDRESSES, USER, FOLDER, IN_NAME)
CONFIG = """\
methods:
  wpn: {steps: 2, batch_size: 2, retain_batch_size: 2}
  "ga:far": {steps: 4, batch_size: 2, lr: 1000.0}
ood: []
benign: []
attacks: [typos]
benchmarks: [lab_copa]
decoding: {max_new_tokens: 8, batch_size: 8}
"""
# A run whose training lacks a file: the reason that is kept names its file, and the error the token in its path.
BROKEN = """\
import sys
from wpn_bench.cli.main import main
from wpn_bench.unlearn import train

file = sys.argv.pop()
def run_train_stage(ctx):
    raise FileNotFoundError(2, "No such file or directory", file)
train.run_train_stage = run_train_stage
main()
"""
# A bug: an exception that nobody foresaw, with all that can be in one.
BUG = """\
import os, sys
from wpn_bench.cli import catalogue
from wpn_bench.cli.main import main
def show(*_):
    token = os.environ["HF_TOKEN"]
    raise LookupError(f"no {token} at {os.environ['HF_ENDPOINT']} in {os.path.expanduser('~')}/x.py")
catalogue.show = show
main()
"""


@dataclass(frozen=True)
class Planted:
    """A home, a folder and an environment full of secrets; `said` is all that was printed there."""

    folder: Path
    server: ForkServer
    said: list[str]

    def typed(self, *arguments: object, code: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        program = ["wpn-bench"] if code is None else ["python", "-c", code]
        words = [*program, *map(str, arguments)]
        done = self.server.completed(words, self.folder / "here", environment=env)
        self.said.append(done.stdout + done.stderr)
        return done


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    """The planted secrets, after `filled`."""
    folder = tmp_path_factory.mktemp("secrets")
    home, secret = folder / "home" / USER, folder / FOLDER / USER
    for made in (home, secret, folder / "here"):
        made.mkdir(parents=True)
    (secret / "quick.yaml").write_text(CONFIG)
    (secret / f"{IN_NAME}.jsonl").write_text(
        "".join(f'{{"prompt": "What is the name of river {k}?"}}\n' for k in range(4))
    )
    shutil.copytree(lab.judge_checkpoint().parent, secret / "judge")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "WANDB_", "WPN_BENCH_"))}
    named = {"HOME": str(home), "USER": USER, "LOGNAME": USER, "HOSTNAME": f"{USER}-machine", "XDG_CACHE_HOME": ""}
    env = kept | named | SECRETS | ADDRESSES | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = ForkServer(env, FEW_REFERENCES)
    yield filled(Planted(folder, server, []), secret)
    server.stop()


def filled(found: Planted, secret: Path) -> Planted:
    """After a whole run, one whose jobs fail, and everything that is made of a run."""
    prompts = secret / f"{IN_NAME}.jsonl"
    store, config = ("--store", secret / "store"), ("--config", secret / "quick.yaml")
    judge = ("--judge", f"detoxify:{secret / 'judge' / lab.judge_checkpoint().name}")
    own = ("--prompts", f"mine={prompts}", "--limit", "2", *judge, *config, *store)
    done = found.typed("full", *own, "--out", secret / "run")
    assert done.returncode == 1, done.stderr
    assert "failed: train ga:far" in done.stderr
    own = ("--prompts", f"mine={prompts}", "--limit", "2", *config, *store, "--methods", "wpn", "--seeds", "7,")
    done = found.typed("harmless", *own, "--out", "broken", secret / SECRETS["AWS_SECRET_ACCESS_KEY"], code=BROKEN)
    assert done.returncode == 1, done.stderr
    assert "No such file or directory" in done.stderr
    run = secret / "run"
    verdict = ("--json", "check.json", "--junit", "check.xml", "--summary", "check.md", "--annotations", "github")
    commands = [
        ("report", run, "--format", "html,md,json,csv,junit"),
        ("report", run, "broken", "--out", "compared"),
        ("export", run, "--format", "lm-eval", "--out", "exported"),
        ("check", run, "--save-baseline", "baseline.json"),
        ("show", run),
        ("check", run, "--baseline", "baseline.json", *verdict),
    ]
    for command in commands:
        done = found.typed(*command)
        assert done.returncode in ((3, 4) if "--baseline" in command else (0,)), (command, done.stderr)
    return found


def decoded(file: Path) -> Iterator[str]:
    """A file's bytes as text, and what is packed in them: tables with what stands beside the rows, gzip, base64."""
    raw = file.read_bytes()
    text = raw.decode("utf-8", "replace")
    yield text
    if file.suffix == ".parquet":
        frame = pd.read_parquet(file)
        yield " ".join(map(str, frame.columns))
        for column in frame:
            yield "\n".join(frame[column].map(str).unique())
        yield str(pq.read_schema(file).metadata)
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw).decode("utf-8", "replace")
    for block in re.findall(r"[A-Za-z0-9+/=]{200,}", text):
        try:
            packed = base64.b64decode(block, validate=True)
            yield zlib.decompress(packed, 47).decode("utf-8", "replace")  # 47: gzip or zlib
        except (binascii.Error, zlib.error):
            continue


def found_in(text: str) -> list[str]:
    machine = socket.gethostname()
    names = (*NEVER, machine) if len(machine) > 5 and machine != "localhost" else NEVER
    return [name for name in names if name in text]


def test_no_file_of_a_run_holds_a_secret(planted: Planted) -> None:
    given = {"quick.yaml", f"{IN_NAME}.jsonl"}  # what was planted, as it was planted
    files = [f for f in planted.folder.rglob("*") if f.is_file() and f.name not in given and "judge" not in f.parts]
    suffixes = {f.suffix for f in files}
    assert {".json", ".html", ".md", ".parquet", ".safetensors", ".jsonl", ".xml", ".csv"} <= suffixes
    assert len(files) > 60
    leaks = {f"{f.relative_to(planted.folder)}: {one}" for f in files for text in decoded(f) for one in found_in(text)}
    assert not leaks


def test_the_search_finds_what_is_packed(tmp_path: Path) -> None:
    """Else it would find nothing for the wrong reason."""
    secret = SECRETS["NOTES_OF_MINE"]
    (tmp_path / "a.gz").write_bytes(gzip.compress(secret.encode()))
    packed = base64.b64encode(gzip.compress(secret.encode() + os.urandom(300))).decode()
    (tmp_path / "b.html").write_text(f'<script type="x">{packed}</script>')
    pd.DataFrame({"response": [secret] * 50}).to_parquet(tmp_path / "c.parquet", compression="gzip")
    for file in tmp_path.iterdir():
        assert any(found_in(text) for text in decoded(file)), file.name


def test_a_report_s_packed_samples_are_looked_into(planted: Planted) -> None:
    page = planted.folder / FOLDER / USER / "run" / "report.html"
    assert any("What is the name of river 1?" in text for text in list(decoded(page))[1:])


def test_nothing_is_printed_that_was_not_typed(planted: Planted) -> None:
    """Secrets never; paths to what was written are printed whole, for people to open."""
    said = "\n".join(planted.said)
    assert "report: " in said
    assert [one for one in found_in(said) if one not in (FOLDER, USER)] == []


def test_an_error_hides_the_password_of_an_endpoint(planted: Planted) -> None:
    token = SECRETS["HF_TOKEN"]
    for name in ("nobody/nothing", token):
        done = planted.typed("full", "--model", name, "--store", planted.folder / "other")
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert found_in(done.stderr) == []
    assert HIDDEN in done.stderr


def test_a_bug_is_told_in_a_file_without_secrets(planted: Planted) -> None:
    done = planted.typed("list", code=BUG, XDG_CACHE_HOME=str(planted.folder / "cache"))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    (file,) = (planted.folder / "cache").rglob("*.txt")
    assert str(file) in line
    assert "report it" in line
    told = file.read_text()
    assert "in show" in told
    assert "LookupError" in told
    assert found_in(told) == found_in(line.replace(str(file), "")) == []
    whole = planted.typed("list", code=BUG, WPN_BENCH_DEBUG="1")
    assert whole.returncode == 1
    assert "Traceback (most recent call last)" in whole.stderr
    planted.said.pop()  # asked for as it is
