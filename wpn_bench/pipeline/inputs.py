"""Everything that a run reads, resolved and checked before any work starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench import attacks, models, prompts
from wpn_bench.analysis.judge_card import JudgeCard, read_card
from wpn_bench.attacks import AttackContext, quantise
from wpn_bench.benchmarks.definitions import task_folders
from wpn_bench.config import RunConfig
from wpn_bench.core.files import digest_of
from wpn_bench.core.progress import Reporter
from wpn_bench.engine.generation import too_long
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import forget_judges, get_judge
from wpn_bench.harmless.judges.spec import parse
from wpn_bench.models import ModelRef
from wpn_bench.models.files import check_causal
from wpn_bench.preflight import resources
from wpn_bench.prompts import PromptSet, Template, TextSet, leakage
from wpn_bench.prompts.leakage import Leak, Reference
from wpn_bench.unlearn import preflight, tuning
from wpn_bench.unlearn.launch import Launch
from wpn_bench.unlearn.methods import method_of
from wpn_bench.unlearn.tuning import Bound

if TYPE_CHECKING:
    from wpn_bench.benchmarks.run import BenchmarkInfo


VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2
TUNE_PROMPTS = 200  # validation prompts that a trial answers
TUNE_TEXT_SHARE = 0.1  # of the retain texts, where no text to tune on is named
TUNE_TEXTS = 300
SHOWN_NAMES = 8  # attacks of one file that a note names


@dataclass(frozen=True)
class Ground:
    """What trials are measured on, all of it apart from the tests: validation prompts, and either tasks or texts."""

    prompts: PromptSet
    tasks: tuple[BenchmarkInfo, ...]
    texts: TextSet | None
    bound: Bound


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads, resolved and checked. `sets` holds (suite, prompt set) in the order of the report."""

    model: ModelRef
    device: str
    forget: PromptSet
    validation: PromptSet
    sets: tuple[tuple[str, PromptSet], ...]
    retain: TextSet
    heldout: TextSet | None
    tasks: tuple[BenchmarkInfo, ...]
    judge_digest: str
    notes: tuple[str, ...]
    skipped: tuple[dict[str, Any], ...]
    leaks: tuple[Leak, ...] = ()
    ground: Ground | None = None
    attacked: PromptSet | None = None  # what attacks on weights and by gradients ask; None: there are none
    schemes: tuple[str, ...] = ()  # of quantisation, those that can be had here
    further: tuple[FurtherJudge, ...] = ()
    card: JudgeCard | None = None
    judged_from: Mapping[str, Mapping[str, str]] = field(
        default_factory=dict
    )  # judge -> what of it was fetched -> commit

    @property
    def answers(self) -> bool:
        """Whether any model is asked anything, so that there are answers to judge."""
        return bool(self.sets) or self.attacked is not None


@dataclass(frozen=True)
class FurtherJudge:
    """A judge beside the one that decides: how it is spelt, what results call it, which it is, and its threshold."""

    spec: str
    name: str
    digest: str
    threshold: float


