"""Fast and exact forward passes: log-likelihoods, responses, classifier scores. This package knows models and texts, but no
runs."""
