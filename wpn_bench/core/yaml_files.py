"""YAML files that may come from anybody: plain values or a `UserError`, never a surprise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError


def load_yaml(path: Path) -> Any:
    """The value in a UTF-8 YAML file, of texts, numbers, lists and mappings.

    `UserError` for a file that is missing, no file, not UTF-8 or no YAML; for tags that make Python objects, for aliases
    (a few lines of them can stand for more text than there is memory), for a key that stands twice in a mapping (YAML
    would silently take the last) and for half a surrogate pair (nothing could write it down again).
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(problem="aliases are not read: write the value out", problem_mark=mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    said = f"{key.value[:60]!r} stands twice"
                    raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            return super().construct_mapping(node, deep)

        def construct_yaml_str(self, node: Any) -> str:
            text = str(self.construct_scalar(node))
            text.encode()
            return text

    Loader.add_constructor("tag:yaml.org,2002:str", Loader.construct_yaml_str)
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    except FileNotFoundError as e:
        raise UserError(f"there is no file {path}", "check the path") from e
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path} is not UTF-8 (byte {e.start})", f"convert it, for instance: iconv -f latin1 -t utf-8 {path.name}"
        ) from e
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror or e})", "check what it is and its permissions") from e
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:
        # PyYAML lets through whatever it meets while it makes a number or a date of a text.
        raise UserError(f"{path} cannot be read ({' '.join(str(e).split())[:160]})", "mend the YAML") from e


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; `UserError` for anything else."""
    raw = load_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no settings", "write `name: value` lines, see tasks/presets/")
    return raw
