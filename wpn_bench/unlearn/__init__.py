"""Unlearning: the methods (one file, one loss each) and the one training loop that runs them all."""
