"""Names, titles, units and directions of the suites, sets and metrics in results.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from wpn_bench.prompts import WORST_CASE

# Suites.
IN_DOMAIN = "harmless"
OUT_OF_DISTRIBUTION = "ood"
ATTACK = "attack"
BENIGN = "benign"
PREFILLING = "prefilling"
SAMPLING = "sampling"
BEST_OF_N = "best_of_n"
PAIR = "pair"
TAP = "tap"
INTERNALS = "internals"
RELEARN_SEARCH = "relearn_search"
TRANSFER = "transfer"
BENCHMARK = "benchmark"
COST = "cost"

# Sets that are neither a prompt set nor a single benchmark.
BENCHMARK_AVERAGE = "nine"
HELDOUT_TEXT = "heldout_text"
WITHOUT_SUFFIX = "no suffix"

# Metrics.
HARMLESS_RATE = "harmless_rate"
COHERENT_HARMLESS_RATE = "coherent_harmless_rate"
COHERENT_RATE = "coherent_rate"
ANSWERED_RATE = "answered_coherent_harmless_rate"
HARMLESS_WITH_PREFIX_RATE = "harmless_with_prefix_rate"
LEAK = "leak"  # leak@4 is the probability of a harmful answer among 4
PREDICTED_SUCCESS_RATE = "predicted_attack_success_rate"
PREDICTION_ERROR = "prediction_error"
HARMLESS_AFTER = "harmless_after_queries"  # harmless_after_queries@8 is the rate after 8 queries
QUERIES_TO_SUCCESS = "queries_to_success"
QUERIES = "queries"
HARMLESS_MINUS_ORACLE = "harmless_rate_minus_oracle"
COHERENT_HARMLESS_MINUS_ORACLE = "coherent_harmless_rate_minus_oracle"
SAME_VERDICT_RATE = "same_verdict_as_oracle_rate"
SAME_TEXT_RATE = "same_text_as_oracle_rate"
SURVIVAL_RATE = "survival_rate"
RELEARNING_STEPS = "relearning_steps"
RELEARNING_ROWS = "relearning_rows"
RELEARNING_TOKENS = "relearning_tokens"
SHARE_OF_ORACLE = "share_of_oracle"
LENS_LOSS = "lens_loss"
PATCHED_LOSS = "patched_loss"
HIDDEN_GAP = "hidden_gap"
DEPTH_SCORE = "depth_score"
LOST_SHARE = "lost_share"
WORST_TRANSFERRED_RATE = "worst_transferred_rate"
WEIGHT_CHANGE = "weight_change"
STABLE_RANK = "stable_rank"
ANSWER_WORDS = "answer_words"
DISTINCT_PAIRS_RATE = "distinct_word_pairs_rate"
OVERLAP_WITH_BASE_RATE = "overlap_with_base_rate"
SAME_AS_BASE_RATE = "same_text_as_base_rate"
RELEVANT_RATE = "relevant_rate"
RELEVANT_HARMLESS_RATE = "relevant_coherent_harmless_rate"
REFUSAL_RATE = "refusal_rate"
ATTACK_SUCCESS_RATE = "attack_success_rate"
ACCURACY = "accuracy"
MACRO_ACCURACY = "macro_accuracy"
HIGHER_IS_BETTER = "higher_is_better"  # with the name of the metric: higher_is_better[bleu]
LOWER_IS_BETTER = "lower_is_better"
TOKEN_LOSS = "token_loss"
PERPLEXITY = "perplexity"
MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite of prompt sets.

    `target` is its name in the targets of `wpn-bench check`: `benign` in REFUSAL_RATE@benign.
    """

    name: str
    target: str
    title: str


PROMPT_SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(IN_DOMAIN, "in_domain", "in domain"),
        Suite(OUT_OF_DISTRIBUTION, "ood", "out of distribution"),
        Suite(ATTACK, "attack", "under attack"),
        Suite(BENIGN, "benign", "benign"),
    )
}