def prepare(config: RunConfig, reporter: Reporter, *, force: bool = False) -> Inputs:
    """Find the model, read the prompts, resolve the tasks. Raises `UserError` for whatever cannot work; with `force`, an
    estimate that says so is a warning."""
    from wpn_bench.benchmarks.run import clear_task_cache, describe, expand

    # Those of a run before, in the same process, may have other files by now.
    forget_judges()
    clear_task_cache()
    # In order of cost: names and local files first, then what may have to be fetched.
    notes: list[str] = []
    tasks: tuple[BenchmarkInfo, ...] = ()
    names: list[str] = []
    tune_names: list[str] = []
    if config.tune:
        tuning.require_optuna()
    if "benchmarks" in config.stages or config.tune:
        folders = task_folders(config.benchmark_folders)
        names = expand(config.benchmarks, folders) if "benchmarks" in config.stages else []
        tune_names = expand(config.tune_benchmarks, folders) if config.tune else []
        for name in (*names, *tune_names):
            describe(name, folders, resolve=False)
    kind = config.file_kind
    preflight.check_report_to(config.report_to)
    launch = Launch.of(config.processes, config.accelerate)
    _read_files(config)
    device = models.pick_device(config.device)
    # The files of a model that lies here are looked at first, for an estimate takes config.json at its word; one that lies on
    # the hub is not fetched for nothing.
    found = models.resolve(config.model, config.revision) if models.lies_here(config.model) else None
    resources.check_resources(config, force=force, warn=reporter.note)
    model = found or models.resolve(config.model, config.revision)
    check_causal(model.path)
    preflight.check_training([config.method_config(m) for m in config.methods], model.path, device, config.dtype)
    if launch:
        launch.check([method_of(m)(config.method_config(m)) for m in config.methods], device)
    forget = prompts.load_prompts(prompts.spec_for(config.forget, role="forget", kind=kind))
    reading: list[tuple[str, PromptSet]] = []
    for suite, role, names_ in (
        ("harmless", "in_domain", config.in_domain),
        ("ood", "ood", config.ood),
        ("benign", "benign", config.benign),
    ):
        for entry in names_:
            name_, source = _named(entry)
            spec = prompts.spec_for(source, role=role, kind=kind, name=name_)  # type: ignore[arg-type]
            reading.append((suite, prompts.load_prompts(spec)))
    if not config.in_domain:
        forget, held = prompts.split_off(forget, name="in_domain", role="in_domain", share=TEST_SHARE)
        reading.insert(0, ("harmless", held))
        notes.append(f"no in-domain prompts were named: {len(held.items)} of the forget set were held back for testing")
    if config.validation:
        validation = prompts.load_prompts(prompts.spec_for(config.validation, role="validation", kind=kind))
    else:
        forget, validation = prompts.split_off(forget, name="validation", role="validation", share=VALIDATION_SHARE)
    kept, validation, leaks = _apart(config, forget, reading, validation)
    notes += [line for leak in leaks for line in leakage.notes(leak)]
    named = [_short(name.name) for _, name in kept]
    if len(set(named)) != len(named):
        raise UserError("two prompt sets have the same name", "give one another name: --prompts NAME=FILE")
    kept = [(suite, replace(s, name=_short(s.name)).head(config.limit)) for suite, s in kept]
    taken = {s.name for _, s in kept}
    target = next((s for suite, s in kept if suite == "harmless"), None) if "attack" in config.stages else None
    kept = [*kept, *_attacked(config, forget, target, taken, notes)]
    if "harmless" not in config.stages:
        kept = [(suite, s) for suite, s in kept if suite == "attack"]
    retain = prompts.load_texts(prompts.spec_for(config.retain, role="retain", kind="text"))
    heldout = (
        prompts.load_texts(prompts.spec_for(config.heldout, role="heldout", kind="text")) if config.heldout else None
    )
    if heldout is not None and config.limit is not None:
        heldout = replace(heldout, texts=heldout.texts[: config.limit])
    tasks = tuple(describe(name, folders) for name in names)
    ground = None
    if config.tune:
        ground, retain = _ground(config, validation, retain, heldout, notes)
        ground = replace(ground, tasks=tuple(describe(name, folders) for name in tune_names))
    skipped = _check_lengths(config, model, kept)
    attacked = target if config.relearn or config.quantise or config.gradient_attacks else None
    schemes, cannot = _schemes(config, device) if attacked else ((), [])
    judge = get_judge(config.judge, device).digest() if kept or attacked or config.tune else ""
    for note in notes:
        reporter.note(f"note: {note}")
    return Inputs(
        model,
        device,
        forget,
        validation,
        tuple(kept),
        retain,
        heldout,
        tasks,
        judge,
        tuple(notes),
        (*skipped, *cannot),
        tuple(replace(leak, set=_short(leak.set)) for leak in leaks),
        ground,
        attacked,
        schemes,
        _further_judges(config, device) if kept or attacked else (),
        _card(config, judge, device) if kept or attacked else None,
        _judged_from(config, device) if judge else {},
    )


def _judged_from(config: RunConfig, device: str) -> dict[str, dict[str, str]]:
    return {
        parse(text).name: {one.name: one.revision for one in get_judge(text, device).fetched()}
        for text in (config.judge, *config.judges)
    }


