"""The command line. Each command has its own file, and all options are in one table."""