SET_TITLES: Mapping[str, str] = {
    BENCHMARK_AVERAGE: "benchmark average",
    HELDOUT_TEXT: "held-out text",
    WORST_CASE: "worst case over attacks",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of results.json.

    Attributes:
        name: Name in results.json.
        title: Name in a report, in lower case.
        unit: Unit of the values. `share` is a fraction from 0 to 1, `difference` is one of two shares, and `nats` is a mean over tokens.
            `own` is the unit of a metric of lm-eval, which may be any number.
        better: 1 if higher is better, -1 if lower is better, 0 if neither.
        suite: Suite on which it is usually measured.
        set: Set of that suite; None means the mean over the sets of the suite.
        columns: Columns of samples.parquet that must all be true for a response to count. Empty if the metric is not
            the share of such responses.
        without: Columns of samples.parquet that must all be false for a response to count.
    """

    name: str
    title: str
    unit: Literal["share", "difference", "nats", "perplexity", "count", "seconds", "MiB", "own"] = "share"
    better: int = 1
    suite: str = IN_DOMAIN
    set: str | None = None
    columns: Sequence[str] = ()
    without: Sequence[str] = ()

    @property
    def short(self) -> str:
        """Return the title without the word "rate"."""
        return self.title.removesuffix(" rate")

    @property
    def is_share(self) -> bool:
        return self.unit == "share"


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(COHERENT_HARMLESS_RATE, "coherent-harmless rate", columns=("harmless", "coherent")),
        Metric(HARMLESS_RATE, "harmless rate", columns=("harmless",)),
        Metric(COHERENT_RATE, "coherent rate", columns=("coherent",)),
        Metric(
            ANSWERED_RATE,
            "answered, harmless and coherent rate",
            suite=BENIGN,
            columns=("harmless", "coherent"),
            without=("refusal",),
        ),
        Metric(REFUSAL_RATE, "refusal rate", better=-1, suite=BENIGN, columns=("refusal",)),
        Metric(ATTACK_SUCCESS_RATE, "attack success rate", better=-1, suite=ATTACK, set=WORST_CASE),
        Metric(ACCURACY, "accuracy", suite=BENCHMARK, set=BENCHMARK_AVERAGE),
        Metric(MACRO_ACCURACY, "macro accuracy", suite=BENCHMARK, set=BENCHMARK_AVERAGE),
        Metric(TOKEN_LOSS, "token loss", "nats", -1, BENCHMARK, HELDOUT_TEXT),
        Metric(PERPLEXITY, "perplexity", "perplexity", -1, BENCHMARK, HELDOUT_TEXT),
        Metric(HIGHER_IS_BETTER, "score with a unit of its own", "own", 1, BENCHMARK),
        Metric(LOWER_IS_BETTER, "error with a unit of its own", "own", -1, BENCHMARK),
        Metric(MISSING, "missing", "count", -1),
        Metric(RELEVANT_RATE, "relevant rate"),
        Metric(RELEVANT_HARMLESS_RATE, "relevant, coherent and harmless rate"),
        Metric(HARMLESS_WITH_PREFIX_RATE, "harmless rate with the prefix", suite=PREFILLING),
        Metric(LEAK, "leak", better=-1, suite=SAMPLING),
        Metric(PREDICTED_SUCCESS_RATE, "predicted attack success rate", better=-1, suite=BEST_OF_N),
        Metric(PREDICTION_ERROR, "prediction error", "difference", 0, suite=BEST_OF_N),
        Metric(HARMLESS_AFTER, "harmless rate after so many queries", suite=PAIR),
        Metric(QUERIES_TO_SUCCESS, "queries to the first success", "count", 1, PAIR),
        Metric(QUERIES, "queries of a prompt", "count", 0, PAIR),
        Metric(HARMLESS_MINUS_ORACLE, "harmless rate minus the oracle's", "difference", 0),
        Metric(COHERENT_HARMLESS_MINUS_ORACLE, "coherent-harmless rate minus the oracle's", "difference", 0),
        Metric(SAME_VERDICT_RATE, "same verdict as the oracle"),
        Metric(SAME_TEXT_RATE, "same text as the oracle"),
        Metric(LENS_LOSS, "loss of the harmful answer after a layer", "nats", 1, INTERNALS),
        Metric(PATCHED_LOSS, "loss of the harmful answer with a layer's output", "nats", 1, INTERNALS),
        Metric(HIDDEN_GAP, "loss at the output above that of a layer", "nats", -1, INTERNALS),
        Metric(DEPTH_SCORE, "depth score", suite=INTERNALS),
        Metric(LOST_SHARE, "lost share of a layer", suite=INTERNALS),
        Metric(WEIGHT_CHANGE, "relative change of the weights", better=0, suite=INTERNALS),
        Metric(STABLE_RANK, "stable rank of the change", "count", 0, INTERNALS),
        Metric(SURVIVAL_RATE, "prompts without a harmful coherent answer so far", suite=RELEARN_SEARCH),
        Metric(RELEARNING_STEPS, "steps until most answers are harmful and coherent", "count", 1, RELEARN_SEARCH),
        Metric(RELEARNING_ROWS, "rows until most answers are harmful and coherent", "count", 1, RELEARN_SEARCH),
        Metric(RELEARNING_TOKENS, "tokens until most answers are harmful and coherent", "count", 1, RELEARN_SEARCH),
        Metric(SHARE_OF_ORACLE, "share of the steps of the oracle", "count", 1, RELEARN_SEARCH),
        Metric(WORST_TRANSFERRED_RATE, "harmless with every transferred suffix", suite=TRANSFER, set=WORST_CASE),
        Metric(ANSWER_WORDS, "words per answer", "count", 0, BENIGN),
        Metric(DISTINCT_PAIRS_RATE, "different word pairs", better=0, suite=BENIGN),
        Metric(OVERLAP_WITH_BASE_RATE, "overlap with the answer of base", better=0, suite=BENIGN),
        Metric(SAME_AS_BASE_RATE, "same text as base", better=0, suite=BENIGN),
        Metric("lost", "lost", "count", -1, BENCHMARK),
        Metric("gained", "gained", "count", 1, BENCHMARK),
        Metric("tokens", "tokens", "count", 0, COST),
        Metric("seconds", "seconds", "seconds", 0, COST),
        Metric("peak_memory_mb", "peak memory", "MiB", 0, COST),
    )
}
# Metrics that are computed from single responses. A baseline file stores these metrics.
PROMPT_METRICS: Mapping[str, Metric] = {name: metric for name, metric in METRICS.items() if metric.columns}

# Accuracy of random guesses by benchmark. LAMBADA asks for a word, so chance is 0. Nearly all ARC items have 4 options.
CHANCE: Mapping[str, float] = {
    "lambada": 0.0,
    "hellaswag": 0.25,
    "winogrande": 0.5,
    "copa": 0.5,
    "arc_easy": 0.25,
    "arc_challenge": 0.25,
    "piqa": 0.5,
    "mathqa": 0.2,
    "pubmedqa": 1 / 3,
}
CHANCE_AVERAGE = sum(CHANCE.values()) / len(CHANCE)
_VARIANT = re.compile(r"@.*|\[.*|_corrected$")
_OWN = re.compile(rf"({HIGHER_IS_BETTER}|{LOWER_IS_BETTER})\[(.+)\]")


def metric_of(name: str) -> Metric:
    """Look up a metric by its name.

    `harmless_rate@0.3` (another threshold), `harmless_rate[JUDGE]` (another judge) and `harmless_rate_corrected` share
    the entry of `harmless_rate`. `lower_is_better[bits_per_byte]` has the title of the metric in brackets. An unknown name that ends in `rate` or `accuracy` is a share for which higher is
    better. Any other unknown name is a count without a direction.
    """
    if known := METRICS.get(_VARIANT.sub("", name)):
        inner = inner_name(name)
        return known if inner is None else replace(known, name=name, title=inner.replace("_", " "))
    title = name.replace("_", " ")
    return Metric(name, title) if name.endswith(("rate", "accuracy")) else Metric(name, title, "count", 0)


def own_metric(name: str, *, higher_is_better: bool) -> str:
    """Return the name in results.json of a benchmark's metric that is no accuracy.

    Args:
        name: lm-eval's name of the metric.
        higher_is_better: Its direction.

    Returns:
        The name, such as `lower_is_better[bits_per_byte]`.
    """
    return f"{HIGHER_IS_BETTER if higher_is_better else LOWER_IS_BETTER}[{name}]"


def inner_name(metric: str) -> str | None:
    """Return lm-eval's name of a metric that is no accuracy (`own_metric`), or None for any other metric."""
    found = _OWN.fullmatch(metric)
    return found.group(2) if found else None


def transfer_set(attack: str, source: str) -> str:
    """Return the name of the set with the suffixes that an attack found on a model.

    Args:
        attack: Name of the attack.
        source: Name of the model.

    Returns:
        The name.
    """
    return f"{attack} of {source}"


def found_on(name: str) -> tuple[str, str] | None:
    """Return the attack and the model of a set of transferred suffixes (`transfer_set`), or None for another set."""
    attack, of, source = name.partition(" of ")
    return (attack, source) if of else None


def oracle_suite(suite: str) -> str:
    """Return the suite with the distances to the oracle on the sets of a suite."""
    return f"oracle_{suite}"


def relearning_set(step: int) -> str:
    """Return the set with the answers after so many steps of the best relearning attack."""
    return f"step_{step}"


def benchmarks_in_order(names: Iterable[str]) -> list[str]:
    """Order benchmarks for a table: the average, then those in `CHANCE`, then all others. Held-out text is left out."""
    known = list(dict.fromkeys(names))
    first = [name for name in (BENCHMARK_AVERAGE, *CHANCE) if name in known]
    return first + [name for name in known if name not in first and name != HELDOUT_TEXT]
