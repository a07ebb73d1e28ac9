"""What a step is made from, as hashes: prepared data, source code, library versions."""

import hashlib
import importlib.metadata
from functools import lru_cache
from pathlib import Path
from typing import Any

from ospo import tracking
from ospo.errors import OspoError
from ospo.files import sha256_file, sha256_json
from ospo.paths import PREPARED

_PACKAGE = Path(__file__).parents[1]
# Whatever training or evaluation imports, except for what reads parameters and files
# (tests/integration/test_steps.py looks).
_SHARED_SOURCES = (
    "config/languages.py",
    "config/algorithms.py",
    "credit",
    "data/dataset.py",
    "data/request.py",
    "data/schemas.py",
    "policy",
    "retrieval",
    "reward",
)
TRAINING_SOURCES = (
    *_SHARED_SOURCES,
    "distributed.py",
    "evaluation/hits.py",
    "integrations/trl.py",
    "metrics.py",
    "training",
)
# The step's page is one of its results.
_PAGE_SOURCES = tuple(
    f"reports/{name}.py" for name in ("charts", "evaluation", "headline", "pages", "wording")
)
EVALUATION_SOURCES = (
    *_SHARED_SOURCES,
    *_PAGE_SOURCES,
    "data/query_key.py",
    "evaluation",
    "metrics.py",
)
DATA_SOURCES = ("data",)
_TRAINING_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "spacy")
_SEARCH_LIBRARIES = ("sentence-transformers", "bm25s", "tantivy")
_EVALUATION_LIBRARIES = ("torch", "transformers", "peft", "spacy", *_SEARCH_LIBRARIES)


def file_md5(path: Path) -> str:
    """Hex md5 of a file's bytes: DVC's name for content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def data_md5(dataset: str) -> dict[str, str]:
    """Path → md5 of a dataset's prepared files, which is DVC's name for them too.

    The files themselves are read, not dvc.lock: `ospo prepare` may have written others since.
    """
    folder = PREPARED / dataset
    if not any(folder.glob("*.parquet")):
        raise OspoError(f"{folder}: no prepared data. Fix: run `dvc repro vectors@{dataset}`")
    files = [*sorted(folder.glob("*.parquet")), *sorted(folder.glob("stats.json"))]
    return {file.as_posix(): _known_md5(file.absolute(), *_stamp(file)) for file in files}


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache
def _known_md5(file: Path, _size: int, _time: int) -> str:
    # Cached: gigabytes are read once per process, as long as the file keeps size and time.
    return file_md5(file)


@lru_cache
def source_hash(parts: tuple[str, ...]) -> str:
    """Hash of these modules and folders of the package; "" is all of it."""
    files = sorted(
        file
        for part in parts
        for file in (
            [_PACKAGE / part] if part.endswith(".py") else _PACKAGE.joinpath(part).rglob("*.py")
        )
    )
    return sha256_json(
        [(file.relative_to(_PACKAGE).as_posix(), sha256_file(file)) for file in files]
    )


@lru_cache
def _versions(libraries: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name} {importlib.metadata.version(name)}" for name in libraries)


def training_inputs(dataset: str) -> dict[str, Any]:
    """What every policy of a dataset is made from."""
    return {
        "data": data_md5(dataset),
        "source": source_hash(TRAINING_SOURCES),
        "libraries": _versions(_TRAINING_LIBRARIES),
    }


def evaluation_inputs() -> dict[str, Any]:
    """What every evaluation is made with."""
    return {
        "source": source_hash(EVALUATION_SOURCES),
        "libraries": _versions(_EVALUATION_LIBRARIES),
    }


def prepared_md5(dataset: str) -> dict[str, str]:
    """{dataset: one md5 for all its prepared files}, as runs carry it in a tag."""
    return {dataset: tracking.dataset_digest(data_md5(dataset))}


def log_prepared(run: tracking.Recorder, dataset: str, context: str) -> None:
    """Record the prepared files as input of ``run``; ``context``: what they are used for."""
    run.log_dataset(dataset, PREPARED / dataset, data_md5(dataset), context=context)
