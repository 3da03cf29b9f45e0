"""Read and check the inputs of a run before any job starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wpn_bench import attacks, models, prompts
from wpn_bench.analysis.judge_card import JudgeCard, read_card
from wpn_bench.attacks import quantise
from wpn_bench.benchmarks.run import BenchmarkInfo, clear_task_cache, rehearse_task
from wpn_bench.benchmarks.scores import Score
from wpn_bench.benchmarks.selection import Aggregate, TaskGroup
from wpn_bench.config import RunConfig
from wpn_bench.core.progress import Reporter
from wpn_bench.engine.generation import too_long
from wpn_bench.engine.support import settings_note
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import forget_judges, get_judge
from wpn_bench.jobs.planning import Attacker
from wpn_bench.models import ModelRef
from wpn_bench.models.backends import identity_of
from wpn_bench.models.files import check_causal, check_usable
from wpn_bench.models.tokenizer import encode_prompts, load_tokenizer
from wpn_bench.pipeline.attack_prompts import attack_prompts
from wpn_bench.pipeline.attackers import find_attacker
from wpn_bench.pipeline.candidates import Candidate, find_candidates
from wpn_bench.pipeline.judges import RunJudge, deciding_judge, find_cards, further_judges, judge_revisions
from wpn_bench.pipeline.set_notes import column_notes, response_notes
from wpn_bench.pipeline.tuning_data import TuningData, read_tuning_data
from wpn_bench.preflight import resources
from wpn_bench.preflight.sets import RunSet, TaskNames, sets_of, task_names_of
from wpn_bench.preflight.versions import notes_on_versions
from wpn_bench.prompts import PromptSet, Template, TextSet, leakage
from wpn_bench.prompts.leakage import Leak, Reference
from wpn_bench.prompts.templates import choose_template
from wpn_bench.unlearn import benign, preflight
from wpn_bench.unlearn.launch import Launch
from wpn_bench.unlearn.lengths import notes_on_length
from wpn_bench.unlearn.methods import method_of
from wpn_bench.unlearn.study import require_optuna

VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2
_READ_LATER = ("benign_prompts", "tune_benign")  # uses of sets from which prompts of other sets are dropped
SUITES = {
    "in_domain": "harmless",
    "ood": "ood",
    "benign": "benign",
}  # suite of a test set by its use


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a run.

    Attributes:
        model: The base model.
        device: Device of the models.
        forget: The forget set.
        validation: The validation prompts.
        sets: (suite, prompt set) for each test set, in the order of the report.
        retain: The retain texts.
        heldout: Texts for the test of perplexity; None if there is no such test.
        tasks: The benchmark tasks.
        judge_digest: Digest of the deciding judge; empty if nothing is judged.
        notes: Notes for the user.
        skipped: Prompts and attacks that cannot run, with the reasons.
        template: Renders the prompts.
        candidates: Models that are measured without training them.
        leaks: How many prompts each set shares with the forget set.
        tuning_data: Data of tuning; None without tuning.
        attacked: Prompts for all attacks but those by prompts; None without such attacks.
        schemes: Quantisation schemes that work on this machine.
        further: Judges other than the deciding one.
        cards: Cards of the judges that have one, by judge.
        judged_from: For each judge, the commit of each download.
        task_groups: Groups of tasks, and how lm-eval averages them.
        benign: Benign prompts to train on. `answer_benign` adds their responses. None if there are none.
        trained_on: The items of the forget set that methods train on, if not all (`select_references`).
        attacker: The model that writes the prompts of adaptive attacks; None without them.
    """

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
    template: Template
    candidates: tuple[Candidate, ...] = ()
    leaks: tuple[Leak, ...] = ()
    tuning_data: TuningData | None = None
    attacked: PromptSet | None = None
    schemes: tuple[str, ...] = ()
    further: tuple[RunJudge, ...] = ()
    cards: Mapping[str, JudgeCard] = field(default_factory=dict)
    judged_from: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    task_groups: tuple[tuple[TaskGroup, Aggregate], ...] = ()
    benign: PromptSet | None = None
    trained_on: PromptSet | None = None
    attacker: Attacker | None = None

    @property
    def answers(self) -> bool:
        """Return whether the run generates responses, which a judge scores."""
        return bool(self.sets) or self.attacked is not None