def _further_judges(config: RunConfig, device: str) -> tuple[FurtherJudge, ...]:
    return tuple(
        FurtherJudge(parse(text).scorer, parse(text).name, get_judge(text, device).digest(), config.threshold_of(text))
        for text in config.judges
    )


def _card(config: RunConfig, digest: str, device: str) -> JudgeCard | None:
    """The deciding judge's card: the one that is named, which must be of this judge at this threshold, else the one that
    comes with the judge, if it is of both."""
    shipped = get_judge(config.judge, device).card() if config.judge_card is None else None
    path = Path(config.judge_card).expanduser() if config.judge_card else shipped
    if path is None:
        return None
    card = read_card(path)
    if (card.digest, card.threshold) == (digest, config.threshold_of(config.judge)):
        return card
    if path is shipped:
        return None
    asked = f"{parse(config.judge).name} at {config.threshold_of(config.judge)}"
    other = "" if card.digest == digest else ", with other weights or another label"
    raise UserError(
        f"the judge card {path.name} is of {card.judge} at threshold {card.threshold}{other}, not of {asked}",
        "make one with `wpn-bench judge`, or leave --judge-card out",
    )


def _ground(
    config: RunConfig, validation: PromptSet, retain: TextSet, heldout: TextSet | None, notes: list[str]
) -> tuple[Ground, TextSet]:
    """What trials are measured on (its tasks still to be described), and the retain texts that are left to train on.

    With tasks to tune on the macro accuracy may fall by the margin. Without, the loss of text may rise by
    `tune_loss_bound`: the text named for it, else a tenth of the retain texts, which is then not trained on; a text that
    also stands in the retain or the held-out part is dropped.
    """
    asked = validation.head(TUNE_PROMPTS).head(config.limit)
    if config.tune_benchmarks:
        return Ground(asked, (), None, Bound("macro_accuracy", config.margin_points / 100)), retain
    if config.tune_text:
        texts = prompts.load_texts(prompts.spec_for(config.tune_text, role="validation", kind="text"))
    else:
        ranked = sorted(retain.texts, key=lambda text: digest_of(["tune", text]))
        n = max(1, round(len(ranked) * TUNE_TEXT_SHARE))
        held = set(ranked[:n])
        texts = replace(retain, name="tune_text", role="validation", texts=tuple(ranked[:n]))
        retain = replace(retain, texts=tuple(t for t in retain.texts if t not in held))
        notes.append(f"no text to tune on was named: {n} of the retain texts were held back for it")
    known = {*retain.texts, *(heldout.texts if heldout else ())}
    apart = tuple(t for t in texts.texts if t not in known)[: min(TUNE_TEXTS, config.limit or TUNE_TEXTS)]
    if not apart or not retain.texts:
        raise UserError(
            "there is no text to tune on that is not also trained or tested on",
            "name one with `tune_text:` in a --config file, or more retain texts",
        )
    return Ground(asked, (), replace(texts, texts=apart), Bound("token_loss", config.tune_loss_bound)), retain


def _read_files(config: RunConfig) -> None:
    """Read what lies on this machine once ahead: a slip in a name or a file is said before anything is fetched."""
    kind = config.file_kind
    if config.judge_card:
        read_card(Path(config.judge_card).expanduser())
    tests = [_named(entry)[1] for entry in (*config.in_domain, *config.ood, *config.benign)]
    if config.validation:
        tests.append(config.validation)
    specs = [prompts.spec_for(name, role="ood", kind=kind) for name in tests]
    for spec in (prompts.spec_for(config.forget, role="forget", kind=kind), *specs):
        if spec.source.file:
            prompts.load_prompts(spec)
    for name in filter(None, (config.retain, config.heldout, config.tune_text if config.tune else None)):
        spec = prompts.spec_for(name, role="retain", kind="text")
        if spec.source.file:
            prompts.load_texts(spec)


def _named(entry: str) -> tuple[str | None, str]:
    """`NAME=SOURCE` gives a set another name than its own (None: its own)."""
    name, equals, source = entry.partition("=")
    return (name, source) if equals else (None, entry)


def _short(name: str) -> str:
    return name.removeprefix("lab_")


