"""Reading, overriding and editing params.yaml; whatever is wrong there is one line with file, key
and fix.
"""

import difflib
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ospo.config.data import FORMATS, NAME
from ospo.config.retrievers import HOLDS_CREDENTIALS
from ospo.config.schema import Config
from ospo.config.section import PREFIXES, Refused, number
from ospo.config.strict_yaml import NotYaml, parse_yaml
from ospo.errors import ConfigError

_LIMIT = 1 << 18
"""Largest params.yaml, in bytes; the repository's has about 8,000."""


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at ``location`` (a pydantic error path, its last part the unknown
    key) knows.
    """
    current: Any = model
    for part in location[:-1]:
        if get_origin(current) is dict:
            current = get_args(current)[1]
        elif isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
    return (
        list(current.model_fields)
        if isinstance(current, type) and issubclass(current, BaseModel)
        else []
    )


# Kind of pydantic's error → fix, filled in from the error's context.
_FIXES = {
    "int_type": "write a whole number",
    "float_type": "write a number",
    "finite_number": "write a finite number",
    "bool_type": "write true or false",
    "literal_error": "choose one of these",
    "greater_than": "write a number above {gt}",
    "greater_than_equal": "write {ge} or more",
    "less_than": "write a number below {lt}",
    "less_than_equal": "write {le} or less",
    "too_short": "name at least {min_length}",
    "string_too_short": "name one",
    "string_unicode": "write the characters themselves",
    "string_type": "write text; what reads as another value goes into quotation marks",
}


def _fix(location: tuple[int | str, ...], error: Any) -> str:
    """What to do about a value of a wrong type or out of range."""
    kind, given = error["type"], error["input"]
    if kind == "list_type":
        single = isinstance(given, str | int | float)
        return f"write [{given!s:.60}]" if single else "write a list, such as [a, b]"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        known = _known_keys(Config, (*location, ""))
        return f"set one of its keys: {', '.join(known)}" if known else "write a section of keys"
    fix = _FIXES.get(kind, "compare it with the repository's params.yaml")
    return fix.format(**error.get("ctx", {}))


def _name_as_mapping(value: Any) -> tuple[str, str] | None:
    """(problem, fix) where YAML read a name as a mapping: ``hub:``, or ``hub: ORG/MODEL``."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    [(prefix, rest)] = value.items()
    if prefix not in PREFIXES:
        return None
    if rest is None:
        return f"needs a name after {prefix}:", f"for example {PREFIXES[prefix]}"
    return f"holds a space after {prefix}:", f"write it without, as in {PREFIXES[prefix]}"


def _config_error(file: Path, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    location = tuple(first["loc"])
    # Of a data set's section pydantic names the format too: data.shop.beir.raw.
    tag = location[2] if len(location) > 2 and location[0] == "data" else ""
    section: type[BaseModel] | None = FORMATS.get(str(tag))
    if section is not None:
        location = (*location[:2], *location[3:])
    key = ".".join(str(part) for part in location) or "(top level)"
    if first["type"] == "extra_forbidden":
        known = list(section.model_fields) if section else _known_keys(Config, location)
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else f"remove it; known keys here: {', '.join(known)}"
        )
        return ConfigError(file, key, "unknown key", hint)
    if first["type"] == "union_tag_not_found":
        fix = f"name its format: {', '.join(FORMATS)}"
        return ConfigError(file, f"{key}.format", "key is missing", fix)
    if first["type"] == "union_tag_invalid":
        problem = f"unknown format {first['ctx']['tag']:.60}"
        return ConfigError(file, f"{key}.format", problem, f"choose one of {', '.join(FORMATS)}")
    if first["type"] == "missing":
        return ConfigError(
            file, key, "key is missing", "add it (params.yaml of the repository shows its default)"
        )
    problem, fix = first["msg"].removeprefix("Value error, "), _fix(location, first)
    refused = first.get("ctx", {}).get("error")
    if isinstance(refused, Refused):
        problem, fix = refused.problem, refused.fix
        key = ".".join(filter(None, (key if location else "", refused.key))) or key
    if first["type"] == "string_type" and (said := _name_as_mapping(first["input"])):
        problem, fix = said
    if problem == HOLDS_CREDENTIALS:  # the value is not shown
        fix = "take it out; credentials belong in the environment (docs/retrievers.md)"
        return ConfigError(file, key, problem, fix)
    if not isinstance(first["input"], dict | BaseModel):
        problem += f", got {reprlib.repr(first['input'])}"
    return ConfigError(file, key, problem, fix)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_LIMIT + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            file, "", "file not found", "run from the repository root or pass --params FILE"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            file, "", f"cannot be read ({error})", "make it a readable UTF-8 file"
        ) from None
    if len(content) > _LIMIT:
        raise ConfigError(
            file, "", f"is larger than {_LIMIT:,} bytes", "start from the repository's params.yaml"
        )
    try:
        values = parse_yaml(text)
    except NotYaml as error:
        raise ConfigError(file, f"line {error.line}", f"is not YAML ({error})", error.fix) from None
    if not isinstance(values, dict):
        raise ConfigError(
            file,
            "(top level)",
            "is not a mapping of keys",
            "start from the repository's params.yaml",
        )
    return values