def prepare(config: RunConfig, reporter: Reporter, *, force: bool = False) -> Inputs:
    """Find the model, read the sets, and find tasks and judges. The cheapest checks come first.

    Names and local files are checked before anything is downloaded.

    Args:
        config: Settings of the run.
        reporter: Shows notes to the user.
        force: Whether to continue with a warning if memory or disk space seem too small.

    Returns:
        The checked inputs.

    Raises:
        UserError: The run cannot work with these inputs.
    """
    # Clear the caches, because files may have changed since an earlier run in the same process.
    forget_judges()
    clear_task_cache()
    notes = notes_on_versions()
    names = check_tasks(config)
    sets = sets_of(config)
    preflight.check_report_to(config.report_to)
    launch = Launch.of(config.processes, config.accelerate)
    check_local_files(config, sets)
    device = models.pick_device(config.device)
    identity_of(config.backend, device, config.offload)  # raises an error if it is not installed
    model = find_model(config, device, launch, reporter, force=force)
    template = choose_template(config.template, models.load_tokenizer(model.path), config.system)
    notes += settings_note("the model", model.path)
    candidates = find_candidates(config, model, template, notes)
    attacker = find_attacker(config, notes)
    forget, validation, tests = read_prompts(config, sets, notes)
    tests, validation, leaks = remove_overlap(config, forget, tests, validation)
    notes += [line for leak in leaks for line in leakage.notes(leak)]
    benign_prompts = read_benign(config, sets, [forget, validation, *(one for _, one in tests)], notes)
    attacked = None
    if "attack" in config.stages:
        first = next((one for suite, one in tests if suite == "harmless"), None)
        attacked = first and replace(first, name=short_name(first.name)).head(config.limit_of("attacks"))
    tests = with_short_names(tests, config)
    of_chat, one_turn = _of_chat(template, candidates), not all(t.keeps_turns for t in _templates(template, candidates))
    set_names = {s.name for _, s in tests}
    attacks_ = attack_prompts(config, of_chat, model, forget, attacked, set_names, notes, one_turn=one_turn)
    asked = [*tests, *attacks_]
    if "harmless" not in config.stages:
        asked = [(suite, s) for suite, s in asked if suite == "attack"]
    texts = {one.use: prompts.load_texts(one.spec) for one in sets if one.is_text}
    notes += [line for one in texts.values() for line in column_notes(one)]
    retain, heldout = texts["retain"], texts.get("heldout")
    if heldout is not None:
        heldout = replace(heldout, texts=heldout.texts[: config.limit_of("heldout")])
    tasks = tuple(names.describe(name) for name in names.tested)
    rehearse_tasks(config, tasks, names, model)
    notes += [f"{task.name} is scored by {task.score}" for task in tasks if task.score]
    infos = {task.name: Score.parse(task.score or "acc") for task in tasks}
    groups = []
    for group in names.groups:
        if aggregate := group.aggregate_of([infos[task] for task in group.tasks]):
            groups.append((group, aggregate))
        else:
            notes.append(
                f"the group {group.name} gets no score, because its average does not use the scores of all its tasks"
            )
    tuning_data = None
    if config.tune:
        described = tuple(names.describe(name) for name in names.tuned)
        others = [forget, *(one for _, one in tests)]
        tuning_data, retain, benign_prompts = read_tuning_data(
            config, sets, described, validation, others, retain, heldout, benign_prompts, texts.get("tune_text"), notes
        )
        rehearse_tasks(config, tuning_data.tasks, names, model)
    skipped = count_too_long(config, model, template, asked)
    if config.methods and "train" in config.stages:
        lengths = [config.method_config(name).max_length for name in config.methods]
        notes += notes_on_length(models.load_tokenizer(model.path), template, forget.items, lengths)
    weights = (config.relearn, config.relearn_search, config.quantise)
    if not any((*weights, config.gradient_attacks, attacks.chosen_by_stage(config))):
        attacked = None
    schemes, impossible = usable_schemes(config, device) if attacked else ((), [])
    has_answers = bool(asked) or attacked is not None
    judges_answers = has_answers or config.tune or benign_prompts or config.written_references
    judge = get_judge(config.judge, device).digest() if judges_answers else ""
    further = further_judges(config, device) if has_answers else ()
    for note in notes:
        reporter.note(f"note: {note}")
    return Inputs(
        model=model,
        device=device,
        forget=forget,
        validation=validation,
        sets=tuple(asked),
        retain=retain,
        heldout=heldout,
        tasks=tasks,
        task_groups=tuple(groups),
        judge_digest=judge,
        notes=tuple(notes),
        skipped=(*skipped, *impossible),
        leaks=tuple(replace(leak, set=short_name(leak.set)) for leak in leaks),
        tuning_data=tuning_data,
        attacked=attacked,
        schemes=schemes,
        further=further,
        cards=find_cards(config, (deciding_judge(config, judge), *further), device) if has_answers else {},
        judged_from=judge_revisions(config, device) if judge else {},
        template=template,
        candidates=candidates,
        attacker=attacker,
        benign=benign_prompts,
    )


