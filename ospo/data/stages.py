"""The data sets of params.yaml in dvc.yaml and prefect.yaml: stages and nightly runs for each.

DVC's templates can repeat a stage for each entry of a mapping, but know no optional dependency, and
``data`` of params.yaml holds more than data sets: the mappings are therefore written into dvc.yaml,
from params.yaml alone. Everything else in both files, comments included, stays as it is.
"""

from io import StringIO
from pathlib import Path
from typing import Any

from ospo.config import Config, HmData
from ospo.data.catalogue import SHOPS
from ospo.data.formats import format_of
from ospo.errors import InputError
from ospo.files import atomic_file
from ospo.paths import SAMPLE

DVC, PREFECT = Path("dvc.yaml"), Path("prefect.yaml")
_NIGHTLY = "nightly-"
_ENTRYPOINT = "flows.pipeline.pipeline_dataset"
# A slot of a stage that a format does not need: something that never changes its data.
_SPARE = ("ospo/errors.py", "ospo/files.py", "ospo/data/__init__.py")
_FIX = "restore it from the repository, then run `ospo data stages`"


Entries = dict[str, dict[str, str]] | list[str]


def stage_entries(config: Config) -> dict[str, Entries]:
    """Stage of dvc.yaml → the data sets that it is for; where its template needs to know more about
    one than its name, a mapping of that.
    """
    sets = config.data.sets
    sample = {
        name: {"format": section.format}
        for name, section in sets.items()
        if section.format in SHOPS and (name in SHOPS or Path(section.raw) == SAMPLE / name)
    }
    prepare = {}
    for name, section in sets.items():
        spare = list(_SPARE)
        code = [f"ospo/data/{module}" for module in format_of(section).code]
        first, second, third = [*code, *spare][:3]
        also = spare[-1]
        if isinstance(section, HmData):  # a template finds what is written in params.yaml alone
            written = "queries_file" in section.model_fields_set
            also = f"${{data.{name}.queries_file}}" if written else str(section.queries_file)
        prepare[name] = {
            "raw": f"${{data.{name}.raw}}",
            "also": also,
            "reader": first,
            "second": second,
            "third": third,
        }
    every = list(sets)
    return {"sample": sample, "prepare": prepare, "profile": every, "vectors": every}


def listed(root: Path = Path()) -> list[str]:
    """The data sets that dvc.yaml has stages for; none where there is no dvc.yaml."""
    if not (root / DVC).is_file():
        return []
    document = _load(root / DVC)
    return list(document["stages"]["vectors"]["foreach"])


def write_stages(config: Config, root: Path = Path()) -> list[Path]:
    """Bring dvc.yaml and prefect.yaml in ``root`` into line with ``config``; the files that
    changed.

    A file that is not there is passed over. Raises InputError, with nothing written, where one
    cannot be read.
    """
    texts = {}
    for name, change in ((DVC, _stages), (PREFECT, _deployments)):
        file = root / name
        if file.is_file():
            document = _load(file)
            try:
                changed = change(document, config)
            except (KeyError, TypeError, AttributeError):
                raise InputError(file, "", "has another form than expected", _FIX) from None
            if changed:
                texts[file] = _dump(document)
    for file, text in texts.items():
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(texts)


def _stages(document: Any, config: Config) -> bool:
    """Put the data sets into dvc.yaml's stages; whether that changed anything."""
    changed = False
    for stage, entries in stage_entries(config).items():
        held = document["stages"][stage]["foreach"]
        for name in [name for name in held if name not in entries]:
            held.remove(name) if isinstance(entries, list) else held.pop(name)
            changed = True
        for name in entries:
            if isinstance(entries, list):
                if name not in held:
                    held.append(name)
                    changed = True
            elif name not in held or dict(held[name]) != entries[name]:
                held[name] = _flow(entries[name])
                changed = True
    return changed


def _deployments(document: Any, config: Config) -> bool:
    """Put a nightly deployment for each data set into prefect.yaml; whether that changed
    anything.
    """
    deployments = document["deployments"]
    known = config.datasets
    before = [(item["name"], dict(item.get("parameters") or {})) for item in deployments]
    hours = {name: 2 * (number + 1) % 24 for number, name in enumerate(known)}
    gone = [
        item
        for item in deployments
        if item["entrypoint"] == _ENTRYPOINT and item["parameters"]["dataset"] not in known
    ]
    for item in gone:
        deployments.remove(item)
    there = [i["parameters"]["dataset"] for i in deployments if i["entrypoint"] == _ENTRYPOINT]
    for name in [name for name in known if name not in there]:
        deployments.insert(len(there), _nightly(document, name, hours[name]))
        there.append(name)
    for item in deployments:
        parameters = item.get("parameters") or {}
        if parameters.get("dataset", known[0]) not in known:
            parameters["dataset"] = known[0]
    return before != [(item["name"], dict(item.get("parameters") or {})) for item in deployments]


def _nightly(document: Any, name: str, hour: int) -> dict[str, Any]:
    definitions = document["definitions"]
    return {
        "name": f"{_NIGHTLY}{name}",
        "entrypoint": _ENTRYPOINT,
        "description": f"Prepare, train, evaluate and register on {name}. Unchanged steps are "
        "skipped.",
        "parameters": _flow({"dataset": name}),
        "schedules": [_flow({"cron": f"0 {hour} * * *", "timezone": "UTC"})],
        "concurrency_limit": definitions["alone"],
        "work_pool": definitions["pool"],
    }


def _flow(values: dict[str, Any]) -> Any:
    """A mapping that is written on one line."""
    from ruamel.yaml.comments import CommentedMap

    made = CommentedMap(values)
    made.fa.set_flow_style()
    return made


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _load(file: Path) -> Any:
    from ruamel.yaml.error import YAMLError

    try:
        return _yaml().load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        problem = f"cannot be read ({' '.join(str(error).split())[:100]})"
        raise InputError(file, "", problem, _FIX) from None


def _dump(document: Any) -> str:
    stream = StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()
