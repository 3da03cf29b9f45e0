"""Public functions with more than one argument document their arguments, result and errors.

ruff checks the form of docstrings (rule `D`), but has no rule that asks for a section. Files that pyproject.toml excludes
from rule `D` are excluded here, too.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parent.parent
Function = ast.FunctionDef | ast.AsyncFunctionDef


def checked_files() -> list[Path]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ignores = settings["tool"]["ruff"]["lint"]["per-file-ignores"]
    excluded = [pattern for pattern, rules in ignores.items() if "D" in rules]
    files = [path.relative_to(ROOT) for path in sorted((ROOT / "wpn_bench").rglob("*.py"))]
    return [path for path in files if not any(fnmatch(str(path), pattern) for pattern in excluded)]


def public_functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Functions of a module and methods of its classes, unless they or their class are private."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def own_statements(function: Function) -> Iterator[ast.AST]:
    """Nodes of a function without those of functions defined within it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


def problems_of(function: Function) -> list[str]:
    """What the docstring of a function lacks. A method without a docstring overrides a documented one."""
    text = ast.get_docstring(function)
    if text is None:
        return []
    lines = text.splitlines()
    documented = argument_names(lines)
    kinds = function.args
    arguments = [*kinds.posonlyargs, *kinds.args, *kinds.kwonlyargs, kinds.vararg, kinds.kwarg]
    declared = {argument.arg for argument in arguments if argument is not None} - {"self", "cls"}
    if documented != declared and (documented or len(declared) > 1):
        return [f"describes the arguments {sorted(documented)}, not {sorted(declared)}"]
    returns = function.returns is not None and ast.unparse(function.returns) not in (
        "None",
        "NoReturn",
        "Iterator[None]",
    )
    raises = any(isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) for node in own_statements(function))
    wanted = {"Returns:": returns and "Yields:" not in lines, "Raises:": raises}
    missing = [section for section, needed in wanted.items() if needed and section not in lines]
    return [f"lacks {section}" for section in missing] if len(declared) > 1 else []


def argument_names(lines: list[str]) -> set[str]:
    """Names that an Args section describes."""
    start = lines.index("Args:") + 1 if "Args:" in lines else len(lines)
    section = takewhile(lambda line: not line or line.startswith(" "), lines[start:])
    return {found[1] for line in section if (found := re.match(r" {4}\*{0,2}(\w+):", line))}


def test_public_functions_document_their_arguments() -> None:
    found = []
    for path in checked_files():
        for function in public_functions(ast.parse((ROOT / path).read_text(encoding="utf-8")).body):
            found += [f"{path}:{function.lineno} {function.name} {problem}" for problem in problems_of(function)]
    assert not found, "\n".join(found)


def test_what_a_docstring_lacks_is_found() -> None:
    code = """
def undocumented(a: int, b: int) -> int:
    '''Add.'''

def outdated(a: int, b: int) -> int:
    '''Add.

    Args:
        a: A number.
        c: A number.

    Returns:
        The sum.
    '''

def incomplete(a: int, b: int) -> int:
    '''Add.

    Args:
        a: A number.
        b: A number.
    '''
    if a < 0:
        raise ValueError("negative")
    return a + b
"""
    undocumented, outdated, incomplete = (problems_of(function) for function in public_functions(ast.parse(code).body))
    assert undocumented == ["describes the arguments [], not ['a', 'b']"]
    assert outdated == ["describes the arguments ['a', 'c'], not ['a', 'b']"]
    assert incomplete == ["lacks Returns:", "lacks Raises:"]
