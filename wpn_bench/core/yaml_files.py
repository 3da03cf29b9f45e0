"""Read YAML files of unknown origin. Every invalid file raises a `UserError`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError


def load_yaml(path: Path) -> Any:
    """Read a UTF-8 YAML file made of texts, numbers, lists and mappings.

    Raises:
        UserError: The file is missing, cannot be read, or is not valid UTF-8 or YAML. Also rejected are tags that
            create Python objects, aliases (a few lines can expand to more text than fits into memory), duplicate keys
            (YAML would silently use the last one) and unpaired surrogates (they cannot be written as UTF-8).
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(problem="aliases are not supported: repeat the value", problem_mark=mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    problem = f"duplicate key {key.value[:60]!r}"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
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
            f"{path} is not UTF-8 (byte {e.start})",
            f"convert it, for instance: iconv -f latin1 -t utf-8 {path.name}",
        ) from e
    except OSError as e:
        raise UserError(
            f"{path} cannot be read ({e.strerror or e})", "check that it is a file and that you may read it"
        ) from e
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:
        # PyYAML does not catch the errors that Python raises when a text is no valid number or date.
        raise UserError(f"{path} cannot be read ({' '.join(str(e).split())[:160]})", "fix the YAML") from e


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: The file is invalid, or is not a mapping.
    """
    raw = load_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} contains no settings", "write `name: value` lines, see tasks/presets/")
    return raw
