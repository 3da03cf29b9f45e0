"""Fast and exact forward passes: log-likelihoods, responses and classifier scores.

This package depends on models and texts, not on runs.
"""
