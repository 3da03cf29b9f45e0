"""Models and data sets at a known commit: with the hub, with a bad line, and without."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import serve
from safetensors.torch import load_file

from wpn_bench import hub, models
from wpn_bench.core import consent
from wpn_bench.core.files import digest_file
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.detoxify import DetoxifyJudge
from wpn_bench.hub import connection

Run = Callable[..., subprocess.CompletedProcess[str]]
Hub = Callable[..., dict[str, str]]

pytestmark = pytest.mark.hub

NOBODY = {"HF_ENDPOINT": "http://127.0.0.1:9"}

RESOLVE = """
import sys
from wpn_bench.benchmarks.run import resolve_revision
from wpn_bench.errors import UserError
try:
    print(resolve_revision(*sys.argv[1:]))
except UserError as e:
    print("USER ERROR", e)
"""

LOAD = """
import sys
from wpn_bench import hub
from wpn_bench.errors import UserError
try:
    data = hub.load_dataset(*sys.argv[1:])
    print({split: len(rows) for split, rows in data.items()})
except UserError as e:
    print("USER ERROR", e)
"""

COPA = ("aps/super_glue", "copa")
COPA_ROWS = "{'train': 20, 'validation': 100}"


def test_a_commit_is_resolved_and_read(hub_with: Hub, run_python: Run) -> None:
    env = hub_with()
    commit = run_python(RESOLVE, env, *COPA).stdout.strip()
    assert len(commit) == 40
    first = run_python(LOAD, env, *COPA, commit)
    assert first.stdout.strip() == COPA_ROWS
    assert first.stderr == ""
    # From now on the hub is not needed, whether or not the user says so.
    for offline in (NOBODY, {"HF_HUB_OFFLINE": "1"}):
        assert run_python(RESOLVE, env | offline, *COPA).stdout.strip() == commit
        again = run_python(LOAD, env | offline, *COPA, commit)
        assert again.stdout.strip() == COPA_ROWS
        assert again.stderr == ""
    # Another commit than the cached one is refused, not silently replaced as by `datasets`.
    other = run_python(LOAD, env | {"HF_HUB_OFFLINE": "1"}, *COPA, "0" * 40).stdout
    assert other.startswith(f"USER ERROR the data set 'aps/super_glue' is cached at commit {commit[:12]}, not at")
    # A configuration that is not cached is not there.
    assert "run `wpn-bench prefetch`" in run_python(RESOLVE, env | NOBODY, "aps/super_glue", "wsc").stdout


@pytest.mark.parametrize("offline", [NOBODY, {"HF_HUB_OFFLINE": "1"}], ids=["no line", "offline mode"])
def test_nothing_cached_and_no_hub(hub_with: Hub, run_python: Run, offline: dict[str, str]) -> None:
    said = run_python(RESOLVE, hub_with() | offline, *COPA).stdout
    assert said.strip() == (
        "USER ERROR the data set 'aps/super_glue' is not cached and the hub cannot be reached;"
        " run `wpn-bench prefetch` with the same options once, with network"
    )


def test_an_unknown_data_set(hub_with: Hub, run_python: Run) -> None:
    said = run_python(RESOLVE, hub_with(), "nobody/nothing").stdout
    assert said.startswith("USER ERROR there is no data set 'nobody/nothing' on the hub; ")


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--fail-rate", "0.2"), ("--cut-rate", "0.2")], ids=["busy", "cut off"])
def test_a_bad_line_is_borne(hub_with: Hub, run_python: Run, options: tuple[str, ...]) -> None:
    env = hub_with(*options, "--seed", "1")
    commit = run_python(RESOLVE, env, *COPA).stdout.strip()
    assert len(commit) == 40
    assert run_python(LOAD, env, *COPA, commit).stdout.strip() == COPA_ROWS


# --- repositories of models, on a hub of the test's own --------------------------------------------------------------


@dataclass
class OwnHub:
    """A loopback hub that serves `root`; its commits are digests of the files, so that a change moves the branch."""

    root: Path
    log: Path
    start: Callable[..., None]

    @property
    def asked(self) -> list[str]:
        """The requests since the last look, as (method path status)."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def own_hub(shared_hub: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnHub]:
    """A hub with the model `me/tiny`, and an empty cache."""
    from huggingface_hub import close_session, constants

    root, log = tmp_path / "root", tmp_path / "log"
    shutil.copytree(tiny_model, root / "models" / "me" / "tiny")
    (root / "datasets").mkdir()
    running: list[Any] = []

    def start(*options: str) -> None:
        server, address = serve(shared_hub, root, "--log", str(log), *options)
        running.append(server)
        _lies_at(address, monkeypatch)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(connection, "RETRY_DELAYS", (0.01,) * 30)
    hub.resolve_commit.cache_clear()
    close_session()  # one that another test began may go through a proxy of that test
    start()
    yield OwnHub(root, log, start)
    hub.resolve_commit.cache_clear()
    for server in running:
        server.terminate()
        server.wait()


