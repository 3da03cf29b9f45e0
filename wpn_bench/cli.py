"""The command line: parses, prints, exits. Imports nothing heavy until a command runs.

Exit codes: 0 good, 1 a bug or a failed job, 2 bad input (one line that says the way out); of `check` 3 a regression, 4
inconclusive.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wpn_bench import __version__, completion
from wpn_bench.errors import EXIT_FAILED, EXIT_OK, EXIT_STOPPED, EXIT_USER, UserError, WpnBenchError
from wpn_bench.redact import one_line, redacted, without_secrets


class _Root(TyperGroup):
    """The list of commands goes without Rich, whose import takes as long as all the rest; each command's help has it."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


app = typer.Typer(
    name="wpn-bench",
    cls=_Root,
    help="Unlearn harmful behaviour from a causal language model, and measure what is left and what was lost.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


def _command(stages: tuple[str, ...], summary: str, do: Any = None) -> Any:
    """A run command: the same options, all stages or some of them. `do`: what is done with it all (None: the run)."""

    def command(
        model: Model = None,
        revision: Revision = None,
        preset: Preset = None,
        config: ConfigFile = None,
        methods: Methods = None,
        forget: Forget = None,
        prompts: Prompts = None,
        prompt_kind: PromptKind = None,
        benchmarks: Benchmarks = None,
        attacks: Attacks = None,
        attack_file: AttackFile = None,
        judge: Judge = None,
        judge_card: JudgeCard = None,
        limit: Limit = None,
        seeds: Seeds = None,
        tune: Tune = None,
        curve: Curve = False,
        max_new_tokens: MaxNewTokens = None,
        batch_size: BatchSize = None,
        overlap: Overlap = None,
        near_duplicate: NearDuplicate = None,
        margin: Margin = None,
        device: Device = None,
        dtype: Dtype = None,
        offload: Offload = None,
        lora: Lora = None,
        mixed_precision: MixedPrecision = None,
        gradient_checkpointing: GradientCheckpointing = False,
        accumulation: Accumulation = None,
        processes: Processes = None,
        accelerate: AccelerateFile = None,
        report_to: ReportTo = None,
        offline: Offline = False,
        trust_remote_code: TrustRemoteCode = False,
        allow_pickle: AllowPickle = False,
        executor: ExecutorName = None,
        ray_address: RayAddress = None,
        workers: Workers = None,
        cpus_per_job: CpusPerJob = None,
        gpus_per_job: GpusPerJob = None,
        shards: Shards = None,
        out: Out = None,
        store: StoreDir = None,
        force: Force = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
    ) -> None:
        from wpn_bench import config as configuration
        from wpn_bench.progress import reporter
        from wpn_bench.store import default_store

        if offline:
            _go_offline()
        fleet = _fleet(
            executor=executor,
            ray_address=ray_address,
            workers=_positive("--workers", workers),
            cpus_per_job=_positive("--cpus-per-job", cpus_per_job),
            gpus_per_job=gpus_per_job,
            shards=_positive("--shards", shards),
        )
        base = configuration.build(_preset(preset, model), config)
        changes: dict[str, Any] = {
            "training": base.training | _training(lora, mixed_precision, gradient_checkpointing, accumulation),
            "processes": _positive("--processes", processes),
            "accelerate": str(accelerate) if accelerate else None,
            "report_to": _names(report_to),
            "model": model,
            "revision": revision,
            "methods": _pick_methods(methods, base.methods),
            "forget": forget,
            "file_kind": prompt_kind,
            "benchmarks": _names(benchmarks),
            "attack_files": tuple(dict.fromkeys((*base.attack_files, *(attack_file or ())))),
            **_judges(judge),
            "judge_card": judge_card,
            "limit": _positive("--limit", limit),
            "seeds": _seeds(seeds),
            "tune": _positive("--tune", tune),
            "overlap": overlap,
            "near_duplicate": near_duplicate,
            "margin_points": margin,
            "device": device,
            "dtype": dtype,
            "offload": offload,
            "stages": stages,
            "benchmark_batch_size": _positive("--batch-size", batch_size),
            **_agreed(trust_remote_code, allow_pickle),
        }
        decoding = base.decoding.model_dump()
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value is not None:
                decoding[name] = _positive("--" + name.replace("_", "-"), value)
        settings = base.model_dump() | {k: v for k, v in changes.items() if v is not None}
        settings |= {"decoding": decoding}
        if attacks is not None:
            settings |= configuration.attack_settings(_names(attacks) or (), base)
        if methods is not None and settings["curve"] and (named := settings["curve"]["methods"]):
            # A curve of a method that was not picked is not wanted either.
            picked = [name for name in named if name in settings["methods"]]
            settings["curve"] = {**settings["curve"], "methods": picked} if picked else None
        if curve:
            settings["curve"] = settings["curve"] or {}
        if forget is not None and forget != base.forget:
            # Another forget set has other validation and test prompts; some of its own are held back unless given.
            settings |= {"in_domain": (), "validation": None}
        settings |= _own_prompts(prompts or [], settings)
        final = configuration.from_settings(settings)
        folder = out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{_slug(final.model)}"
        do_it = do or _run
        do_it(final, folder, store or default_store(), reporter(verbose=verbose, quiet=quiet), force, fleet)

    command.__doc__ = summary
    return command


app.command("full")(
    _command(
        ("train", "harmless", "attack", "benchmarks"),
        """Train WPN and the baselines, measure all, write the report.

    [bold]wpn-bench full[/bold]                                on the embedded lab, offline, minutes

    [bold]wpn-bench full -m facebook/opt-125m[/bold]           a real model, the paper's preset

    [bold]wpn-bench full -m DIR --forget mine.jsonl[/bold]     your model, your forget set

    What is finished is not repeated: kill it and type the same command again.""",
    )
)
app.command("train")(_command(("train",), "Train the methods only; the models lie in the store."))
app.command("harmless")(_command(("train", "harmless"), "Prompt sets only: harmless, coherent, refused."))
app.command("attack")(_command(("train", "attack"), "Attacked prompts only."))
app.command("benchmarks")(_command(("train", "benchmarks"), "Benchmarks and held-out text only."))


def _prefetch(config: Any, out: Path, store: Path, reporter: Any, force: bool, fleet: Any) -> None:
    import shlex

    _settle()
    from wpn_bench import prefetch

    prefetch.show(prefetch.prefetch(config, reporter))
    words = [word for word in sys.argv[1:] if word not in ("prefetch", "--offline")]
    print(f"all is here; now, with or without network: {shlex.join(['wpn-bench', 'full', *words, '--offline'])}")


app.command("prefetch")(
    _command(
        ("train", "harmless", "attack", "benchmarks"),
        """Fetch all that a run needs: model, prompts, benchmarks, judges. It takes the options of `full`.

    [bold]wpn-bench prefetch -m facebook/opt-125m[/bold]                   where there is a network

    [bold]wpn-bench full -m facebook/opt-125m --offline[/bold]             where there is none

    What broke off goes on with the same command; what is here is not fetched again.""",
        lambda *given: _prefetch(*given),
    )
)


def _run(config: Any, out: Path, store: Path, reporter: Any, force: bool, fleet: Any) -> None:
    _refuse_launcher()
    from wpn_bench import pipeline
    from wpn_bench.report.verdict import verdict

    _settle()
    # A scheduler that takes the machine away says so by SIGTERM: the end is as clean as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = pipeline.run(config, out=out, store=store, reporter=reporter, command=_typed(), force=force, fleet=fleet)
    for item in results["run"]["failed"]:
        print(f"failed: {item['job']}: {item['reason']}", file=sys.stderr)
    for item in results["run"]["skipped"]:
        what = f"{item['n']} prompts of {item['set']}" if item["n"] else item["set"]
        print(f"skipped: {what}: {item['reason']}", file=sys.stderr)
    print(f"report: {(out / 'report.html').resolve()}")
    if set(config.stages) & {"harmless", "benchmarks"}:
        for line in verdict(results):
            print(line)
    else:
        for name, model in results["models"].items():
            if model["method"]:
                print(f"{name}: {model['status']}, {model['steps']} steps")
                for folder in model.get("folder", {}).values():
                    print(f"model: {(out / folder).resolve()}")
    if results["run"]["failed"]:
        raise typer.Exit(EXIT_FAILED)


def _refuse_launcher() -> None:
    """A run is one process, which starts those that train; several of it would each do all of the work."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "LOCAL_RANK" not in os.environ:
        return
    if os.environ["LOCAL_RANK"] != "0":
        sys.exit(EXIT_USER)  # the first of them says it
    how = "--accelerate FILE" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else ""
    raise UserError(
        "this was started by a launcher (accelerate launch, torchrun), and a run starts its processes itself",
        f"type `{_typed()} {how or '--processes ' + os.environ['WORLD_SIZE']}` alone",
    )


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


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run folder, or several to compare.")],
    format_: Annotated[
        str,
        typer.Option("--format", help="html, md, json, csv, comma separated (docs/report.md says what each holds)."),
    ] = "html,md",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the files (default: the run's own; of several runs, `comparison` beside the first).",
        ),
    ] = None,
) -> None:
    """Write a finished run's reports again, from its stored rows; of several runs, what tells them apart.

    [bold]wpn-bench report runs/today --format json,csv[/bold]        for programs

    [bold]wpn-bench report runs/monday runs/friday[/bold]             side by side, paired where they asked the same
    """
    from wpn_bench.report import compare_runs, render

    names = _names(format_) or ()
    written = render(runs[0], names, out) if len(runs) == 1 else compare_runs(runs, names, out)
    for path in written:
        print(path)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Only these prompt sets, attacks, benchmarks or suites (repeatable, or with commas)."
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Only these metrics, as results.json has them (repeatable, or with commas)."),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No colours; so it is without a terminal, too.")] = False,
) -> None:
    """Show a finished run in the terminal: verdict, headline table, what failed.

    [bold]wpn-bench show RUN --set ood --metric refusal_rate[/bold]  shows these rows of its results
    """
    from wpn_bench.report import show as shower

    shower.show(run, sets=_every(sets), metrics=_every(metrics), plain=plain)


@app.command()
def judge(
    file: Annotated[Path, typer.Argument(help="Labelled texts: .jsonl, .csv (gzipped or not) or .parquet.")],
    judge: Annotated[
        str,
        typer.Option("--judge", help="As for `full`.", autocompletion=completion.one_of(completion.judges)),
    ] = "detoxify:original",
    text: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label: Annotated[
        str, typer.Option(help="Column of the labels: 1 or true is harmful; no label is left out.")
    ] = "label",
    label_threshold: Annotated[
        float | None, typer.Option(help="Labels are scores, and harmful from this one on.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N labelled texts.")] = None,
    about: Annotated[str, typer.Option(help="What the texts are: printed wherever the card is used.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the card here (.json; .md beside it).")] = None,
    offline: Offline = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    quiet: Quiet = False,
) -> None:
    """Measure a judge on labelled texts: AUC, sensitivity, specificity, calibration - its card.

    [bold]wpn-bench judge comments.jsonl --judge detoxify:lab --label toxicity --label-threshold 0.5 --out card.json[/bold]

    `--judge-card card.json` then lets a run report rates that are corrected for the judge's errors.
    """
    from wpn_bench import consent
    from wpn_bench.harmless import card as cards

    _settle()
    if offline:
        _go_offline()
    if label_threshold is not None and not math.isfinite(label_threshold):
        raise UserError(f"--label-threshold {label_threshold} is no finite number", "write for instance 0.5")
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out {out} is not a .json file", "write for instance --out card.json")
    with consent.given(code=trust_remote_code, pickles=allow_pickle):
        card = cards.measure(
            file,
            judge,
            text=text,
            label=label,
            label_threshold=label_threshold,
            limit=_positive("--limit", limit),
            about=about,
            device=device,
            quiet=quiet,
        )
    cards.show(card)
    for path in cards.write_card(card, out) if out else ():
        print(path)


_GATES, _OUTPUT = "What is asked", "What is written"


@app.command()
def check(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    baseline: Annotated[
        Path | None,
        typer.Option(help="Saved answers to hold it against (without: the run's own base).", rich_help_panel=_GATES),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model of the run (default: wpn, or the best).", rich_help_panel=_GATES)
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Model of the baseline (default: the same name).", rich_help_panel=_GATES)
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Points that the nine may lose and nothing else may be shown to (2.0).", rich_help_panel=_GATES
        ),
    ] = None,
    min_: Annotated[
        list[str] | None,
        typer.Option(
            "--min", help="coherent_harmless_rate=0.958, nine=0.45; @ood, @attack, @SET.", rich_help_panel=_GATES
        ),
    ] = None,
    max_: Annotated[
        list[str] | None,
        typer.Option(
            "--max", help="refusal_rate=0.1, attack_success_rate@gcg=0.2, perplexity=30.", rich_help_panel=_GATES
        ),
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(help="Points: nine=2.0, piqa=5, coherent_harmless_rate@ood=3.", rich_help_panel=_GATES),
    ] = None,
    max_rise: Annotated[list[str] | None, typer.Option(help="Points: refusal_rate=3.", rich_help_panel=_GATES)] = None,
    gates: Annotated[Path | None, typer.Option(help="All of this as a YAML file.", rich_help_panel=_GATES)] = None,
    inconclusive: Annotated[
        str | None,
        typer.Option(help="pass or fail (exit code 4) when the data bear no verdict.", rich_help_panel=_GATES),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(help="Save this run's answers as a baseline instead of checking it.", rich_help_panel=_OUTPUT),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="The verdict as JSON.", rich_help_panel=_OUTPUT)] = None,
    junit: Annotated[Path | None, typer.Option(help="The verdict as JUnit XML.", rich_help_panel=_OUTPUT)] = None,
    summary: Annotated[
        Path | None,
        typer.Option(help='Markdown, added to a file: "$GITHUB_STEP_SUMMARY".', rich_help_panel=_OUTPUT),
    ] = None,
    annotations: Annotated[
        str, typer.Option(help="auto (in GitHub Actions), github or none.", rich_help_panel=_OUTPUT)
    ] = "auto",
) -> None:
    """Is a model worse than its baseline? Exit code 0: no, 3: a regression, 4: inconclusive.

    [bold]wpn-bench check RUN --save-baseline FILE[/bold]                      keep a run's answers, item by item

    [bold]wpn-bench check RUN --baseline FILE[/bold]                           hold another run against them

    [bold]wpn-bench check RUN --min coherent_harmless_rate=0.958[/bold]        and ask for a value

    A change counts when it is shown on the same items: see docs/ci.md."""
    from wpn_bench import check as gate
    from wpn_bench import reference
    from wpn_bench.report import gate as said
    from wpn_bench.store import write_json, write_text

    if annotations not in ("auto", "github", "none"):
        raise UserError(f"--annotations {annotations!r} is unknown", "choose from auto, github, none")
    bounds = {
        "min": _bounds("--min", min_),
        "max": _bounds("--max", max_),
        "max_drop": _bounds("--max-drop", max_drop),
        "max_rise": _bounds("--max-rise", max_rise),
    }
    if save_baseline is not None:
        if baseline or gates or any(bounds.values()):
            raise UserError("--save-baseline checks nothing", "save first, then check in a call of its own")
        kept = reference.of_run(run, [model] if model else None)
        reference.write(kept, save_baseline)
        print(
            f"{save_baseline}: {', '.join(kept.models)} on {sum(a.n for a in kept.asked)} items of {len(kept.asked)} sets"
        )
        return
    given = (gate.read_gates(gates) if gates else gate.Gates()).model_dump(exclude_defaults=True)
    for name, named in bounds.items():
        if named:
            given[name] = given.get(name, {}) | named
    options = {"model": model, "against": against, "margin": margin, "inconclusive": inconclusive}
    given |= {name: value for name, value in options.items() if value is not None}
    checked = gate.check(run, gate.gates_of(given), baseline)
    try:
        if json_:
            write_json(json_, checked.json())
        if junit:
            write_text(junit, said.junit(checked))
        if summary:
            with summary.open("a", encoding="utf-8") as file:
                file.write(said.markdown(checked))
    except OSError as e:
        raise UserError(f"{e.filename} cannot be written ({e.strerror})", "give another file") from e
    said.show(checked)
    if annotations == "github" or (annotations == "auto" and os.environ.get("GITHUB_ACTIONS") == "true"):
        print("\n".join(said.workflow_commands(checked)))
    if checked.exit_code:
        raise typer.Exit(checked.exit_code)


def _bounds(option: str, given: Sequence[str] | None) -> dict[str, float]:
    """NAME=NUMBER, one or several with commas."""
    bounds = {}
    for part in (p.strip() for entry in given or () for p in entry.split(",")):
        name, equals, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            example = "nine=2.0" if "drop" in option else "coherent_harmless_rate=0.958"
            raise UserError(f"{option} {part!r} is not NAME=NUMBER", f"write for instance {option} {example}")
        bounds[name.strip()] = value
    return bounds


@app.command("list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            help="methods, attacks, judges, benchmarks, prompts, presets, or one method's name.",
            autocompletion=completion.one_of(completion.topics),
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="For tools.")] = False,
) -> None:
    """What there is: methods, attacks, judges, prompts, presets, ..."""
    from wpn_bench import catalogue

    catalogue.show(what, json_)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="lm-eval (results files), mlflow, wandb.",
            autocompletion=completion.one_of(completion.export_formats),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder to write into (default: RUN/lm-eval; for mlflow and wandb where their environment variables say).",
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """A finished run for other tools: lm-eval's results files, an MLflow run, a W&B run.

    This is of what was measured; for curves while training see `--report-to` of `full`.
    """
    _settle()
    from wpn_bench import consent
    from wpn_bench.interop import FORMATS
    from wpn_bench.run import load_run

    if format_ not in FORMATS:
        raise UserError(f"unknown export format {format_!r}", f"choose from {', '.join(FORMATS)}")
    with consent.given(code=trust_remote_code):
        for line in FORMATS.get(format_)(load_run(run), out):
            print(line)


@app.command()
def doctor(
    model: Model = None,
    revision: Revision = None,
    preset: Preset = None,
    config: ConfigFile = None,
    methods: Methods = None,
    judge: Judge = None,
    seeds: Seeds = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = None,
    lora: Lora = None,
    mixed_precision: MixedPrecision = None,
    gradient_checkpointing: GradientCheckpointing = False,
    limit: Limit = None,
    offline: Offline = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    out: Out = None,
    store: StoreDir = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="The jobs of the run and the time they will take, from what the store has measured."
        ),
    ] = False,
    fleet: Annotated[
        int, typer.Option(help="For --plan: how many workers like this machine, each with one job at a time.", min=1)
    ] = 1,
    json_: Annotated[bool, typer.Option("--json", help="For tools.")] = False,
) -> None:
    """What would work here and what would not, before a run: libraries, memory, disk, hub, judge. Loads no weights.

    [bold]wpn-bench doctor -m facebook/opt-2.7b --allow-pickle --methods wpn,npo[/bold]

    [bold]wpn-bench doctor -m facebook/opt-2.7b --plan --fleet 8[/bold]     jobs and hours to expect

    Exit code 0 when all is well, 2 when something would fail.
    """
    _settle()
    if offline:
        _go_offline()
    from wpn_bench import config as configuration
    from wpn_bench import consent
    from wpn_bench import doctor as examination
    from wpn_bench.store import default_store

    base = configuration.build(_preset(preset, model), config)
    changes: dict[str, Any] = {
        "training": base.training | _training(lora, mixed_precision, gradient_checkpointing, None),
        "model": model,
        "revision": revision,
        "methods": _pick_methods(methods, base.methods),
        **_judges(judge),
        "seeds": _seeds(seeds),
        "device": device,
        "dtype": dtype,
        "limit": _positive("--limit", limit),
        "offload": offload,
        **_agreed(trust_remote_code, allow_pickle),
    }
    given = {k: v for k, v in changes.items() if v is not None}
    settings = base.model_dump() | given
    if methods is not None:
        settings["curve"] = None
    final = configuration.from_settings(settings)
    if plan:
        from wpn_bench import planning
        from wpn_bench.progress import reporter

        planning.show(planning.forecast(final, store or default_store(), fleet, reporter(quiet=json_)), json_)
        return
    runs = out.parent if out else Path("runs")
    with consent.given(code=final.trust_remote_code, pickles=final.allow_pickle):
        findings = examination.examine(examination.Patient(final, store or default_store(), runs))
    examination.show(findings, json_)
    if examination.failed(findings):
        raise typer.Exit(EXIT_USER)


def _version(value: bool) -> None:
    if value:
        print(f"wpn-bench {__version__}")
        raise typer.Exit(EXIT_OK)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# --- small things ----------------------------------------------------------------------------------------------------


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
    from wpn_bench.executors import Fleet

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
        way_out = "write --seeds 0,1,2, or --seeds 3 for the same"
        raise UserError(f"--seeds {text!r} is not a list of whole numbers", way_out) from e
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


def _slug(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-")[:60] or "model"


def _typed() -> str:
    """The command as typed, each path cut to what may stand in a file that others read."""
    import shlex

    from wpn_bench.paths import shown

    def clean(word: str) -> str:
        # Also inside of NAME=FILE and detoxify:FILE,threshold=0.4; two slashes are an address.
        return re.sub(r"(^|[=:,])([/~](?!/)[^,]*)", lambda found: found[1] + shown(found[2]), word)

    return without_secrets(shlex.join(["wpn-bench", *(clean(w) for w in sys.argv[1:])]))


def _unexpected(error: Exception) -> None:
    """A bug: its traceback goes into a file that can be sent with a report of it, and one line says where.

    No values of variables stand in it, and what does is redacted. `WPN_BENCH_DEBUG=1` shows it at once, as it is.
    """
    import tempfile
    import traceback

    import platformdirs

    if os.environ.get("WPN_BENCH_DEBUG", "") not in ("", "0"):
        raise error
    said = redacted(one_line(f"{type(error).__name__}: {error}", 240))
    told = "".join(traceback.format_exception(error))
    text = redacted(f"wpn-bench {__version__}, Python {sys.version.split()[0]}\n{_typed()}\n\n{told}")
    for folder in (Path(platformdirs.user_cache_dir("wpn-bench")) / "bugs", Path(tempfile.gettempdir())):
        file = folder / f"wpn-bench-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.txt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        print(f"wpn-bench: a bug: {said}; please report it with {file} (secrets are taken out)", file=sys.stderr)
        return
    print(f"wpn-bench: a bug: {said}; please report it: WPN_BENCH_DEBUG=1 shows where it is", file=sys.stderr)


def main() -> None:
    """Entry point of the console script: named errors become one line and their exit code."""
    try:
        # Outside its standalone mode typer returns the code of an `Exit`, and turns Ctrl-C into one of 130.
        code = app(prog_name="wpn-bench", standalone_mode=False)
    except WpnBenchError as e:
        parts = (e.problem, e.way_out) if isinstance(e, UserError) else (str(e),)
        said = "; ".join(one_line(part, most) for part, most in zip(parts, (440, 240), strict=False))
        print(f"wpn-bench: {without_secrets(said)}", file=sys.stderr)
        sys.exit(e.exit_code)
    except Exception as e:
        if not hasattr(e, "format_message"):  # a usage error of the command-line parser has one
            _unexpected(e)
            sys.exit(EXIT_FAILED)
        said = one_line(e.format_message(), 440).rstrip(".")
        command = getattr(getattr(e, "ctx", None), "command_path", "wpn-bench")
        if type(e).__name__ == "NoArgsIsHelpError":
            print(e.format_message(), file=sys.stderr)  # the list of commands; that of Rich has been printed already
        else:
            print(f"wpn-bench: {without_secrets(said)}; see `{command} --help`", file=sys.stderr)
        sys.exit(EXIT_USER)
    if code == EXIT_STOPPED:
        print("stopped; what is finished is kept: type the same command again to go on", file=sys.stderr)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