def _of_chat(template: Template, candidates: Iterable[Candidate]) -> Template:
    """Return a chat template of the run, if there is one. All templates can read demonstrations that it writes."""
    return next((t for t in _templates(template, candidates) if t.is_chat), template)


def _templates(template: Template, candidates: Iterable[Candidate]) -> list[Template]:
    return [template, *(one.template for one in candidates)]


def check_tasks(config: RunConfig) -> TaskNames:
    """Return the names of the run's benchmark tasks.

    Raises `UserError` for an unknown task, and also if the run tunes methods and Optuna is not installed.
    """
    if config.tune:
        require_optuna()
    names = task_names_of(config)
    for name in (*names.tested, *names.tuned):
        names.describe(name, resolve=False)
    return names


def rehearse_tasks(config: RunConfig, tasks: Sequence[BenchmarkInfo], names: TaskNames, model: ModelRef) -> None:
    """Check the benchmark tasks of the user and of lm-eval with their data.

    Args:
        config: Settings of the run.
        tasks: The tasks.
        names: Names of all tasks.
        model: The base model, whose chat template is used if the settings demand it.

    Raises:
        UserError: A task cannot be used, or the model has no chat template.
    """
    tokenizer = None
    if config.apply_chat_template and tasks:
        tokenizer = load_tokenizer(model.path)
        if not tokenizer.chat_template:
            raise UserError(f"{config.model} has no chat template", "leave out --apply-chat-template")
    for task in tasks:
        rehearse_task(task, names.folders, config.limit_of("benchmarks"), tokenizer, config.fewshot_as_multiturn)


def check_local_files(config: RunConfig, sets: Sequence[RunSet]) -> None:
    """Read the local files once, so that their errors are reported before anything is downloaded.

    Args:
        config: Settings of the run.
        sets: All sets of the run. Those on the hub are not read.

    Raises:
        UserError: A file is missing or invalid.
    """
    for card in config.judge_card:
        read_card(Path(card).expanduser())
    used: set[str] = set()
    for one in sets:
        if one.spec.source.file:
            read = (prompts.load_texts if one.is_text else prompts.load_prompts)(one.spec)
            found = read.source.get("columns", {})
            used |= {field for field, column in config.columns.items() if found.get(field, field) == column}
    if lost := [field for field in config.columns if field not in used]:
        raise UserError(
            f"no file has the column {config.columns[lost[0]]!r} (--columns {lost[0]}={config.columns[lost[0]]})",
            "check its spelling in the first line or the first row of the file",
        )