def _lies_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it the hub of this process, as HF_ENDPOINT would of a new one."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def _forget() -> None:
    """What a new process would not know."""
    hub.resolve_commit.cache_clear()


def test_a_model_is_fetched_once_and_known_by_its_commit(own_hub: OwnHub, tiny_model: Path) -> None:
    found = models.resolve("me/tiny")
    assert found.revision is not None
    assert len(found.revision) == 40
    assert found.digest == models.resolve(str(tiny_model)).digest
    assert any(line.startswith("GET /me/tiny/resolve") for line in own_hub.asked)
    _forget()
    assert models.resolve("me/tiny") == found
    assert own_hub.asked == ["GET /api/models/me/tiny 200"]  # where the branch is now, and nothing else


def test_a_branch_that_moves_does_not_move_the_run(own_hub: OwnHub) -> None:
    first = models.resolve("me/tiny")
    config = own_hub.root / "models" / "me" / "tiny" / "config.json"
    config.write_text(config.read_text() + " ")
    assert models.resolve("me/tiny") == first
    _forget()
    moved = models.resolve("me/tiny")
    assert moved.revision != first.revision
    assert moved.digest != first.digest


def test_offline_the_commit_that_was_fetched_is_read_and_nothing_is_asked(
    own_hub: OwnHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    found = models.resolve("me/tiny")
    _ = own_hub.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _forget()
    assert models.resolve("me/tiny") == found
    assert models.resolve("me/tiny", found.revision) == found
    for asked, revision in (("me/other", None), ("me/tiny", "v2"), ("me/tiny", "0" * 40)):
        with pytest.raises(UserError, match="wpn-bench prefetch"):
            models.resolve(asked, revision)
    assert own_hub.asked == []


def test_a_bad_line_is_borne_by_models(own_hub: OwnHub, tiny_model: Path) -> None:
    own_hub.start("--fail-rate", "0.3", "--cut-rate", "0.3", "--seed", "3")
    assert models.resolve("me/tiny").digest == models.resolve(str(tiny_model)).digest
    assert any(line.endswith(" 503") for line in own_hub.asked)


def test_what_was_half_fetched_is_not_taken_for_the_model(own_hub: OwnHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program fetched the settings; then the hub went away; then it came back."""
    from huggingface_hub import constants, hf_hub_download

    hf_hub_download("me/tiny", "config.json")
    hf_hub_download("me/tiny", "model.safetensors")
    address = constants.ENDPOINT
    _lies_at(NOBODY["HF_ENDPOINT"], monkeypatch)
    with pytest.raises(UserError):
        models.resolve("me/tiny")
    _lies_at(address, monkeypatch)
    _forget()
    found = models.resolve("me/tiny")
    (found.path / "tokenizer.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"not completely in the local cache.*wpn-bench prefetch"):
        models.resolve("me/tiny")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_is_not_what_the_hub_promised_is_seen_and_fetched_anew(own_hub: OwnHub, name: str) -> None:
    found = models.resolve("me/tiny")
    blob = (found.path / name).resolve()
    raw = bytearray(blob.read_bytes())
    raw[len(raw) // 2] ^= 1
    blob.write_bytes(raw)
    with pytest.raises(UserError, match=rf"{name} of me/tiny did not match the hub's digest.*again"):
        models.resolve("me/tiny")
    again = models.resolve("me/tiny")
    assert (again.digest, again.revision) == (found.digest, found.revision)


def test_a_small_file_has_gits_digest(tmp_path: Path) -> None:
    """As the real hub names what is not in its large-file store."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    blob = tmp_path / "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"  # git hash-object of "hello world\n"
    blob.write_text("hello world\n")
    (folder / "config.json").symlink_to(blob)
    hub.check_files("me/tiny", folder, {"config.json": digest_file(blob)})
    blob.write_text("hello worlds\n")
    with pytest.raises(UserError, match="did not match the hub's digest"):
        hub.check_files("me/tiny", folder, {"config.json": digest_file(blob)})
    assert not blob.exists()


def test_pickles_and_code_are_refused_before_they_are_fetched(own_hub: OwnHub) -> None:
    folder = own_hub.root / "models" / "me" / "tiny"
    safe = folder / "model.safetensors"
    torch.save(load_file(safe), folder / "pytorch_model.bin")
    safe.rename(folder.parent / safe.name)
    with pytest.raises(UserError, match=r"me/tiny has its weights only as pickles .*--allow-pickle"):
        models.resolve("me/tiny")
    assert not [line for line in own_hub.asked if "resolve" in line and "config.json" not in line]
    with consent.granted(pickles=True):
        assert (models.resolve("me/tiny").path / "pytorch_model.bin").is_file()
    (folder / "pytorch_model.bin").unlink()
    (folder.parent / safe.name).rename(safe)
    (folder / "modeling_x.py").write_text("raise SystemExit")
    (folder / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}')
    _forget()
    _ = own_hub.asked
    with pytest.raises(UserError, match=r"me/tiny brings its own code .*--trust-remote-code"):
        models.resolve("me/tiny")
    assert not [line for line in own_hub.asked if "modeling_x" in line or "safetensors" in line]


def test_pickles_beside_safetensors_and_training_states_are_not_fetched(own_hub: OwnHub) -> None:
    folder = own_hub.root / "models" / "me" / "tiny"
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "modeling_x.py", "tf_model.h5"):
        (folder / name).write_bytes(b"x")
    names = {path.name for path in models.resolve("me/tiny").path.iterdir()}
    assert "model.safetensors" in names
    assert names <= {path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt")}


def test_a_revision_that_is_not_there(own_hub: OwnHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    def refuse(kind: type[Exception], status: int) -> None:
        def model_info(*_: Any, **__: Any) -> None:
            import httpx2

            request = httpx2.Request("GET", "http://127.0.0.1/api/models/me/tiny")
            raise kind("no", response=httpx2.Response(status, request=request))  # type: ignore[call-arg]

        monkeypatch.setattr("huggingface_hub.hf_api.HfApi.model_info", model_info)

    for kind, status, problem in (
        (errors.RevisionNotFoundError, 404, "me/tiny has no revision 'v9'"),
        (errors.GatedRepoError, 403, "access to me/tiny is restricted; .*HF_TOKEN"),
        (errors.RepositoryNotFoundError, 404, "unknown model 'me/tiny'"),
        (errors.HfHubHTTPError, 401, r"the hub refuses access to me/tiny \(401\); check HF_TOKEN"),
    ):
        refuse(kind, status)
        with pytest.raises(UserError, match=problem):
            models.resolve("me/tiny", "v9")


def test_a_full_disk_is_said(own_hub: OwnHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"me/tiny needs .* GiB more, and .* has 0.0 GiB free.*HF_HOME"):
        models.resolve("me/tiny")
    monkeypatch.undo()
    for number, said in ((errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied")):

        def full(*_: Any, number: int = number, **__: Any) -> None:
            try:
                raise OSError(number, os.strerror(number))
            except OSError as e:
                raise e from e  # a circle, as some libraries make them

        monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
        with pytest.raises(UserError, match=f"me/tiny cannot be stored in .*{said}.*HF_HOME"):
            hub.snapshot("me/tiny", "1" * 40)


def test_detoxifys_checkpoint_is_fetched_whole(
    own_hub: OwnHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a line that cuts every other body; a file with another digest than its name says is not kept."""
    from detoxify import detoxify
    from huggingface_hub import constants

    whole = own_hub.root / "models" / "me" / "checkpoint"
    whole.mkdir()
    (whole / "raw").write_bytes(b"weights" * 100_000)
    name = f"toxic-{digest_file(whole / 'raw')[:8]}.ckpt"
    (whole / "raw").rename(whole / name)
    own_hub.start("--fail-rate", "0.5", "--cut-rate", "0.5", "--seed", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    address = f"{constants.ENDPOINT}/me/checkpoint/resolve/main/{name}"
    monkeypatch.setitem(detoxify.MODEL_URLS, "original", address)
    with consent.granted(pickles=True):
        file = DetoxifyJudge("original", "cpu")._checkpoint()
    assert digest_file(file) == digest_file(whole / name)
    assert any(line.endswith("503") for line in own_hub.asked)
    file.unlink()
    (whole / name).write_bytes(b"another file")
    monkeypatch.setattr(connection, "RETRY_DELAYS", (0.01,) * 3)
    with pytest.raises(UserError, match="could not be downloaded"):
        DetoxifyJudge("original", "cpu").digest()
    assert list(file.parent.iterdir()) == []


# --- data sets that were damaged --------------------------------------------------------------------------------------

DAMAGE = """
import sys
from pathlib import Path
from wpn_bench import hub
from wpn_bench.errors import UserError
path, name, commit = sys.argv[1:]
table = hub.cached_tables(path, name)[0]
raw = bytearray(table.read_bytes())
raw[len(raw) // 2] ^= 1
table.write_bytes(raw[: -1])
try:
    print({split: len(rows) for split, rows in hub.load_dataset(path, name, commit).items()})
except UserError as e:
    print("USER ERROR", e)
"""


@pytest.mark.slow
def test_a_damaged_data_set_is_seen_and_fetched_anew(hub_with: Hub, run_python: Run) -> None:
    env = hub_with()
    commit = run_python(RESOLVE, env, *COPA).stdout.strip()
    assert run_python(LOAD, env, *COPA, commit).stdout.strip() == COPA_ROWS
    assert run_python(DAMAGE, env, *COPA, commit).stdout.strip() == COPA_ROWS
    said = run_python(DAMAGE, env | {"HF_HUB_OFFLINE": "1"}, *COPA, commit).stdout
    assert said.startswith(
        "USER ERROR the cached files of the data set 'aps/super_glue' are damaged; run `wpn-bench prefetch`"
    )
