"""Measure capabilities: benchmarks with lm-eval, and perplexity on held-out text."""

from __future__ import annotations
