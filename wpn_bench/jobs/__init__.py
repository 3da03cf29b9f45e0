"""Jobs are the cached steps of a run. This package stores their outputs (artifacts) and executes them."""
