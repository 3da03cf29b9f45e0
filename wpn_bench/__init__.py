"""wpn-bench unlearns harmful behaviour from causal language models, and compares the resulting models with the base.

The public Python API is `load_run` and `Run`. Everything else is used through the command line. Importing this package
imports no large library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load_run"]

if TYPE_CHECKING:
    from wpn_bench.report.notebook import Run, load_run


def __getattr__(name: str) -> Any:
    # Imported only when used, because pandas would slow down `import wpn_bench` and shell completion.
    if name in {"Run", "load_run"}:
        from wpn_bench.report import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
