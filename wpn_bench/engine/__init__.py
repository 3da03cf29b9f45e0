"""Fast and exact forward passes, which give log-likelihoods, responses and classifier scores.

This package knows models and texts, but not runs.
"""
