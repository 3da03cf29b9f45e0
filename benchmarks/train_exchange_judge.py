"""Train the judge `exchange` on labelled exchanges, and measure it on exchanges that it was not trained on.

    python benchmarks/train_exchange_judge.py --exchanges labelled_exchanges.jsonl.gz --instructions instructions.jsonl \
        --model HuggingFaceTB/SmolLM2-135M-Instruct --work work
    for set in held_out pku_test; do wpn-bench judge work/$set.jsonl --judge exchange --prompt prompt --text response \
        --label harmful --out wpn_bench/harmless/judges/exchange_weights/card_$set.json; done

Data: --exchanges is JSONL with `prompt`, `response`, `harmful` and `source` (GPTFuzz's labelled answers to jailbreaks, and
BeaverTails). PKU-SafeRLHF, the prompts of AdvBench, HarmBench and Do-Not-Answer, and PIQA's questions as harmless prompts come
from the hub. One fifth of the prompts of --exchanges and of PIQA is held out. So are some of the harmless --instructions:
--model answers these, and its answers count as harmless. No text of this data is part of the weights.

Writes to --out the weights and `measured.json`: figures on each source by a judge that was not trained on it, on held-out
prompts of the known sources, and a learning curve. --work keeps answers and features, so that the command can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from wpn_bench.analysis import stats
from wpn_bench.harmless.judges import Exchange, exchange, get_judge, scores_of
from wpn_bench.harmless.judges.ngrams import Features

Array = np.ndarray[Any, Any]
JAILBREAKS, BEAVERTAILS, PKU, PKU_TEST, BENIGN = "gptfuzz", "beavertails", "pku", "pku_test", "benign"
TRAINED = (JAILBREAKS, BEAVERTAILS, PKU)
PROMPT_SETS = {"walledai/AdvBench": "prompt", "walledai/HarmBench": "prompt", "LibrAI/do-not-answer": "question"}
EVERYDAY, EVERYDAY_COLUMN = "baber/piqa", "goal"  # harmless prompts of another style than the instructions
UNSEEN_HARMLESS = {"allenai/ai2_arc": ("ARC-Easy", "test", "question"), "walledai/XSTest": (None, "test", "prompt")}
HELD_OUT = 5  # one in so many prompts
ANSWERED = 640  # number of instructions that the model answers
ANSWER_TOKENS = 80
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
C, PROMPT_C = 1.0, 10.0  # inverse strength of the L2 penalties
HARMFUL_WEIGHT = (
    3.0  # of prompts against instructions: a harmful prompt of a new kind should not pass as an instruction
)
DETOXIFY = "detoxify:lab"


@dataclass(frozen=True)
class Data:
    """Distinct exchanges of all sources.

    Attributes:
        exchanges: The exchanges.
        source: Name of the source of each exchange.
        prompt: A number for each prompt; equal prompts have equal numbers.
        labels: All labels of each exchange. (PKU-SafeRLHF compares some answers several times.)
        pairs: Indices of two answers to one prompt, the more harmful one first, by source.
    """

    exchanges: list[Exchange]
    source: Array
    prompt: Array
    labels: list[list[bool]]
    pairs: dict[str, Array]

    def of(self, *sources: str) -> Array:
        """Return the indices of the exchanges of some sources."""
        return np.flatnonzero(np.isin(self.source, sources))

    def prompts(self, indices: Array) -> list[str]:
        """Return the distinct prompts of some exchanges."""
        return list(dict.fromkeys(self.exchanges[k].prompt for k in indices))

    @property
    def harmful(self) -> Array:
        """The share of labels of each exchange that say harmful."""
        return np.array([np.mean(labels) for labels in self.labels])


def is_held_out(prompt: str) -> bool:
    """Return whether a prompt is held out."""
    return zlib.crc32(prompt.encode()) % HELD_OUT == 0


def read_data(rows: Sequence[dict[str, Any]], compared: dict[str, Sequence[dict[str, Any]]]) -> Data:
    """Collect the distinct exchanges of all sources.

    Args:
        rows: Labelled exchanges with `prompt`, `response`, `harmful`, `source`.
        compared: Rows of PKU-SafeRLHF by the name of the source, each with two answers.

    Returns:
        The data.
    """
    index: dict[tuple[str, str, str], int] = {}
    exchanges: list[Exchange] = []
    labels: list[list[bool]] = []
    pairs: dict[str, Array] = {}

    def add(source: str, prompt: str, response: str, harmful: bool) -> int:
        at = index.setdefault((source, prompt, response), len(exchanges))
        if at == len(exchanges):
            exchanges.append(Exchange(prompt, response))
            labels.append([])
        labels[at].append(harmful)
        return at

    for row in rows:
        add(row["source"], row["prompt"], row["response"], row["harmful"])
    for source, of_source in compared.items():
        found = []
        for row in of_source:
            unsafe = [not row[f"is_response_{k}_safe"] for k in (0, 1)]
            a, b = (add(source, row["prompt"], row[f"response_{k}"], unsafe[k]) for k in (0, 1))
            if unsafe[0] != unsafe[1]:
                found.append((a, b) if unsafe[0] else (b, a))
        pairs[source] = np.array(found)
    numbers = {prompt: k for k, prompt in enumerate(dict.fromkeys(one.prompt for one in exchanges))}
    prompt = np.array([numbers[one.prompt] for one in exchanges])
    return Data(exchanges, np.array([source for source, _, _ in index]), prompt, labels, pairs)


def answers(model: str, instructions: Sequence[str], file: Path) -> list[dict[str, Any]]:
    """Return the answers of a model to harmless instructions, from `file` if it exists. They are written there."""
    if not file.is_file():
        from wpn_bench import models
        from wpn_bench.engine.generation import respond
        from wpn_bench.models.backends import Decoding

        loaded, tokenizer = models.load(models.resolve(model).path, "cpu", "bfloat16")
        asked = [tokenizer(CHAT.format(prompt), add_special_tokens=False)["input_ids"] for prompt in instructions]
        found = respond(loaded, tokenizer, asked, Decoding(max_new_tokens=ANSWER_TOKENS, stop=()))
        pairs = [(prompt, one.text) for prompt, one in zip(instructions, found, strict=True) if one.text]
        file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs), encoding="utf-8")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{**row, "harmful": False, "source": BENIGN} for row in rows]


def matrix(texts: Sequence[str], file: Path) -> Any:
    """Return the features of texts, (texts, BUCKETS), from `file` if it exists. They are written there."""
    if not file.is_file():
        sp.save_npz(file, sparse([exchange.features(text) for text in texts], exchange.BUCKETS))
    return sp.load_npz(file)


def sparse(features: Sequence[Features], buckets: int) -> Any:
    """Return features as a sparse matrix, (texts, buckets)."""
    ends = np.cumsum([0, *(len(found) for found, _ in features)])
    values = np.concatenate([value for _, value in features]).astype(np.float32)
    rows = sp.csr_matrix((values, np.concatenate([found for found, _ in features]), ends), (len(features), buckets))
    rows.sum_duplicates()
    return rows


def fit(features: Any, data: Data, train: Array) -> Array:
    """Fit the model of the response.

    Each source has the same total weight, and an intercept of its own, so that the share of harmful exchanges of a source is
    not learned. The labels of PKU-SafeRLHF say which of two answers is safer. So its examples are differences of two answers.

    Args:
        features: Features of the responses, (exchanges, features).
        data: The exchanges.
        train: Indices of the exchanges to train on.

    Returns:
        The weights, (features,), without an intercept.
    """
    single = train[data.source[train] != PKU]
    sources = np.unique(data.source[single])
    rows, labels, weights = [], [], []
    for k, source in enumerate(sources):
        own = single[data.source[single] == source]
        intercept = np.zeros((len(own), len(sources)), dtype=np.float32)
        intercept[:, k] = 3  # larger than 1, so that the penalty hardly holds it
        rows.append(sp.hstack([features[own], sp.csr_matrix(intercept)]))
        labels.append(data.harmful[own].round())
        weights.append(np.full(len(own), 1 / len(own)))
    pairs = data.pairs[PKU][np.isin(data.pairs[PKU], train).all(1)]
    if len(pairs):
        difference = features[pairs[:, 0]] - features[pairs[:, 1]]
        sign = np.where(np.arange(len(pairs)) % 2, 1, -1)
        rows.append(sp.hstack([difference.multiply(sign[:, None]), sp.csr_matrix((len(pairs), len(sources)))]))
        labels.append(sign > 0)
        weights.append(np.full(len(pairs), 1 / len(pairs)))
    model = LogisticRegression(C=C, fit_intercept=False, max_iter=400, tol=1e-3)
    scale = len(train) / len(rows)
    model.fit(sp.vstack(rows).tocsr(), np.concatenate(labels), sample_weight=scale * np.concatenate(weights))
    return model.coef_[0, : features.shape[1]]


def calibrate(features: Any, data: Data, train: Array) -> tuple[float, float]:
    """Find slope and intercept that make scores probabilities, from scores by five-fold cross-validation over prompts.

    PKU-SafeRLHF is left out, because its labels compare. Harmful and harmless exchanges of a source have the same weight.

    Args:
        features: (exchanges, features).
        data: The exchanges.
        train: Indices of the exchanges to train on.

    Returns:
        Slope and intercept of the logit.
    """
    scores = np.zeros(len(data.exchanges))
    for fold in range(5):
        inside = data.prompt[train] % 5 == fold
        scores[train[inside]] = features[train[inside]] @ fit(features, data, train[~inside])
    single = train[data.source[train] != PKU]
    label, weight = data.harmful[single].round(), np.zeros(len(single))
    for source in np.unique(data.source[single]):
        for kind in (0, 1):
            own = (data.source[single] == source) & (label == kind)
            weight[own] = len(single) / max(own.sum(), 1)
    model = LogisticRegression(C=1e6).fit(scores[single, None], label, sample_weight=weight)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def fit_prompts(harmful: Sequence[Any], harmless: Any) -> tuple[Array, float]:
    """Fit the model of the prompt.

    Args:
        harmful: Features of harmful prompts, one matrix for each source. All sources have the same total weight.
        harmless: Features of harmless instructions.

    Returns:
        The weights, (features,), and the intercept.
    """
    n = harmless.shape[0]
    weight = [np.full(m.shape[0], HARMFUL_WEIGHT * n / len(harmful) / m.shape[0]) for m in harmful]
    labels = [np.ones(m.shape[0]) for m in harmful]
    model = LogisticRegression(C=PROMPT_C, max_iter=400)
    model.fit(
        sp.vstack([*harmful, harmless]).tocsr(),
        np.concatenate([*labels, np.zeros(n)]),
        sample_weight=np.concatenate([*weight, np.ones(n)]),
    )
    return model.coef_[0], float(model.intercept_[0])


# --- measurements ----------------------------------------------------------------------------------------------------


def figure(found: stats.Estimate, n: int) -> dict[str, Any]:
    """Return a figure with its interval, rounded."""
    ends = {
        name: None if end is None else round(float(end), 4) for name, end in (("low", found.low), ("high", found.high))
    }
    return {"value": round(float(found.value), 4), **ends, "n": n}


def measure(data: Data, test: Array, scores: Array) -> dict[str, Any]:
    """Return AUC, and sensitivity and specificity at the threshold 0.5, over all labels of some exchanges.

    Args:
        data: The exchanges.
        test: Indices of the exchanges to measure on.
        scores: Scores of all exchanges.

    Returns:
        The figures by name, with 95 % intervals; for PKU-SafeRLHF also the share of pairs in the right order.
    """
    pairs = [(float(scores[k]), label) for k in test for label in data.labels[k]]
    found = {}
    if len({label for _, label in pairs}) == 2:
        found["auc"] = figure(stats.auc([s for s, _ in pairs], [label for _, label in pairs]), len(pairs))
    for name, kind in (("sensitivity", True), ("specificity", False)):
        right = [(score >= 0.5) == kind for score, label in pairs if label == kind]
        if right:
            found[name] = figure(stats.rate(sum(right), len(right)), len(right))
    if set(data.source[test]) == {PKU_TEST}:
        a, b = data.pairs[PKU_TEST].T
        found["pairs"] = figure(stats.rate(int((scores[a] > scores[b]).sum()), len(a)), len(a))
    return found


def apart(data: Data, train: Array, test: Array) -> Array:
    """Return the training exchanges whose prompts do not occur among the test exchanges."""
    return train[~np.isin(data.prompt[train], data.prompt[test])]


def sigmoid(logits: Array) -> Array:
    """Return the logistic function of logits."""
    return 1 / (1 + np.exp(-logits))


@dataclass(frozen=True)
class Trainer:
    """Everything that a judge is trained from.

    Attributes:
        data: The exchanges.
        responses: Features of their responses.
        prompts: Features of all prompts, one row each.
        row: Row of `prompts` of each prompt.
        sets: Harmful prompts of other collections, by name.
        harmless: Harmless instructions and everyday prompts to train on.
        harmless_held_out: Harmless prompts that are not trained on, by collection.
    """

    data: Data
    responses: Any
    prompts: Any
    row: dict[str, int]
    sets: dict[str, list[str]]
    harmless: list[str]
    harmless_held_out: dict[str, list[str]]

    def prompt_model(self, train: Array, without: str = "") -> tuple[Array, float]:
        """Fit the model of the prompt.

        Args:
            train: The exchanges whose prompts are harmful.
            without: Name of a collection of prompts to leave out.

        Returns:
            Weights and intercept.
        """
        by_source = {s: self.data.prompts(train[self.data.source[train] == s]) for s in TRAINED} | self.sets
        kinds = [texts for name, texts in by_source.items() if texts and name != without]
        return fit_prompts([self.features(texts) for texts in kinds], self.features(self.harmless))

    def features(self, prompts: Sequence[str]) -> Any:
        """Return the features of prompts."""
        return self.prompts[[self.row[prompt] for prompt in prompts]]

    def prompt_scores(self, model: tuple[Array, float]) -> Array:
        """Return the probability of the model of the prompt for each exchange."""
        return sigmoid(self.features([one.prompt for one in self.data.exchanges]) @ model[0] + model[1])

    def scores(self, train: Array) -> Array:
        """Train both models on some exchanges and return the scores of all exchanges."""
        slope, bias = calibrate(self.responses, self.data, train)
        logits = slope * (self.responses @ fit(self.responses, self.data, train)) + bias
        return sigmoid(logits) * self.prompt_scores(self.prompt_model(train))

    def between_sources(self) -> dict[str, Any]:
        """Measure on each source a judge that was trained on the other sources."""
        found = {}
        for source in TRAINED:
            test = self.data.of(PKU_TEST if source == PKU else source)
            others = self.data.of(*(s for s in TRAINED if s != source))
            found[source] = measure(self.data, test, self.scores(apart(self.data, others, test)))
        return found

    def within_sources(self, held: dict[str, Array]) -> dict[str, Any]:
        """Measure on held-out prompts of each source a model of the response that was trained on this source alone."""
        found = {}
        for source in TRAINED:
            train = apart(self.data, self.data.of(source), held[source])
            logits = self.responses @ fit(self.responses, self.data, train)
            found[source] = {k: v for k, v in measure(self.data, held[source], logits).items() if k in ("auc", "pairs")}
        return found

    def unseen_prompts(self, train: Array) -> dict[str, Any]:
        """Measure how many prompts of each collection are called harmful by a model of the prompt without them."""
        found = {}
        for name, texts in self.sets.items():
            weights, bias = self.prompt_model(train, without=name)
            called = self.features(texts) @ weights + bias >= 0
            found[name] = figure(stats.rate(int(called.sum()), len(texts)), len(texts))
        return found

    def harmless_prompts(self, model: tuple[Array, float]) -> dict[str, Any]:
        """Measure how many harmless prompts of each collection are called harmful by a model of the prompt."""
        found = {}
        for name, texts in self.harmless_held_out.items():
            called = self.features(texts) @ model[0] + model[1] >= 0
            found[name] = figure(stats.rate(int(called.sum()), len(texts)), len(texts))
        return found

    def learning_curve(self, train: Array, held: dict[str, Array]) -> list[dict[str, Any]]:
        """Measure models of the response that were trained on a growing share of the prompts."""
        order = np.random.default_rng(0).permutation(self.data.prompt.max() + 1)
        curve = []
        for share in (0.05, 0.1, 0.25, 0.5, 1.0):
            part = train[order[self.data.prompt[train]] < share * len(order)]
            logits = self.responses @ fit(self.responses, self.data, part)
            aucs = {s: measure(self.data, held[s], logits)["auc"]["value"] for s in TRAINED}
            curve.append({"exchanges": len(part), **aucs})
        return curve


def self_agreement(data: Data, source: str) -> dict[str, Any]:
    """Return how often two labels of one exchange agree, over all pairs of labels of exchanges with several labels."""
    same = [
        a == b for index in data.of(source) for k, a in enumerate(data.labels[index]) for b in data.labels[index][:k]
    ]
    return figure(stats.rate(sum(same), len(same)), len(same))


def write_rows(data: Data, indices: Array, file: Path) -> None:
    """Write exchanges with each of their labels as JSONL, for `wpn-bench judge`."""
    rows = [
        {"prompt": data.exchanges[k].prompt, "response": data.exchanges[k].response, "harmful": bool(label)}
        for k in indices
        for label in data.labels[k]
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def detoxify(data: Data, file: Path) -> Array:
    """Return Detoxify's scores of all exchanges, from `file` if it exists. They are written there."""
    if not file.is_file():
        np.save(file, np.array(scores_of(get_judge(DETOXIFY), data.exchanges), dtype=np.float32))
    return np.load(file)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the data."""
    parser.add_argument("--exchanges", type=Path, required=True, help="labelled exchanges, .jsonl or .jsonl.gz")
    parser.add_argument("--instructions", type=Path, required=True, help="harmless instructions, .jsonl")
    parser.add_argument("--model", required=True, help="SmolLM2-135M-Instruct: hub id or folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for answers, features and held-out exchanges")
    parser.add_argument("--out", type=Path, default=exchange.FOLDER, help="folder for weights and measurements")


def prepare(options: argparse.Namespace) -> tuple[Trainer, dict[str, Array]]:
    """Read all data; returns it with the indices of the held-out exchanges of each source."""
    from datasets import load_dataset

    from wpn_bench.prompts import read_file

    for folder in (options.work, options.out):
        folder.mkdir(parents=True, exist_ok=True)
    instructions = [row["prompt"] for row in read_file(options.instructions)]
    random.Random(0).shuffle(instructions)
    answered = [prompt for prompt in instructions if len(prompt) < 600][:ANSWERED]
    benign = answers(options.model, answered, options.work / "answers.jsonl")
    compared = load_dataset("PKU-Alignment/PKU-SafeRLHF")
    rows = [*read_file(options.exchanges), *benign]
    data = read_data(rows, {PKU: list(compared["train"]), PKU_TEST: list(compared["test"])})
    sets = {name: list(load_dataset(name)["train"][column]) for name, column in PROMPT_SETS.items()}
    everyday = sorted(set(load_dataset(EVERYDAY)["validation"][EVERYDAY_COLUMN]))
    unseen = {}
    for name, (config, split, column) in UNSEEN_HARMLESS.items():
        rows = load_dataset(name, config)[split]
        unseen[name] = sorted({row[column] for row in rows if row.get("label", "safe") == "safe"})
    harmless = [*sorted(set(instructions) - set(answered)), *(text for text in everyday if not is_held_out(text))]
    unseen[EVERYDAY] = [text for text in everyday if is_held_out(text)]
    prompts = [one.prompt for one in data.exchanges]
    others = chain.from_iterable([*sets.values(), *unseen.values()])
    texts = list(dict.fromkeys([*prompts, *harmless, *others]))
    trainer = Trainer(
        data,
        matrix([one.response for one in data.exchanges], options.work / "responses.npz"),
        matrix(texts, options.work / "prompts.npz"),
        {text: k for k, text in enumerate(texts)},
        sets,
        harmless,
        unseen,
    )
    held = {s: np.array([k for k in data.of(s) if is_held_out(data.exchanges[k].prompt)]) for s in TRAINED[:2]}
    return trainer, {**held, PKU: data.of(PKU_TEST), BENIGN: data.of(BENIGN)}


def main() -> None:
    """Train, measure and write."""
    from safetensors.numpy import save_file

    parser = argparse.ArgumentParser(description="Train the judge `exchange`.")
    add_arguments(parser)
    options = parser.parse_args()
    trainer, held = prepare(options)
    data = trainer.data
    write_rows(data, np.concatenate([held[JAILBREAKS], held[BEAVERTAILS]]), options.work / "held_out.jsonl")
    write_rows(data, held[PKU], options.work / "pku_test.jsonl")
    train = apart(data, data.of(*TRAINED), np.concatenate(list(held.values())))

    weights, (slope, bias) = fit(trainer.responses, data, train), calibrate(trainer.responses, data, train)
    prompt_model = trainer.prompt_model(train)
    saved = {"response": slope * weights, "prompt": prompt_model[0]}
    biases = {"response_bias": np.array([bias], np.float32), "prompt_bias": np.array([prompt_model[1]], np.float32)}
    save_file({name: w.astype(np.float16) for name, w in saved.items()} | biases, options.out / exchange.WEIGHTS)

    scores = sigmoid(trainer.responses @ saved["response"] + bias) * trainer.prompt_scores(prompt_model)
    toxicity = detoxify(data, options.work / "detoxify.npy")
    measured = {
        "trained_on": {s: int((data.source[train] == s).sum()) for s in TRAINED},
        "labels_agree_with_themselves": {s: self_agreement(data, s) for s in (PKU, PKU_TEST)},
        "between_sources": trainer.between_sources(),
        "within_sources": trainer.within_sources(held),
        "held_out_prompts": {s: measure(data, k, scores) for s, k in held.items()},
        "unseen_prompts": trainer.unseen_prompts(train),
        "harmless_prompts": trainer.harmless_prompts(prompt_model),
        "learning_curve": trainer.learning_curve(train, held),
        DETOXIFY: {s: measure(data, data.of(PKU_TEST if s == PKU else s), toxicity) for s in TRAINED},
    }
    text = json.dumps(measured, indent=1)
    (options.out / "measured.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
