"""The files of a finished run, and functions that read them."""
