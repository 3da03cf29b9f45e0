"""wpn-bench: unlearn harmful behaviour from a causal language model, measure it, compare it with the base.

The public face is small; everything else is reached through the command line or the modules named in
CONTRIBUTING.md. Importing this package imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load_run"]

if TYPE_CHECKING:
    from wpn_bench.report.notebook import Run, load_run


def __getattr__(name: str) -> Any:
    # Lazy, so that `import wpn_bench` (and shell completion) does not pay for pandas.
    if name in {"Run", "load_run"}:
        from wpn_bench.report import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
