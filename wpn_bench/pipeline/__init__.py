"""A run from its inputs to its reports: plan the jobs, run them, write the results."""
