"""Models and data sets at a fixed commit: with the hub, over an unreliable connection, and offline."""

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
    # Now the hub is no longer needed, with and without --offline.
    for offline in (NOBODY, {"HF_HUB_OFFLINE": "1"}):
        assert run_python(RESOLVE, env | offline, *COPA).stdout.strip() == commit
        again = run_python(LOAD, env | offline, *COPA, commit)
        assert again.stdout.strip() == COPA_ROWS
        assert again.stderr == ""
    # Another commit than the cached one is an error; `datasets` would silently use the cached one.
    other = run_python(LOAD, env | {"HF_HUB_OFFLINE": "1"}, *COPA, "0" * 40).stdout
    assert other.startswith(f"USER ERROR the data set 'aps/super_glue' is cached at commit {commit[:12]}, not at")
    # A configuration that is not cached is an error.
    assert "run `wpn-bench prefetch`" in run_python(RESOLVE, env | NOBODY, "aps/super_glue", "wsc").stdout


@pytest.mark.parametrize("offline", [NOBODY, {"HF_HUB_OFFLINE": "1"}], ids=["no line", "offline mode"])
def test_nothing_cached_and_hub_unreachable(hub_with: Hub, run_python: Run, offline: dict[str, str]) -> None:
    said = run_python(RESOLVE, hub_with() | offline, *COPA).stdout
    assert said.strip() == (
        "USER ERROR the data set 'aps/super_glue' is not cached and the hub cannot be reached;"
        " run `wpn-bench prefetch` with the same options once while online"
    )


def test_an_unknown_data_set(hub_with: Hub, run_python: Run) -> None:
    said = run_python(RESOLVE, hub_with(), "nobody/nothing").stdout
    assert said.startswith("USER ERROR there is no data set 'nobody/nothing' on the hub; ")


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--fail-rate", "0.2"), ("--cut-rate", "0.2")], ids=["busy", "cut off"])
def test_data_sets_download_over_an_unreliable_connection(
    hub_with: Hub, run_python: Run, options: tuple[str, ...]
) -> None:
    env = hub_with(*options, "--seed", "1")
    commit = run_python(RESOLVE, env, *COPA).stdout.strip()
    assert len(commit) == 40
    assert run_python(LOAD, env, *COPA, commit).stdout.strip() == COPA_ROWS


# --- models, on a hub of each test ------------------------------------------------------------------------------