def find_model(
    config: RunConfig, device: str, launch: Launch | None, reporter: Reporter, *, force: bool = False
) -> ModelRef:
    """Find the model, and check that memory and disk space are sufficient for the run.

    Args:
        config: Settings of the run.
        device: Device of the models.
        launch: How several processes train one model together; None to train in this process.
        reporter: Shows warnings.
        force: Whether to continue with a warning if memory or disk space seem too small.

    Returns:
        The model, which is downloaded if it was not on this machine.

    Raises:
        UserError: The model is missing, damaged or not a causal language model, cannot be trained with the settings, or
            needs too much memory or disk space.
    """
    # The files of a local model are checked before the estimate, which relies on its config.json. A model on the hub is
    # downloaded after the estimate, so that nothing is downloaded for a run that is too large.
    local = models.resolve(config.model, config.revision) if models.lies_here(config.model) else None
    settings = local.path if local else models.settings_folder(config.model, config.revision)
    check_usable(settings, trained="train" in config.stages and bool(config.methods))
    resources.check_resources(config, force=force, warn=reporter.note)
    model = local or models.resolve(config.model, config.revision)
    check_causal(model.path)
    preflight.check_training([config.method_config(m) for m in config.methods], model.path, device, config.dtype)
    if launch:
        launch.check([method_of(m)(config.method_config(m)) for m in config.methods], device)
    return model


def read_prompts(
    config: RunConfig, sets: Sequence[RunSet], notes: list[str]
) -> tuple[PromptSet, PromptSet, list[tuple[str, PromptSet]]]:
    """Read the prompt sets. In-domain and validation prompts that are not named are taken from the forget set.

    Args:
        config: Settings of the run.
        sets: All sets of the run. Text sets are not read.
        notes: Gets a line about what was held back for testing.

    Returns:
        The rest of the forget set, the validation prompts, and (suite, prompt set) for each test set.
    """
    read = [(o.use, prompts.load_prompts(o.spec)) for o in sets if not o.is_text and o.use not in _READ_LATER]
    notes += [line for _, one in read for line in column_notes(one)]
    forget = next(one for use, one in read if use == "forget")
    if config.methods:
        notes += response_notes(forget)
    validation = next((one for use, one in read if use == "validation"), None)
    tests = [(SUITES[use], one) for use, one in read if use in SUITES]
    if not config.in_domain:
        forget, held_back = prompts.split_off(forget, name="in_domain", role="in_domain", share=TEST_SHARE)
        tests.insert(0, ("harmless", held_back))
        n = len(held_back.items)
        notes.append(f"no in-domain prompts were given, so {n} prompts of the forget set were held back for testing")
    if validation is None:
        forget, validation = prompts.split_off(forget, name="validation", role="validation", share=VALIDATION_SHARE)
    return forget, validation, tests


def read_benign(
    config: RunConfig, sets: Sequence[RunSet], others: Sequence[PromptSet], notes: list[str]
) -> PromptSet | None:
    """Read the benign prompts to train on.

    Args:
        config: Settings of the run.
        sets: All sets of the run.
        others: The forget set, the validation prompts and the test sets. A prompt that is also in one of them is dropped.
        notes: Gets lines on the prompts that are used.

    Returns:
        The prompts, or None if the settings name none.

    Raises:
        UserError: No prompt is left, or a method's batch is too small for them.
    """
    spec = next((one.spec for one in sets if one.use == "benign_prompts"), None)
    if spec is None:
        return None
    read = prompts.load_prompts(spec)
    notes += column_notes(read)
    read = replace(read, name="benign_prompts")  # the set may have the name of a test set
    chosen, dropped = benign.choose(read, others, config.near_duplicate)
    methods = {name: method_of(name)(config.method_config(name)) for name in config.methods}
    notes += benign.notes_on_use(chosen, len(read.items), dropped, methods, config.benign_use)
    return chosen


