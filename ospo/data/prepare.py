"""Preparation and the sample shops, as the command line and the DVC stages call them."""

from pathlib import Path
from typing import Any

from ospo.config import Config
from ospo.data.formats import format_of
from ospo.data.source import Source
from ospo.data.stats import Stats
from ospo.data.writer import WRITE_ERRORS, write_prepared
from ospo.errors import InputError
from ospo.files import atomic_directory


def prepare(
    dataset: str,
    raw_dir: str | Path | None,
    out_dir: str | Path,
    config: Config,
    evaluation_only: bool = False,
) -> dict[str, Any]:
    """Raw files in ``raw_dir`` → prepared tables in ``out_dir``, which appears (or is replaced) as
    a whole.

    dataset: a name of params.yaml, which says the format; raw_dir None: the folder named there.
    evaluation_only: the data serve to evaluate policies that exist, so training requests may be
    missing. Returns the content of stats.json. Raises InputError with nothing written.
    """
    options = config.dataset(dataset)
    raw = Path(options.raw if raw_dir is None else raw_dir)
    stats = Stats(used={"language": options.spoken})
    source = Source(dataset, raw, options, config, evaluation_only)
    prepared = format_of(options).read(source, stats)
    try:
        with atomic_directory(out_dir) as temporary:
            write_prepared(prepared, temporary, stats)
    except WRITE_ERRORS as error:
        reason = str(error).strip().splitlines()[0][:200]
        fix = "free disk space or choose another folder (--out)"
        raise InputError(out_dir, "", f"cannot be written ({reason})", fix) from None
    return stats.as_dict()
