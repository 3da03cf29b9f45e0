"""Fast and exact passes through a model: log-likelihoods, responses, classes. Knows models and texts, nothing of runs."""
