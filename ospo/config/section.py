"""The base of every section of params.yaml, and why a section refuses a value."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator

PREFIXES: Mapping[str, str] = {
    "hub": "hub:ORG/MODEL",
    "path": "path:DIR",
    "wheel": "wheel:NAME",
    "rerank": "rerank:ORG/MODEL",
    "opensearch": "opensearch:URL/INDEX",
    "elasticsearch": "elasticsearch:URL/INDEX",
}
"""What stands before the colon of a name in params.yaml → how such a name is written."""
# YAML 1.2 has these numbers; PyYAML, which reads YAML 1.1, takes them for text: it wants a point,
# and a sign in the exponent.
_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")


class Refused(ValueError):
    """Why a section refuses a value, and the fix. ``key``: the key of the section that is meant,
    where it is looked at as a whole.
    """

    def __init__(self, problem: str, fix: str, key: str = "") -> None:
        super().__init__(problem)
        self.problem, self.fix, self.key = problem, fix, key


def lacks_name(prefix: str) -> Refused:
    """Why ``hub:`` by itself is refused."""
    return Refused(f"needs a name after {prefix}:", f"for example {PREFIXES[prefix]}")


def number(value: Any) -> Any:
    """The number that ``value`` is in YAML 1.2, such as 1e-4; anything else as it is."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


class Section(BaseModel):
    """A section of params.yaml. Unknown keys, wrong types, NaN and infinity are errors; values
    never change after loading.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:
        """1e-4 is a number where a number belongs; in a field of text it stays text."""
        if not isinstance(values, dict):
            return values
        read = dict(values)
        for name, field in cls.model_fields.items():
            kind: Any = field.annotation
            if kind is float and name in read:
                read[name] = number(read[name])
            elif float in get_args(kind) and isinstance(read.get(name), dict):
                read[name] = {key: number(item) for key, item in read[name].items()}
        return read
