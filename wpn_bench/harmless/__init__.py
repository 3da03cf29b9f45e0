"""Responses and what judges say of them: harmless, coherent, refused."""