def set_value(values: dict[str, Any], key: str, value: Any, file: Path) -> None:
    """Set dotted ``key`` in the nested mapping ``values``. Raises ConfigError where a parent is no
    section.
    """
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            raise ConfigError(
                file,
                key,
                f"{parent!r} is not a section",
                "name an existing key, for example reward.k",
            )
        values = values[parent]
    values[last] = value


def parse_override(text: str, file: Path) -> tuple[str, Any]:
    """``KEY=VALUE`` with VALUE in YAML → (key, value). Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(
            file, text, "an override must read KEY=VALUE", "for example --set reward.k=20"
        )
    if not value:
        return key.strip(), ""
    try:
        return key.strip(), parse_yaml(value)
    except NotYaml as error:
        raise ConfigError(
            file, key.strip(), f"the value is not YAML ({error})", error.fix
        ) from None


def load_config(
    file: str | Path = "params.yaml",
    overrides: list[str] | None = None,
    dataset: str | None = None,
) -> Config:
    """Read and validate params.yaml, with ``KEY=VALUE`` overrides applied first. ``dataset``: the
    data set that is worked on, whose own (``overrides`` of params.yaml) come before these.

    Raises ConfigError (one line: file, key, fix) for an unknown key, a wrong type or a value out of
    range, in any data set's own parameters too.
    """
    file = Path(file)
    values = _read_yaml(file)
    if not overrides and values.get("overrides"):
        _checked(values, file)
    held = values.get("overrides")
    own = held.get(dataset) if isinstance(held, dict) and dataset else None
    for text in [*(own if isinstance(own, list) else []), *(overrides or [])]:
        set_value(values, *parse_override(str(text), file), file)
    return _validated(values, file)


def _checked(values: dict[str, Any], file: Path) -> Config:
    """The parameters of all data sets. ConfigError where those of one, too, would be wrong."""
    config = _validated(values, file)
    for name in config.overrides:
        try:
            own_config(config, name, file)
        except ConfigError as error:
            key = f"overrides.{name}: {error.field}"
            raise ConfigError(file, key, error.problem, error.fix) from None
    return config


def _validated(values: dict[str, Any], file: Path) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _config_error(file, error) from None


def with_dataset(
    name: str,
    values: dict[str, Any],
    file: str | Path = "params.yaml",
    overrides: Sequence[str] = (),
) -> Config:
    """The parameters with one more data set, and its own parameters ``overrides``. ConfigError
    where it is there already or invalid.
    """
    file = Path(file)
    document = _read_yaml(file)
    held = document.get("data")
    if isinstance(held, dict) and name in held:
        fix = f"choose another name, or change its keys: ospo config set data.{name}.KEY=VALUE"
        raise ConfigError(file, f"data.{name}", "is there already", fix)
    if not NAME.fullmatch(name):
        problem = f"{name[:60]!r} cannot name a data set"
        raise ConfigError(file, "data", problem, "use a to z, 0 to 9, - and _, at most 40")

    data = {**held, name: values} if isinstance(held, dict) else held
    changed = {**document, "data": data}
    if overrides:
        changed["overrides"] = {**(document.get("overrides") or {}), name: list(overrides)}
    return _checked(changed, file)


def add_dataset(
    name: str,
    values: dict[str, Any],
    file: str | Path = "params.yaml",
    overrides: Sequence[str] = (),
) -> Config:
    """Write the data set ``name`` with the keys ``values`` into params.yaml, before ``data.split``,
    and its own parameters ``overrides``, keeping its comments. ConfigError, with the file as it is,
    where ``with_dataset`` has one.
    """
    file = Path(file)
    config = with_dataset(name, values, file, overrides)

    def put(document: Any) -> None:
        data = document["data"]
        at = list(data).index("split") if "split" in data else len(data)
        data.insert(at, name, _as_read(values, config.data.sets[name].model_dump()))
        if overrides:
            _put_overrides(document, name, list(overrides))

    _rewrite(file, put)
    return config


def own_config(config: Config, dataset: str, file: Path = Path("params.yaml")) -> Config:
    """The parameters ``config`` of all data sets, with those of one. ConfigError, which names
    ``file``, where that does not go together.
    """
    if dataset not in config.overrides:
        return config
    values = config.model_dump()
    for text in config.overrides[dataset]:
        set_value(values, *parse_override(text, file), file)
    return _validated(values, file)


def set_overrides(name: str, texts: list[str], file: str | Path = "params.yaml") -> Config:
    """Write the data set's own ``KEY=VALUE`` texts into params.yaml, in place of those it has,
    keeping its comments; the parameters for that data set. ConfigError, with the file as it is, for
    invalid ones.
    """
    file = Path(file)
    values = _read_yaml(file)
    held = values.get("overrides")
    values["overrides"] = {**(held if isinstance(held, dict) else {}), name: texts}
    config = _checked(values, file)

    def put(document: Any) -> None:
        _put_overrides(document, name, texts)

    if not isinstance(held, dict) or held.get(name) != texts:
        _rewrite(file, put)
    return own_config(config, name, file)


def _put_overrides(document: Any, name: str, texts: list[str]) -> None:
    if not isinstance(document.get("overrides"), dict):
        document["overrides"] = {}
    document["overrides"][name] = list(texts)


def edit_params(assignments: list[str], file: str | Path = "params.yaml") -> Config:
    """Write ``KEY=VALUE`` assignments into params.yaml, keeping its comments; invalid ones leave
    the file as it is.
    """
    file = Path(file)
    config = load_config(file, assignments)
    for name in config.overrides:  # what is written must go together with each data set's own
        own_config(config, name, file)

    def put(document: Any) -> None:
        for text in assignments:
            key, value = parse_override(text, file)
            read: Any = config.model_dump()
            for part in key.split("."):
                read = read.get(part) if isinstance(read, dict) else None
            set_value(document, key, _as_read(value, read), file)

    _rewrite(file, put)
    return config


def _as_read(value: Any, read: Any) -> Any:
    """``value``, with numbers where ``read``, what the sections made of it, has numbers."""
    if isinstance(value, dict) and isinstance(read, dict):
        return {key: _as_read(item, read.get(key)) for key, item in value.items()}
    return number(value) if isinstance(read, float) else value


def _rewrite(file: Path, change: Callable[[Any], None]) -> None:
    """Change params.yaml as a document that keeps its comments."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    from ospo.files import atomic_file

    class Representer(RoundTripRepresenter):
        """Writes 5e-07 as 5.0e-07, which readers of YAML 1.1 take for a number too."""

    def represent_float(representer: Any, value: float) -> Any:
        text = repr(value)
        text = text if "." in text else text.replace("e", ".0e")
        return representer.represent_scalar("tag:yaml.org,2002:float", text)

    Representer.add_representer(float, represent_float)
    reader = YAML()
    reader.Representer = Representer
    reader.preserve_quotes = True
    reader.width = 200
    document = reader.load(file.read_text(encoding="utf-8"))
    change(document)
    with atomic_file(file) as temporary:
        reader.dump(document, temporary)
