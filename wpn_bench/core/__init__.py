"""Small services without knowledge of runs and models: files, locks, memory, registries, formatting."""
