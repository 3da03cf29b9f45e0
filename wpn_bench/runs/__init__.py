"""Files of a finished run, and how to read them."""
