"""The registry of methods, attacks and judges, which are called parts here. Plug-ins can add parts.

A part is given as a string `"module:attribute"`, so that listing the names imports no modules. Other packages add parts
by an entry point in the group `wpn_bench.<kind>s`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from wpn_bench.core.files import digest_file, digest_of
from wpn_bench.errors import UserError

T = TypeVar("T")


def close_matches(name: str, known: Iterable[str]) -> list[str]:
    """Return names that are similar to a misspelt one.

    Args:
        name: The misspelt name.
        known: All valid names.

    Returns:
        At most three names, the most similar first.
    """
    names = sorted(known)
    by_fold = {n.casefold(): n for n in names}
    found = difflib.get_close_matches(name.casefold(), list(by_fold), n=3, cutoff=0.5)
    return [by_fold[f] for f in found]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name. Its hint shows similar names, or all valid names if none is similar.

    Args:
        kind: What the name stands for, such as "method".
        name: The unknown name.
        known: All valid names.

    Returns:
        The error, which the caller raises.
    """
    names = sorted(known)
    near = close_matches(name, names)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}", f"{hint} (`wpn-bench list` shows all)")


def import_attribute(path: str) -> Any:
    """Import and return the object that a string `"module:attribute"` names."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def source_digest(part: Any) -> str | None:
    """Return the SHA-256 over the Python files of a plug-in's package, or None for a built-in part.

    The package is the outermost one that is not a namespace package. For a module outside any package, only its own
    file counts.
    """
    names = part.__module__.split(".")
    if names[0] == __name__.split(".")[0]:
        return None
    for depth in range(1, len(names) + 1):
        file = getattr(sys.modules[".".join(names[:depth])], "__file__", None)
        if file:
            break
    else:
        return None
    root = Path(file).parent if Path(file).stem == "__init__" else None
    files = sorted(root.rglob("*.py")) if root else [Path(file)]
    return digest_of({str(f.relative_to(root)) if root else f.name: digest_file(f) for f in files})


class Registry(Generic[T]):
    """All parts of one kind, by name.

    Args:
        kind: Kind of the parts in the singular, such as "method".
        parts: Maps the name of each built-in part to its `"module:attribute"`.
    """

    def __init__(self, kind: str, parts: Mapping[str, str]) -> None:
        self.kind = kind
        self._parts = dict(parts)
        self._plugins: set[str] = set()
        self._plugins_read = False

    def _all(self) -> dict[str, str]:
        if not self._plugins_read:
            for point in entry_points(group=f"wpn_bench.{self.kind}s"):
                # A plug-in must not replace a built-in part, because results would silently change under a known name.
                if self._parts.setdefault(point.name, point.value) == point.value:
                    self._plugins.add(point.name)
            self._plugins_read = True
        return self._parts

    def names(self) -> list[str]:
        """Return the names of all parts, including those of plug-ins."""
        return list(self._all())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def is_ours(self, name: str) -> bool:
        """Return whether the part is built into wpn-bench, and not from a plug-in."""
        return name in self._all() and name not in self._plugins

    def get(self, name: str) -> T:
        """Import and return a part.

        Raises:
            UserError: The name is unknown, or a plug-in cannot be imported.
        """
        parts = self._all()
        if name not in parts:
            raise unknown_name(self.kind.replace("_", " "), name, parts)
        try:
            part: Any = import_attribute(parts[name])
        except Exception as e:
            if name not in self._plugins:
                raise
            module = parts[name].partition(":")[0]
            raise UserError(
                f"the {self.kind} {name!r} of the plug-in {module} cannot be loaded ({type(e).__name__}: {e})",
                "fix or uninstall it",
            ) from e
        return part