def with_short_names(tests: Sequence[tuple[str, PromptSet]], config: RunConfig) -> list[tuple[str, PromptSet]]:
    """Give the test sets their names in the report, and apply the limits.

    Args:
        tests: (suite, prompt set) for each test set.
        config: Settings of the run, which limit the number of prompts in each set.

    Returns:
        The renamed and shortened sets.

    Raises:
        UserError: Two sets have the same name.
    """
    names = [short_name(one.name) for _, one in tests]
    if len(set(names)) != len(names):
        raise UserError("two prompt sets have the same name", "rename one of them with --prompts NAME=FILE")
    limits = {suite: config.limit_of(use) for use, suite in SUITES.items()}
    return [(suite, replace(one, name=short_name(one.name)).head(limits[suite])) for suite, one in tests]


def short_name(name: str) -> str:
    """Return the name of a set in the report. The prefix of the lab's sets is removed."""
    return name.removeprefix("lab_")


def remove_overlap(
    config: RunConfig, forget: PromptSet, sets: Sequence[tuple[str, PromptSet]], validation: PromptSet
) -> tuple[list[tuple[str, PromptSet]], PromptSet, list[Leak]]:
    """Remove test prompts that are in the forget set, and validation prompts that are in the forget set or a test set.

    Near duplicates are also removed. With `overlap: auto`, overlap in a user's own file is an error, because its owner
    can correct it. From declared sets, and from prompts held back from the forget set, the shared prompts are dropped
    with a note.

    Args:
        config: Settings of the run.
        forget: The forget set.
        sets: (suite, prompt set) for each test set.
        validation: The validation prompts.

    Returns:
        The test sets and the validation prompts without shared prompts, and the number of shared prompts of each set.

    Raises:
        UserError: A test set shares prompts with the forget set, and `overlap` does not permit to drop them.
    """
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


def usable_schemes(config: RunConfig, device: str) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Find the quantisation schemes that work on this machine.

    Args:
        config: The settings of the run.
        device: The device of the models.

    Returns:
        The schemes that work, and a record with the reason for each scheme that is skipped.
    """
    reason = quantise.obstacle(device) if config.quantise else None
    if reason is None:
        return config.quantise, []
    return (), [{"set": scheme, "reason": reason, "n": 0} for scheme in config.quantise]


def count_too_long(
    config: RunConfig, model: ModelRef, template: Template, sets: Iterable[tuple[str, PromptSet]]
) -> list[dict[str, Any]]:
    """Count the prompts that are skipped because prompt and response exceed the context length.

    Args:
        config: Settings of the run.
        model: The model. Its context length in tokens is the limit.
        template: Renders the prompts.
        sets: (suite, prompt set) for each set.

    Returns:
        A record for each set with skipped prompts.

    Raises:
        UserError: No prompt of a set fits, or the response alone exceeds the context length.
    """
    context = models.context_length_of(model.path)
    room = context - config.decoding.max_new_tokens
    if room < 1:
        raise UserError(
            f"{model.asked} has a context of {context} tokens, but the response alone may have"
            f" {config.decoding.max_new_tokens}",
            f"use --max-new-tokens below {context}",
        )
    tokenizer = models.load_tokenizer(model.path)
    skipped = []
    for _, one in sets:
        lengths = [len(ids) for ids in encode_prompts(tokenizer, [template.render(item) for item in one.items])]
        n = sum(too_long(length, config.decoding, context) for length in lengths)
        if n == len(lengths):
            raise UserError(
                f"no prompt of {one.name!r} fits into the context of {model.asked} ({context} tokens): the shortest has"
                f" {min(lengths)} tokens, and the response may have {config.decoding.max_new_tokens}",
                "use a model with a longer context, shorter prompts, or a smaller --max-new-tokens",
            )
        if n:
            skipped.append({"set": one.name, "reason": f"prompt too long for {context} tokens of context", "n": n})
    return skipped
