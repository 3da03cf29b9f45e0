"""Benchmarks: what a model can do, measured by lm-eval, and how well it still writes plain text."""

from __future__ import annotations
