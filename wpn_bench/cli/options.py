"""The command-line options, and how their values become settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from wpn_bench.cli import completion
from wpn_bench.errors import UserError

_WHAT, _HOW, _WHERE = "What is measured", "How it is measured", "Where it goes"
_TRAINED, _AGREED = "How it is trained", "What may be fetched, and run"
_FLEET = "Who does the work"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Hub id (facebook/opt-125m) or folder. Without it: the embedded lab model, offline.",
        rich_help_panel=_WHAT,
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.", rich_help_panel=_WHAT)]
Preset = Annotated[
    str | None,
    typer.Option(
        help="lab, paper, field, ablation or attacks (default: lab without --model, paper with it).",
        autocompletion=completion.one_of(completion.presets),
        rich_help_panel=_WHAT,
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML with settings over the preset.", rich_help_panel=_WHAT)
]
Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        "--method",
        help="Methods, comma separated: wpn,npo,dpo (`wpn-bench list methods` shows all).",
        autocompletion=completion.several_of(completion.methods),
        rich_help_panel=_WHAT,
    ),
]
Forget = Annotated[
    str | None,
    typer.Option(
        help="Forget set: a name, or a .jsonl/.csv/.parquet file with prompt, harmful, harmless.",
        autocompletion=completion.one_of(completion.prompts),
        rich_help_panel=_WHAT,
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        help="in_domain=FILE replaces the in-domain test prompts; NAME=FILE adds a set out of distribution.",
        rich_help_panel=_WHAT,
    ),
]
PromptKind = Annotated[
    str | None,
    typer.Option(
        help="Prompts of your own files are question (in the template) or continuation.", rich_help_panel=_WHAT
    ),
]
Benchmarks = Annotated[
    str | None,
    typer.Option(
        "--benchmarks",
        help="lm-eval task names, comma separated.",
        autocompletion=completion.several_of(completion.benchmarks),
        rich_help_panel=_WHAT,
    ),
]
Attacks = Annotated[
    str | None,
    typer.Option(
        "--attacks",
        help="Attacks of any kind, comma separated: typos,gcg,relearn (`wpn-bench list attacks` shows all); no others.",
        autocompletion=completion.several_of(completion.attacks),
        rich_help_panel=_WHAT,
    ),
]
AttackFile = Annotated[
    list[str] | None,
    typer.Option(
        help="Attack templates of your own with {prompt} in them, .csv, .jsonl or .yaml, added to the attacks (repeatable).",
        rich_help_panel=_WHAT,
    ),
]
Judge = Annotated[
    list[str] | None,
    typer.Option(
        help="detoxify:original, detoxify:FILE.ckpt, classifier:HUB_ID,label=NAME,threshold=0.4, refusal, ...; several, comma "
        "separated or each with --judge: the first decides, the others are reported beside it.",
        autocompletion=completion.several_of(completion.judges),
        rich_help_panel=_HOW,
    ),
]
JudgeCard = Annotated[
    str | None,
    typer.Option(
        "--judge-card",
        help="Card of the deciding judge (`wpn-bench judge`): the report carries rates corrected for its errors, too.",
        rich_help_panel=_HOW,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="Only the first N prompts of each set and documents of each benchmark.", rich_help_panel=_HOW),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        help="How many (3: seeds 0, 1, 2), or which, with commas (5,7; or 7, alone): training and its measurement are "
        "repeated.",
        rich_help_panel=_HOW,
    ),
]
Tune = Annotated[
    int | None,
    typer.Option(
        "--tune", help="Trials of each method on validation data, the first its defaults.", rich_help_panel=_HOW
    ),
]
Curve = Annotated[
    bool,
    typer.Option("--curve", help="Measure WPN and gradient ascent also while they train.", rich_help_panel=_HOW),
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Length of a response in tokens.", rich_help_panel=_HOW)]
BatchSize = Annotated[int | None, typer.Option(help="Prompts and requests a batch.", rich_help_panel=_HOW)]
Overlap = Annotated[
    str | None,
    typer.Option(
        help="A prompt that stands, or nearly stands, both in the forget set and a test set: refuse, drop, or auto "
        "(refuse in your files, drop in declared sets).",
        rich_help_panel=_HOW,
    ),
]
NearDuplicate = Annotated[
    float | None,
    typer.Option(
        help="Similarity from which on prompts nearly stand in two sets (0.75; 1: never).", rich_help_panel=_HOW
    ),
]
Margin = Annotated[
    float | None,
    typer.Option("--margin", help="Non-inferiority margin of the nine, in points (2.0).", rich_help_panel=_HOW),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda.", rich_help_panel=_HOW)]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16.", rich_help_panel=_HOW)]
Offload = Annotated[
    str | None,
    typer.Option(
        help="Where weights wait while a model that does not fit on the device is measured: none, cpu (main memory), disk. "
        "The same answers, more slowly.",
        rich_help_panel=_HOW,
    ),
]
Lora = Annotated[
    int | None,
    typer.Option(
        "--lora",
        metavar="RANK",
        help="Train low-rank adapters of this rank (16 is usual) instead of all weights, in every method: a fraction of "
        "the memory of Adam. The model that comes out has them merged in; they lie beside it in adapter/.",
        rich_help_panel=_TRAINED,
    ),
]
MixedPrecision = Annotated[
    str | None,
    typer.Option(
        help="no, bf16 or fp16: forward and backward in half the bits, weights and losses in float32. Faster on a GPU; "
        "bf16 wants an Ampere or newer, fp16 works on older ones.",
        rich_help_panel=_TRAINED,
    ),
]
GradientCheckpointing = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing",
        help="Compute activations a second time in the backward pass instead of keeping them: a third slower, far less "
        "memory, the same gradients.",
        rich_help_panel=_TRAINED,
    ),
]
Accumulation = Annotated[
    int | None,
    typer.Option(
        help="Micro-batches an optimiser step: N times the items a step at the memory of one. To keep the items a step, "
        "divide batch_size by N.",
        rich_help_panel=_TRAINED,
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        help="Train one model in N processes on this machine, each with a part of every batch: the same steps on the same "
        "items, and so the same model. On GPUs one for each.",
        rich_help_panel=_TRAINED,
    ),
]
AccelerateFile = Annotated[
    Path | None,
    typer.Option(
        "--accelerate",
        metavar="FILE",
        help="What `accelerate config` wrote: number of processes, FSDP (version 2), which spreads the weights over them.",
        rich_help_panel=_TRAINED,
    ),
]
ReportTo = Annotated[
    str | None,
    typer.Option(
        help="Training curves also go to tensorboard (RUN/logs), wandb, mlflow, ..., comma separated. What lies in the "
        "store is not trained again, so it sends nothing. What a run measured: `wpn-bench export`.",
        rich_help_panel=_TRAINED,
    ),
]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="local (one job after another, the default) or ray (several at once, on this machine or a cluster).",
        rich_help_panel=_FLEET,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="HOST:PORT or auto: a Ray cluster whose nodes share the store (RAY_ADDRESS, else one of this machine's own).",
        rich_help_panel=_FLEET,
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Jobs at once on this machine (its CPUs / --cpus-per-job).", rich_help_panel=_FLEET)
]
CpusPerJob = Annotated[
    int | None, typer.Option(help="Threads of a job (OMP_NUM_THREADS, else up to 4).", rich_help_panel=_FLEET)
]
GpusPerJob = Annotated[
    float | None,
    typer.Option(help="GPUs of a job on CUDA (1); 0.5: two jobs share one, if both fit.", rich_help_panel=_FLEET),
]
Shards = Annotated[
    int | None,
    typer.Option(
        help="Parts that the prompts and requests of a job are cut into (as many as workers would be idle; 1: never).",
        rich_help_panel=_FLEET,
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Run folder (default: runs/<time>-<model>).", rich_help_panel=_WHERE)
]
StoreDir = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="Artifact store shared by runs (WPN_BENCH_STORE, else the cache folder).",
        rich_help_panel=_WHERE,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Begin although memory or disk do not seem to be enough.", rich_help_panel=_WHERE),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        help="Fetch nothing and ask the hub for nothing: `wpn-bench prefetch` has fetched all. HF_HUB_OFFLINE=1 says the same.",
        rich_help_panel=_AGREED,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model, or with task files of your own, with your rights. Read it first.",
        rich_help_panel=_AGREED,
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read weights that are there only as pickles (*.bin, *.ckpt): as tensors and plain values, nothing else.",
        rich_help_panel=_AGREED,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="A line for each finished job.", rich_help_panel=_WHERE)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_WHERE)]


def _settle() -> None:
    """Choices that must be made before torch and the hub's libraries are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each retry would print the endpoint, its password too
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import logging
    import warnings

    # Their warnings are for whoever writes the calls, not for whoever types the command.
    warnings.filterwarnings("ignore")
    for name in ("huggingface_hub", "datasets", "transformers", "lm_eval", "httpx", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _go_offline() -> None:
    from wpn_bench.hub import go_offline

    go_offline()


def _agreed(trust_remote_code: bool, allow_pickle: bool) -> dict[str, bool]:
    """What was agreed to on the command line; what was not is left to the configuration file."""
    return {
        name: True
        for name, agreed in (("trust_remote_code", trust_remote_code), ("allow_pickle", allow_pickle))
        if agreed
    }


def _preset(preset: str | None, model: str | None) -> str:
    return preset or ("lab" if model in (None, "lab") else "paper")


def _training(
    lora: int | None, mixed_precision: str | None, gradient_checkpointing: bool, accumulation: int | None
) -> dict[str, Any]:
    """The options of training that were given."""
    options = {
        "lora": _positive("--lora", lora),
        "mixed_precision": mixed_precision,
        "gradient_checkpointing": gradient_checkpointing or None,
        "accumulation": _positive("--accumulation", accumulation),
    }
    return {name: value for name, value in options.items() if value is not None}


def _fleet(**given: Any) -> Any:
    """Who does the work, by the options that were given."""
    from wpn_bench.jobs.executor import Fleet

    return Fleet(**{name: value for name, value in given.items() if value is not None})


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _every(given: Sequence[str] | None) -> tuple[str, ...]:
    """The names of an option that is given several times, with commas, or both."""
    return tuple(name for one in given or () for name in _names(one) or ())


def _pick_methods(text: str | None, known: dict[str, Any]) -> dict[str, Any] | None:
    """The named methods, each with what the preset says of it; a variant means nothing but what a preset says."""
    names = _names(text)
    for name in names or ():
        if ":" in name and name not in known:
            known_ones = ", ".join(n for n in known if ":" in n) or "none"
            raise UserError(
                f"nothing says what the variant {name!r} is (known: {known_ones})",
                f"write its options in a --config file: methods: {{'{name}': {{...}}}}",
            )
    return None if names is None else {name: known.get(name, {}) for name in names}


def _judges(given: Sequence[str] | None) -> dict[str, Any]:
    """The first of the named judges decides; the others stand beside it, and no further ones."""
    if given is None:
        return {}
    from wpn_bench.harmless.judges.spec import parse_list

    names = parse_list(given)
    if not names:
        raise UserError("--judge names no judge", "write for instance --judge detoxify:original")
    return {"judge": names[0], "judges": tuple(names[1:])}


def _positive(option: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise UserError(f"{option} {value} is not a positive number", f"give 1 or more, or leave {option} out")
    return value


def _seeds(text: str | None) -> tuple[int, ...] | None:
    """`3` is seeds 0, 1, 2; a list with commas (`5,7`; `7,`) is these seeds and no others."""
    if text is None:
        return None
    from wpn_bench.config import MAX_SEEDS

    try:
        if "," in text:
            return tuple(int(part) for part in text.removesuffix(",").split(","))
        number = int(text)
    except ValueError as e:
        hint = "write --seeds 0,1,2, or --seeds 3 for the same"
        raise UserError(f"--seeds {text!r} is not a list of whole numbers", hint) from e
    if not 1 <= number <= MAX_SEEDS:
        # Who types a large number most likely means that one seed.
        raise UserError(
            f"--seeds {number} is not a number of seeds (1 to {MAX_SEEDS})",
            f"write --seeds 3 for seeds 0, 1 and 2, or with a comma, --seeds {max(number, 0)}, for that seed alone",
        )
    return tuple(range(number))


def _own_prompts(given: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    """`in_domain=FILE` replaces the in-domain sets, `validation=FILE` the validation set, NAME=FILE is added to ood."""
    changes: dict[str, Any] = {}
    added = []
    for entry in given:
        name, equals, file = entry.partition("=")
        if not equals or not name or not file:
            raise UserError(
                f"--prompts {entry!r} is not NAME=FILE", "write for instance --prompts in_domain=test.jsonl"
            )
        if name == "in_domain":
            changes["in_domain"] = (*changes.get("in_domain", ()), entry)
        elif name == "validation":
            changes["validation"] = file
        else:
            added.append(entry)
    if added:
        changes["ood"] = (*settings["ood"], *added)
    return changes
