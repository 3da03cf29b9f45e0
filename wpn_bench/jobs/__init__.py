"""Jobs: cached steps of a run, their artifact store, and the executors that run them."""
