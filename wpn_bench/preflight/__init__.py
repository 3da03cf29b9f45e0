"""Checks before a run: memory, disk space, installed libraries and downloads."""
