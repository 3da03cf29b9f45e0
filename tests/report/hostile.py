"""Texts that a page must show and never obey, and a run that holds them wherever a run can hold a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN = "window.pwned=1"
PAYLOADS = [
    # scripts and what ends the element that a text may stand in
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"</textarea><script>{RUN}</script>",
    f"</style><script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    f"--><script>{RUN}</script><!--",
    f"]]><script>{RUN}</script>",
    f"<ScRiPt/src=data:text/javascript,{RUN}>",
    "<script src=https://example.org/x.js></script>",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    "<!-- <script> <!--",
    # event handlers
    f"<img src=x onerror={RUN}>",
    f"<body onload={RUN}>",
    f"<details open ontoggle={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<video><source onerror={RUN}></video>",
    f'" onmouseover="{RUN}" autofocus onfocus="{RUN}',
    f"' onclick='{RUN}' x='",
    f"` onerror={RUN} `",
    f"<marquee onstart={RUN}>",
    # links, frames, forms, requests
    f"<a href='javascript:{RUN}'>link</a>",
    f"javascript:{RUN}",
    f"[link](javascript:{RUN})",
    "![image](https://example.org/i.png)",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    "<object data=https://example.org/o></object>",
    f"<form action=javascript:{RUN}><button>go</button></form>",
    "<meta http-equiv=refresh content='0;url=https://example.org/'>",
    "<base href=https://example.org/>",
    "<link rel=stylesheet href=https://example.org/s.css>",
    # SVG, MathML and CSS
    f"<svg onload={RUN}><animate onbegin={RUN} attributeName=x></svg>",
    f"<svg><script>{RUN}</script></svg>",
    f"<math><mtext><style><img src=x onerror={RUN}></style></mtext></math>",
    "<style>body{display:none}</style>",
    "x;} body{background:url(https://example.org/b.png)} a{",
    # templates of Jinja, Vue, Angular, JavaScript, Python, Plotly
    "{{ 7*7 }} {% for x in range(9) %}x{% endfor %} {# gone #}",
    f"{{{{ constructor.constructor('{RUN}')() }}}}",
    f"<div v-html=\"'<img src=x onerror={RUN}>'\" ng-init='$eval(\"{RUN}\")'></div>",
    f"${{{RUN}}} #{{7*7}} <%= 7*7 %> {{0.__class__}} %s %(x)s",
    "%{x} %{y:.1f} %{customdata} %{fullData.name}<extra>gone</extra>",
    f'<b>bold</b><br><a href="https://example.org/" target="_blank">Plotly link</a><a href="javascript:{RUN}">x</a>',
    "$\\sqrt{x}$ $$\\href{javascript:1}{x}$$",
    # characters
    "null \x00 byte, bell \x07, escape \x1b[31m, delete \x7f",
    "right \u202eto left\u202c \u2066isolated\u2069 \u200fmark",
    "separators \u2028 and \u2029, tab\tand\r\nline ends",
    "entities &lt;script&gt; &amp;amp; &#60;b&#62; &notanentity; &",
    "the pattern $& of a replacement, $1, $$, \\u0001 and \x01",
    "e" + "\u0301" * 300 + " \U0001f600\u200d\U0001f4a9",
    "__proto__",
    "constructor",
    "| a | table |\n|---|---|\n```\n# heading\n<details>",
]
LETTERS = "a" * 1_000_000
SURROGATE = "half of a pair \ud83d stands alone"


def results() -> dict[str, Any]:
    """Every payload is a model's name and title, a set's name, a reason, an option, a note; one is half a pair."""
    rows: list[dict[str, Any]] = []

    def add(model: str, suite: str, name: str, metric: str, value: float) -> None:
        change = None if model == "base" else 0.1
        rows.append(
            {"model": model, "seed": None, "suite": suite, "set": name, "metric": metric, "value": value, "n": 50,
             "ci_low": value - 0.1, "ci_high": value + 0.1, "delta": change, "delta_ci_low": change and 0.05,
             "delta_ci_high": change and 0.15, "p_value": None if model == "base" else 0.01}
        )  # fmt: skip

    models: dict[str, Any] = {"base": {"title": "Base model", "method": None, "status": "ok", "config": {}}}
    for k, text in enumerate([*PAYLOADS, SURROGATE]):
        drawn = k % 8 == 0
        history = [{"seed": 0, "step": s, "loss": 1.0 / (s + 1), "parts": {text: 1.0, "kl": 0.5}} for s in range(3)]
        models[text] = {
            "title": text, "method": text, "paper": text, "status": "ok", "reason": None, "config": {text: text},
            "options": {text: text}, "history": history if drawn else [], "stopped": [text],
        }  # fmt: skip
    models["lost"] = {"title": PAYLOADS[0], "status": "failed", "reason": PAYLOADS[1], "config": {}}
    for k, model in enumerate(list(models)[:-1]):
        add(model, "harmless", "in_domain", "harmless_rate", 0.5 + 0.008 * k)
        add(model, "harmless", "in_domain", "coherent_harmless_rate", 0.4 + 0.008 * k)
        add(model, "benchmark", "nine", "accuracy", 0.4 + 0.005 * k)
    for text in [*PAYLOADS, SURROGATE]:
        for suite in ("ood", "attack", "benchmark"):
            for model in ("base", PAYLOADS[0]):
                add(model, suite, text, "accuracy" if suite == "benchmark" else "coherent_harmless_rate", 0.5)
    hostile = [*PAYLOADS, SURROGATE]
    run = {
        "name": PAYLOADS[1], "model": PAYLOADS[0], "command": "\n".join(hostile), "preset": PAYLOADS[3], "seeds": [0],
        "judge": PAYLOADS[11], "judges": [
            {"name": text, "title": text, "measures": text, "threshold": 0.5, "decides": k == 0}
            for k, text in enumerate([PAYLOADS[11], *PAYLOADS[20:24]])
        ],
        "template": PAYLOADS[35], "notes": hostile,
        "skipped": [{"set": text, "reason": text, "n": 1} for text in hostile],
        "failed": [{"job": text, "reason": text} for text in hostile],
    }  # fmt: skip
    return {"schema_version": 1, "run": run, "models": models, "metrics": rows}


def samples() -> list[dict[str, Any]]:
    """A prompt a payload, answered with it; the last is a megabyte of one letter. Parquet holds no half of a pair."""
    texts = [*PAYLOADS, LETTERS]
    return [
        {"model": model, "seed": None, "suite": "harmless", "set": text[:2000], "item_id": f"{k}",
         "prompt": text, "input": f"### Question: {text}", "response": text, "score": 0.9 if model == "base" else 0.1,
         "harmless": model != "base", "coherent": False, "reason": text[:2000], f"score:{PAYLOADS[20]}": 0.5}
        for k, text in enumerate(texts)
        for model in ("base", PAYLOADS[0], PAYLOADS[16])
    ]  # fmt: skip


def write_run(folder: Path) -> Path:
    """Write the run and return its folder."""
    import pandas as pd

    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results()), encoding="utf-8")
    hostile = {text: text for text in [*PAYLOADS, SURROGATE]}
    stages = [{"label": text, "status": text, "seconds": 1.0, "digest": text} for text in hostile]
    manifest = {**hostile, "config": {"all": hostile}, "config_digest": PAYLOADS[0], "stages": stages}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    pd.DataFrame(samples()).to_parquet(folder / "samples.parquet", index=False)
    return folder
