"""Compute statistics and verdicts from stored results."""
