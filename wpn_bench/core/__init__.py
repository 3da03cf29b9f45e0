"""General-purpose helpers for files, locks, memory, registries and formatting. They know nothing of runs and models."""
