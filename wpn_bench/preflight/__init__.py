"""Checks before a run: required memory and disk space, installed libraries, downloads."""
