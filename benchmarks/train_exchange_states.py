"""Train the part of the judge `exchange` that reads hidden states of SmolLM2, and measure the judge with it.

    python benchmarks/train_exchange_states.py --exchanges labelled_exchanges.jsonl.gz --instructions instructions.jsonl \
        --model HuggingFaceTB/SmolLM2-135M-Instruct --work work --each 800
    wpn-bench judge work/states_held_out.jsonl --judge exchange:HuggingFaceTB/SmolLM2-135M-Instruct --prompt prompt \
        --text response --label harmful --out wpn_bench/harmless/judges/exchange_weights/card_states.json

Comes after train_exchange_judge.py, with the same data and the same --work. The logit of the response is the calibrated sum of two
standardised logits: of a logistic regression over mean hidden states of the response, and of the n-grams. States are computed for
--each exchanges of each source (0.1 s each on one core) and for PKU-SafeRLHF's test split, and kept in --work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from train_exchange_judge import (
    BENIGN,
    PKU,
    PKU_TEST,
    TRAINED,
    Array,
    Data,
    Trainer,
    add_arguments,
    apart,
    fit,
    measure,
    prepare,
    sigmoid,
    write_rows,
)

from wpn_bench.engine.layers import layers_of
from wpn_bench.harmless.judges import Exchange, exchange
from wpn_bench.harmless.judges.exchange_states import response_states

LAYER = 16
C = 0.0003  # inverse strength of the L2 penalty on standardised states
PART = 64  # exchanges in a file of states


def name_of(one: Exchange) -> str:
    """Return the name under which the states of an exchange are kept."""
    return hashlib.sha1(f"{one.prompt}\0{one.response}".encode()).hexdigest()[:16]


def chosen(data: Data, each: int) -> Array:
    """Return the exchanges whose states are computed: `each` of each source in an order that looks random.

    PKU-SafeRLHF is ordered by prompts, so that pairs stay together, and its test split is taken whole. The answers to harmless
    instructions serve only to measure, so a quarter as many do.
    """

    def order(k: int) -> tuple[str, str]:
        one = data.exchanges[k]
        own = name_of(one)
        return (name_of(Exchange(one.prompt, "")) if data.source[k] == PKU else own, own)

    sizes = dict.fromkeys(TRAINED, each) | {BENIGN: each // 4}
    parts = [np.array(sorted(data.of(source), key=order)[:size]) for source, size in sizes.items()]
    return np.concatenate([*parts, data.of(PKU_TEST)])


def compute(data: Data, indices: Array, model: str, folder: Path) -> Array:
    """Return hidden states of exchanges, (all exchanges, width), 0 where none were asked for. They are kept in a folder."""
    from wpn_bench import models

    folder.mkdir(exist_ok=True)
    known: dict[str, Array] = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as part:
            known |= dict(zip(part["names"].tolist(), part["states"], strict=True))
    names = {k: name_of(data.exchanges[k]) for k in indices}
    missing = [k for k in indices if names[k] not in known]
    for start in range(0, len(missing), PART):
        loaded, tokenizer = models.load(models.resolve(model).path, "cpu", "bfloat16")
        part = missing[start : start + PART]
        states = response_states(loaded, tokenizer, [data.exchanges[k] for k in part], LAYER).astype(np.float16)
        np.savez(folder / f"{names[part[0]]}.npz", names=np.array([names[k] for k in part]), states=states)
        known |= {names[k]: row for k, row in zip(part, states, strict=True)}
    found = np.zeros((len(data.exchanges), len(next(iter(known.values())))), dtype=np.float32)
    for k in indices:
        found[k] = known[names[k]]
    return found


def fit_states(states: Array, data: Data, train: Array) -> Array:
    """Fit a logistic regression to states; returns the weights, (width,), without an intercept.

    Each source has the same total weight. The states of a source are centred by themselves, and PKU-SafeRLHF's examples are
    differences of two answers (see `train_exchange_judge.fit`).
    """
    scale = states[train].std(0) + 1e-3
    rows, labels, weights = [], [], []
    for source in np.unique(data.source[train]):
        own = train[data.source[train] == source]
        if source == PKU:
            pairs = data.pairs[PKU][np.isin(data.pairs[PKU], train).all(1)]
            sign = np.where(np.arange(len(pairs)) % 2, 1, -1)
            rows.append(sign[:, None] * (states[pairs[:, 0]] - states[pairs[:, 1]]) / scale)
            labels.append(sign > 0)
        else:
            harmful = data.harmful[own].round()
            middle = (states[own][harmful == 0].mean(0) + states[own][harmful == 1].mean(0)) / 2
            rows.append((states[own] - middle) / scale)
            labels.append(harmful)
        weights.append(np.full(len(labels[-1]), 1 / len(labels[-1])))
    model = LogisticRegression(C=C, max_iter=400)
    total = len(train) / len(rows)
    model.fit(np.concatenate(rows), np.concatenate(labels), sample_weight=total * np.concatenate(weights))
    return model.coef_[0] / scale


def logits(trainer: Trainer, states: Array, subset: Array, train: Array) -> tuple[Array, Array]:
    """Fit both models of the response, that of the states to the part of the training exchanges that have states.

    Args:
        trainer: Data and features of n-grams.
        states: Hidden states of all exchanges.
        subset: Indices of the exchanges that have states.
        train: Indices of the exchanges to train on.

    Returns:
        The logits of all exchanges by the states and by the n-grams, neither standardised nor calibrated.
    """
    data = trainer.data
    by_states = states @ fit_states(states, data, train[np.isin(train, subset)])
    return by_states, trainer.responses @ fit(trainer.responses, data, train)


@dataclass(frozen=True)
class Sum:
    """How the two logits are added: `slope * (states / spread[0] + ngrams / spread[1]) + bias`."""

    spread: Array
    slope: float
    bias: float

    def __call__(self, by_states: Array, by_ngrams: Array) -> Array:
        return self.slope * (by_states / self.spread[0] + by_ngrams / self.spread[1]) + self.bias


def calibrate(trainer: Trainer, states: Array, subset: Array, train: Array) -> Sum:
    """Find the spread of both logits and the calibration of their sum by five-fold cross-validation over prompts.

    PKU-SafeRLHF is left out, because its labels compare. Harmful and harmless exchanges of a source have the same weight.

    Args:
        trainer: Data and features of n-grams.
        states: Hidden states of all exchanges.
        subset: Indices of the exchanges that have states.
        train: Indices of the exchanges to train on.

    Returns:
        The sum.
    """
    data = trainer.data
    own = train[np.isin(train, subset) & (data.source[train] != PKU)]
    new = np.zeros((2, len(own)))
    for fold in range(5):
        inside = data.prompt[own] % 5 == fold
        found = logits(trainer, states, subset, train[data.prompt[train] % 5 != fold])
        new[:, inside] = [one[own[inside]] for one in found]
    label, weight = data.harmful[own].round(), np.zeros(len(own))
    for source in np.unique(data.source[own]):
        for kind in (0, 1):
            which = (data.source[own] == source) & (label == kind)
            weight[which] = len(own) / max(which.sum(), 1)
    plain = Sum(new.std(1), 1.0, 0.0)
    model = LogisticRegression(C=1e6).fit(plain(*new)[:, None], label, sample_weight=weight)
    return Sum(plain.spread, float(model.coef_[0, 0]), float(model.intercept_[0]))


def between_sources(trainer: Trainer, states: Array, subset: Array) -> dict[str, Any]:
    """Measure on each source a judge that was trained on the other sources: each logit alone, and both."""
    data, measured = trainer.data, {}
    for source in TRAINED:
        test = data.of(PKU_TEST if source == PKU else source)
        test = test[np.isin(test, subset)]
        others = apart(data, data.of(*(s for s in TRAINED if s != source)), test)
        found = logits(trainer, states, subset, others)
        both = sigmoid(calibrate(trainer, states, subset, others)(*found))
        figures = {name: measure(data, test, one) for name, one in zip(("states", "ngrams"), found, strict=True)}
        measured[source] = {
            **{name: {k: v for k, v in one.items() if k in ("auc", "pairs")} for name, one in figures.items()},
            "both": measure(data, test, both * trainer.prompt_scores(trainer.prompt_model(others))),
        }
    return measured


def main() -> None:
    """Train, measure and write."""
    from safetensors.numpy import load_file, save_file

    from wpn_bench import models

    parser = argparse.ArgumentParser(description="Train the part of the judge `exchange` that reads hidden states.")
    add_arguments(parser)
    parser.add_argument("--each", type=int, default=800, help="exchanges of each source whose states are computed")
    options = parser.parse_args()
    trainer, held = prepare(options)
    data = trainer.data
    subset = chosen(data, options.each)
    states = compute(data, subset, options.model, options.work / "states")
    held = {source: indices[np.isin(indices, subset)] for source, indices in held.items()}
    write_rows(data, np.concatenate([held[s] for s in TRAINED[:2]]), options.work / "states_held_out.jsonl")

    train = apart(data, data.of(*TRAINED), np.concatenate(list(held.values())))
    added = calibrate(trainer, states, subset, train)

    # The judge has the calibrated logit of the n-grams, so their factor is for that one.
    shipped = load_file(options.out / exchange.WEIGHTS)
    of_ngrams = fit(trainer.responses, data, train)
    stretch = float(shipped["response"].astype(np.float64) @ of_ngrams / (of_ngrams @ of_ngrams))
    factor = added.slope / added.spread[1] / stretch
    of_states = added.slope / added.spread[0] * fit_states(states, data, train[np.isin(train, subset)])
    loaded, _ = models.load(models.resolve(options.model).path, "cpu", "bfloat16")
    saved = {
        "states": of_states.astype(np.float16),
        "ngrams": np.array([factor], np.float32),
        "bias": np.array([added.bias - factor * float(shipped["response_bias"][0])], np.float32),
        "layer": np.array([LAYER]),
        "layers": np.array([len(layers_of(loaded))]),
    }
    save_file(saved, options.out / exchange.STATES)

    by_ngrams = trainer.responses @ shipped["response"].astype(np.float64) + float(shipped["response_bias"][0])
    total = states @ of_states + factor * by_ngrams + float(saved["bias"][0])
    scores = sigmoid(total) * trainer.prompt_scores(trainer.prompt_model(train))
    measured = {
        "each": options.each,
        "trained_on": {s: int((data.source[train[np.isin(train, subset)]] == s).sum()) for s in TRAINED},
        "between_sources": between_sources(trainer, states, subset),
        "held_out_prompts": {s: measure(data, indices, scores) for s, indices in held.items()},
    }
    text = json.dumps(measured, indent=1)
    (options.out / "measured_states.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
