"""The unlearning methods (each with its own file and loss), and the training loop that they share."""
