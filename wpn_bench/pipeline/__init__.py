"""A run from its inputs to its reports: it plans the jobs, executes them and writes the results."""
