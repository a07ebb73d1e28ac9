"""Preparation and the sample shops, as the command line and the DVC stages call them."""

from pathlib import Path
from typing import Any

from ospo.config import DATASETS, Config
from ospo.data.esci import prepare_esci
from ospo.data.hm import prepare_hm
from ospo.data.stats import Stats
from ospo.data.writer import WRITE_ERRORS, write_prepared
from ospo.errors import InputError
from ospo.files import atomic_directory

_PREPARE = {"esci": prepare_esci, "hm": prepare_hm}


def prepare(
    dataset: str,
    raw_dir: str | Path,
    out_dir: str | Path,
    config: Config,
    evaluation_only: bool = False,
) -> dict[str, Any]:
    """Raw files in ``raw_dir`` → prepared tables in ``out_dir``, which appears (or is replaced) as
    a whole.

    evaluation_only: the data serve to evaluate policies that exist, so training requests may be
    missing. Returns the content of stats.json. Raises InputError with nothing written.
    """
    if dataset not in _PREPARE:
        raise InputError(
            str(dataset), "", "unknown dataset", f"choose one of {', '.join(DATASETS)}"
        )
    stats = Stats()
    prepared = _PREPARE[dataset](Path(raw_dir), config, stats, evaluation_only)
    try:
        with atomic_directory(out_dir) as temporary:
            write_prepared(prepared, temporary, stats)
    except WRITE_ERRORS as error:
        reason = str(error).strip().splitlines()[0][:200]
        fix = "free disk space or choose another folder (--out)"
        raise InputError(out_dir, "", f"cannot be written ({reason})", fix) from None
    return stats.as_dict()
