"""Runs commands as a shell would, each in a process of its own, without the seconds that imports take.

`python tests/fork_server.py SETUP` imports what the commands need, executes the Python code SETUP, and then reads a JSON object a line from standard input:
`words` (the command), `cwd`, `configure_only` (a run stops before its first job), `apart` (standard output and error are
returned separately), `environment` (variables of this command alone) and `paths` (its own folders of packages). Each command runs in a fork of this process. The answer is a JSON object a line: `code` (exit status),
`output` (standard output, with standard error unless `apart`), `errors` (standard error if `apart`), `cpu` (processor time in
seconds) and `seconds`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.util
import json
import os
import pickle
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import psutil

# What takes long to import. No model is made before the forks: a fork of a process with threads of its own may hang.
SLOW = (
    "datasets",
    "detoxify",
    "jsonschema",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "lm_eval.tasks",
    "optuna",
    "plotly.graph_objects",
    "plotly.offline",
    "scipy.stats",
    "statsmodels.stats.multitest",
    "transformers.models.bert.modeling_bert",
    "transformers.models.opt.modeling_opt",
    "transformers.trainer",
)
# Setup: the coherence judge is calibrated on 50 references of each side, which saves a minute of a real tokenizer and model.
FEW_REFERENCES = "from wpn_bench.harmless import stages; stages.REFERENCES = 50"
TASK_INDEX = "TESTS_TASK_INDEX"  # an environment variable
LONGEST_SECONDS = 900  # a command that hangs ends then, by a signal
# Extras, and modules that are run with `python -m`.
NOT_IMPORTED = ("ray_", "mlflow", "wandb", "__main__", "language_model", "held_out", "build")
ROOT = Path(__file__).resolve().parent.parent


class ForkServer:
    """A running server.

    Args:
        environment: Environment of the server and of every command.
        setup: Python code that the server executes before the first command.
    """

    def __init__(self, environment: dict[str, str], setup: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, setup], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(
        self,
        words: list[str],
        cwd: Path,
        configure_only: bool = False,
        apart: bool = False,
        environment: Mapping[str, str] | None = None,
        paths: Sequence[Path] = (),
    ) -> dict[str, Any]:
        """Run one command to its end.

        Args:
            words: The command, as a shell would split it.
            cwd: The folder in which it is typed.
            configure_only: Stop a run once its configuration is complete and checked, and an export before it begins.
            apart: Return standard output and standard error separately.
            environment: Variables of this command alone. What a library reads when it is imported has been read before.
            paths: Folders of packages that this command finds, as if they stood first in PYTHONPATH.

        Returns:
            `code`, `output`, `errors`, `cpu` and `seconds`.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"words": words, "cwd": str(cwd), "configure_only": configure_only, "apart": apart}
        asked |= {"environment": dict(environment or {}), "paths": [str(path) for path in paths]}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def completed(self, words: list[str], cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run one command to its end, and return what `subprocess.run` would: standard output and error apart."""
        answer = self.run(words, cwd, apart=True, **more)
        return subprocess.CompletedProcess(words, answer["code"], answer["output"], answer["errors"])

    def python(self, code: str, *arguments: str) -> str:
        """Run Python code at the root of the repository; if that fails, so does the test. Returns standard output."""
        done = self.completed(["python", "-c", code, *arguments], ROOT)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def running(self) -> list[psutil.Process]:
        """The process of the command that is running."""
        return psutil.Process(self.process.pid).children()

    def stop(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def console_script() -> Any:
    """The function behind `wpn-bench`, as the package declares it."""
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["wpn-bench"]
    return EntryPoint("wpn-bench", declared, "console_scripts").load()


def execute(words: list[str]) -> None:
    """Run a command in this process."""
    sys.argv = words
    if words[0] == "wpn-bench":
        console_script()()
    elif words[0] == "lm_eval":
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    elif words[:2] == ["python", "-m"]:
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    elif words[:2] == ["python", "-c"]:
        sys.argv = ["-c", *words[3:]]
        exec(words[2], {"__name__": "__main__"})
    elif words[0] == "python":
        sys.argv = words[1:]
        sys.path.insert(0, str(Path(words[1]).resolve().parent))
        runpy.run_path(words[1], run_name="__main__")
    else:
        os.execvp(words[0], words)


def stop_before_work() -> None:
    """Let `wpn-bench` end with 0 where a run or an export would begin, as if all optional packages were installed."""
    from wpn_bench import interop
    from wpn_bench.pipeline import runner

    def stop(*_: Any, **__: Any) -> None:
        print("configured")
        raise SystemExit(0)

    found = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: found(name, *more) or found("json")
    for module in list(sys.modules.values()):
        if getattr(module, "find_spec", None) is found:
            module.find_spec = importlib.util.find_spec  # type: ignore[attr-defined]
    runner.run = stop  # type: ignore[assignment]
    interop.FORMATS.get = lambda name: stop  # type: ignore[method-assign, assignment, return-value]


def in_a_fork(asked: dict[str, Any], output: Any, errors: Any) -> int:
    """Run a command in a fork of this process.

    Args:
        asked: What `ForkServer.run` sent.
        output: File that takes the command's standard output.
        errors: File that takes its standard error; may be the same.

    Returns:
        The child's process id.
    """
    child = os.fork()
    if child:
        return child
    os.dup2(output.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(asked["cwd"])
    os.environ.update(asked["environment"])
    sys.path[:0] = asked["paths"]
    signal.alarm(LONGEST_SECONDS)
    code = 0
    try:
        if asked["configure_only"]:
            stop_before_work()
        execute(asked["words"])
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def compile_templates_once() -> None:
    """Let lm-eval keep its compiled templates: it compiles one for every document, a tenth of a run on a small model."""
    from lm_eval.utils import env

    env.from_string = functools.cache(env.from_string)


def remember_task_index() -> None:
    """Let lm-eval read its 14,000 task files, which takes seven seconds, once for all processes of the tests.

    The file that `TASK_INDEX` names holds them.
    """
    import lm_eval.tasks
    from lm_eval.tasks._index import TaskIndex

    file, defaults, build = Path(os.environ[TASK_INDEX]), Path(lm_eval.tasks.__file__).parent, TaskIndex.build

    def remembered(paths: Iterable[Path], **how: Any) -> dict[str, Any]:
        paths = list(paths)
        if how or defaults not in paths:
            return build(paths, **how)
        if not file.exists():
            new = file.with_suffix(f".{os.getpid()}")
            new.write_bytes(pickle.dumps(build([defaults])))
            new.replace(file)
        index: dict[str, Any] = pickle.loads(file.read_bytes())
        return index | build([path for path in paths if path != defaults])

    TaskIndex.build = staticmethod(remembered)


def compute_ahead() -> None:
    """Compute what nearly every process would: plotly compressed, the templates of reports, the documents of the lab."""
    from wpn_bench.lab import world
    from wpn_bench.report.render import _plotly
    from wpn_bench.report.templates import environment

    _plotly()
    for name in ("report.html.j2", "report.md.j2", "model_card.md.j2"):
        environment().get_template(name)
    for name in world.BENCHMARKS:
        world.benchmark(name)


def serve() -> None:
    """Answer until standard input ends."""
    from wpn_bench.cli.libraries import configure_libraries

    configure_libraries()  # as each command does, before the libraries are imported
    for name in SLOW:
        with contextlib.suppress(ImportError):  # an extra
            importlib.import_module(name)
    for module in pkgutil.walk_packages(importlib.import_module("wpn_bench").__path__, "wpn_bench."):
        if not module.name.rpartition(".")[2].startswith(NOT_IMPORTED):
            importlib.import_module(module.name)
    compile_templates_once()
    remember_task_index()
    compute_ahead()
    exec(sys.argv[1], {})
    # A collection in a fork would walk over, and so copy, all that was imported.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            began = time.monotonic()
            child = in_a_fork(asked, output, errors if asked["apart"] else output)
            _, status, usage = os.wait4(child, 0)
            output.seek(0)
            errors.seek(0)
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "output": output.read().decode(errors="replace"),
                "errors": errors.read().decode(errors="replace"),
                "cpu": usage.ru_utime + usage.ru_stime,
                "seconds": time.monotonic() - began,
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
