"""Unlearning: the methods (one file and one loss each) and the training loop that they share."""