@dataclass
class OwnHub:
    """A loopback hub that serves `root`. Commits are digests of the files, so a change of a file moves the branch."""

    root: Path
    log: Path
    start: Callable[..., None]

    @property
    def new_requests(self) -> list[str]:
        """Requests since the last access, as "method path status"."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def own_hub(shared_hub: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnHub]:
    """Start a hub with the model `me/tiny`, with an empty cache."""
    from huggingface_hub import close_session, constants

    root, log = tmp_path / "root", tmp_path / "log"
    shutil.copytree(tiny_model, root / "models" / "me" / "tiny")
    (root / "datasets").mkdir()
    running: list[Any] = []

    def start(*options: str) -> None:
        server, address = serve(shared_hub, root, "--log", str(log), *options)
        running.append(server)
        _use_endpoint(address, monkeypatch)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(connection, "RETRY_DELAYS", (0.01,) * 30)
    hub.resolve_commit.cache_clear()
    close_session()  # a session of another test may use the proxy of that test
    start()
    yield OwnHub(root, log, start)
    hub.resolve_commit.cache_clear()
    for server in running:
        server.terminate()
        server.wait()


def _use_endpoint(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it the hub of this process, like HF_ENDPOINT at the start of a new process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def _clear_caches() -> None:
    """Clear all that a new process would not have."""
    hub.resolve_commit.cache_clear()


def test_a_model_is_downloaded_once_and_identified_by_its_commit(own_hub: OwnHub, tiny_model: Path) -> None:
    found = models.resolve("me/tiny")
    assert found.revision is not None
    assert len(found.revision) == 40
    assert found.digest == models.resolve(str(tiny_model)).digest
    assert any(line.startswith("GET /me/tiny/resolve") for line in own_hub.new_requests)
    _clear_caches()
    assert models.resolve("me/tiny") == found
    assert own_hub.new_requests == ["GET /api/models/me/tiny 200"]  # only the commit of the branch


def test_a_branch_that_moves_does_not_change_the_run(own_hub: OwnHub) -> None:
    first = models.resolve("me/tiny")
    config = own_hub.root / "models" / "me" / "tiny" / "config.json"
    config.write_text(config.read_text() + " ")
    assert models.resolve("me/tiny") == first
    _clear_caches()
    moved = models.resolve("me/tiny")
    assert moved.revision != first.revision
    assert moved.digest != first.digest


def test_offline_the_cached_commit_is_used_without_requests(own_hub: OwnHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    found = models.resolve("me/tiny")
    _ = own_hub.new_requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _clear_caches()
    assert models.resolve("me/tiny") == found
    assert models.resolve("me/tiny", found.revision) == found
    for asked, revision in (("me/other", None), ("me/tiny", "v2"), ("me/tiny", "0" * 40)):
        with pytest.raises(UserError, match="wpn-bench prefetch"):
            models.resolve(asked, revision)
    assert own_hub.new_requests == []


def test_models_download_over_an_unreliable_connection(own_hub: OwnHub, tiny_model: Path) -> None:
    own_hub.start("--fail-rate", "0.3", "--cut-rate", "0.3", "--seed", "3")
    assert models.resolve("me/tiny").digest == models.resolve(str(tiny_model)).digest
    assert any(line.endswith(" 503") for line in own_hub.new_requests)


def test_an_incomplete_download_is_not_used(own_hub: OwnHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program downloads the configuration, the hub becomes unreachable, and then reachable again."""
    from huggingface_hub import constants, hf_hub_download

    hf_hub_download("me/tiny", "config.json")
    hf_hub_download("me/tiny", "model.safetensors")
    address = constants.ENDPOINT
    _use_endpoint(NOBODY["HF_ENDPOINT"], monkeypatch)
    with pytest.raises(UserError):
        models.resolve("me/tiny")
    _use_endpoint(address, monkeypatch)
    _clear_caches()
    found = models.resolve("me/tiny")
    (found.path / "tokenizer.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"not completely in the local cache.*wpn-bench prefetch"):
        models.resolve("me/tiny")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_detected_and_downloaded_again(own_hub: OwnHub, name: str) -> None:
    found = models.resolve("me/tiny")
    blob = (found.path / name).resolve()
    raw = bytearray(blob.read_bytes())
    raw[len(raw) // 2] ^= 1
    blob.write_bytes(raw)
    with pytest.raises(UserError, match=rf"{name} of me/tiny did not match the hub's digest.*again"):
        models.resolve("me/tiny")
    again = models.resolve("me/tiny")
    assert (again.digest, again.revision) == (found.digest, found.revision)


def test_a_small_file_has_the_digest_of_git(tmp_path: Path) -> None:
    """The real hub uses it for files outside its large-file storage."""
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


def test_pickles_and_code_are_rejected_before_the_download(own_hub: OwnHub) -> None:
    folder = own_hub.root / "models" / "me" / "tiny"
    safe = folder / "model.safetensors"
    torch.save(load_file(safe), folder / "pytorch_model.bin")
    safe.rename(folder.parent / safe.name)
    with pytest.raises(UserError, match=r"me/tiny has its weights only as pickles .*--allow-pickle"):
        models.resolve("me/tiny")
    assert not [line for line in own_hub.new_requests if "resolve" in line and "config.json" not in line]
    with consent.granted(pickles=True):
        assert (models.resolve("me/tiny").path / "pytorch_model.bin").is_file()
    (folder / "pytorch_model.bin").unlink()
    (folder.parent / safe.name).rename(safe)
    (folder / "modeling_x.py").write_text("raise SystemExit")
    (folder / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}')
    _clear_caches()
    _ = own_hub.new_requests
    with pytest.raises(UserError, match=r"me/tiny contains its own code .*--trust-remote-code"):
        models.resolve("me/tiny")
    assert not [line for line in own_hub.new_requests if "modeling_x" in line or "safetensors" in line]


def test_pickles_with_safetensors_and_training_states_are_not_downloaded(own_hub: OwnHub) -> None:
    folder = own_hub.root / "models" / "me" / "tiny"
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "modeling_x.py", "tf_model.h5"):
        (folder / name).write_bytes(b"x")
    names = {path.name for path in models.resolve("me/tiny").path.iterdir()}
    assert "model.safetensors" in names
    assert names <= {path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt")}


def test_a_revision_that_does_not_exist(own_hub: OwnHub, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_full_disk_is_reported(own_hub: OwnHub, monkeypatch: pytest.MonkeyPatch) -> None:
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
                raise e from e  # a cycle of causes, which some libraries create

        monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
        with pytest.raises(UserError, match=f"me/tiny cannot be stored in .*{said}.*HF_HOME"):
            hub.snapshot("me/tiny", "1" * 40)


def test_the_checkpoint_of_detoxify_is_downloaded_completely(
    own_hub: OwnHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second response is truncated. A file whose digest does not match its name is deleted."""
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
    assert any(line.endswith("503") for line in own_hub.new_requests)
    file.unlink()
    (whole / name).write_bytes(b"another file")
    monkeypatch.setattr(connection, "RETRY_DELAYS", (0.01,) * 3)
    with pytest.raises(UserError, match="could not be downloaded"):
        DetoxifyJudge("original", "cpu").digest()
    assert list(file.parent.iterdir()) == []


# --- damaged data sets -----------------------------------------------------------------------------------------------

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
def test_a_damaged_data_set_is_detected_and_downloaded_again(hub_with: Hub, run_python: Run) -> None:
    env = hub_with()
    commit = run_python(RESOLVE, env, *COPA).stdout.strip()
    assert run_python(LOAD, env, *COPA, commit).stdout.strip() == COPA_ROWS
    assert run_python(DAMAGE, env, *COPA, commit).stdout.strip() == COPA_ROWS
    said = run_python(DAMAGE, env | {"HF_HUB_OFFLINE": "1"}, *COPA, commit).stdout
    assert said.startswith(
        "USER ERROR the cached files of the data set 'aps/super_glue' are damaged; run `wpn-bench prefetch`"
    )
