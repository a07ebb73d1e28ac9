"""YAML as params.yaml may hold it: safe tags, no key twice, shallow, text that can be printed.

PyYAML takes the last of two equal keys, and ends in a traceback, or after minutes, for input that
nests thousands of lists or holds a number of thousands of digits.
"""

from collections.abc import Hashable
from typing import Any

import yaml

_DEEPEST = 32
"""Deepest nesting of lists and mappings; params.yaml has five levels."""
_FIX = "check indentation, colons, quotes and brackets there"


class NotYaml(Exception):
    """Text that is not such YAML: ``str(error)`` is the problem in a few words."""

    def __init__(self, problem: str, line: int = 1, fix: str = _FIX):
        super().__init__(problem)
        self.line, self.fix = line, fix


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses what a parameter file cannot mean."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, with its depth counted: the parser works its way down by recursion."""
        self.depth += 1
        try:
            if self.depth > _DEEPEST:
                line = self.peek_event().start_mark.line + 1
                raise NotYaml(f"more than {_DEEPEST} levels of nesting", line)
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys differ."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                name = self.construct_object(key)
                if name in seen:
                    line = key.start_mark.line + 1
                    raise NotYaml(f"key {name!r} appears twice", line, "keep one of the two")
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A value. Numbers and dates that Python cannot hold are not values."""
        line = node.start_mark.line + 1
        try:
            value = super().construct_object(node, deep)
        except OverflowError:  # 1:59:59:…, a float to base 60
            raise NotYaml("a number that is too large", line, "write a smaller number") from None
        except ValueError as error:  # an integer of thousands of digits, the thirtieth of February
            problem = "too many digits" if "digits" in str(error) else str(error)
            raise NotYaml(f"{problem}: {node.value[:20]}…", line, "write another value") from None
        if isinstance(value, int) and value.bit_length() > 63:
            raise NotYaml("an integer beyond 64 bits", line, "write a smaller number")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise NotYaml("half of a surrogate pair", line, "write the character itself")
        return value


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises NotYaml."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        except (OverflowError, ValueError):  # of the scanner, for "\\UFFFFFFFF"
            fix = "write the character itself"
            raise NotYaml("an escape beyond Unicode", loader.line + 1, fix) from None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise NotYaml(str(problem)[:120], mark.line + 1 if mark else 1) from None