def _apart(
    config: RunConfig, forget: PromptSet, sets: Sequence[tuple[str, PromptSet]], validation: PromptSet
) -> tuple[list[tuple[str, PromptSet]], PromptSet, list[Leak]]:
    """No prompt of the forget set, nor a near duplicate of one, among the test prompts; none of either among those that
    something is chosen on. `auto`: a user's own file is refused, for its owner can mend it; from a declared set and from
    what was held back of the forget set the shared prompts are dropped, and said."""
    trained = Reference(forget.items, config.near_duplicate)
    kept, leaks = [], []
    for suite, one in sets:
        own = "file" in one.source and "held_out_of" not in one.source
        drop = config.overlap == "drop" or (config.overlap == "auto" and not own)
        clean, leak = leakage.apart(forget, trained, one, suite, drop=drop)
        kept.append((suite, clean))
        leaks.append(leak)
    in_domain = Reference((i for suite, s in kept if suite == "harmless" for i in s.items), config.near_duplicate)
    for k, (suite, one) in enumerate(kept):
        if suite == "ood":
            leaks[k] = replace(leaks[k], in_domain=leakage.shared(in_domain, one))
    others = Reference((i for suite, s in kept if suite != "harmless" for i in s.items), config.near_duplicate)
    validation, leak = leakage.unseen(validation, [trained, in_domain, others])
    return kept, validation, [*leaks, leak]


def _attacked(
    config: RunConfig, forget: PromptSet, target: PromptSet | None, names: set[str], notes: list[str]
) -> list[tuple[str, PromptSet]]:
    """The first in-domain set under every attack, those of the user's files after the others. `names`: those of the sets,
    which no attack may have."""
    if target is None:
        return []
    own = attacks.own_attacks(config.attack_files)
    chosen = list(dict.fromkeys((*config.attacks, *own)))
    if taken := names.intersection((*chosen, *config.gradient_attacks, *config.quantise)):
        raise UserError(
            f"an attack and a prompt set are both called {min(taken)!r}",
            "give the set another name (--prompts NAME=FILE), or the attack of your file",
        )
    for file in dict.fromkeys(attack.file for attack in own.values()):
        of_file = [name for name, attack in own.items() if attack.file == file]
        more = ", ..." if len(of_file) > SHOWN_NAMES else ""
        notes.append(f"prompt attacks read from {file}: {', '.join(of_file[:SHOWN_NAMES])}{more} ({len(of_file)})")
    context = AttackContext(Template.parse(config.template), forget.items, own=own)
    return [("attack", attacks.attacked(target, name, context)) for name in chosen]


def _schemes(config: RunConfig, device: str) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The schemes of quantisation that can be had here, and those that cannot, with the reason."""
    reason = quantise.obstacle(device) if config.quantise else None
    if reason is None:
        return config.quantise, []
    return (), [{"set": scheme, "reason": reason, "n": 0} for scheme in config.quantise]


def _check_lengths(config: RunConfig, model: ModelRef, sets: Iterable[tuple[str, PromptSet]]) -> list[dict[str, Any]]:
    """Prompts with no room for the response are skipped and counted; a set of which none fits is refused."""
    context = models.context_length_of(model.path)
    room = context - config.decoding.max_new_tokens
    if room < 1:
        raise UserError(
            f"{model.asked} attends to {context} tokens, and the response alone may take"
            f" {config.decoding.max_new_tokens}",
            f"use --max-new-tokens below {context}",
        )
    tokenizer, template = models.load_tokenizer(model.path), Template.parse(config.template)
    skipped = []
    for _, one in sets:
        lengths = [len(ids) for ids in tokenizer([template.render(item) for item in one.items])["input_ids"]]
        n = sum(too_long(length, config.decoding, context) for length in lengths)
        if n == len(lengths):
            raise UserError(
                f"no prompt of {one.name!r} fits into the {context} tokens of {model.asked}: the shortest has"
                f" {min(lengths)} and the response needs {config.decoding.max_new_tokens}",
                "use a model with a longer context, shorter prompts, or a smaller --max-new-tokens",
            )
        if n:
            skipped.append({"set": one.name, "reason": f"prompt too long for {context} tokens of context", "n": n})
    return skipped
