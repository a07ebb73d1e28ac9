"""``ospo data fetch``: download the official files, resumed where they broke off, checked by size
and sha256.

ESCI comes from its repository (Git LFS content at a fixed commit; sizes and checksums are those of
the LFS pointers). H&M comes from the competition's interface, for those who accepted its rules:
credentials are taken from the environment, sent to that host alone, and never printed. docs/data.md
names sources and licences.
"""

import base64
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from ospo.config import EsciData, HmData
from ospo.data.schemas import (
    ESCI_EXAMPLES,
    ESCI_PRODUCTS,
    HM_ARTICLES,
    HM_ARTICLES_NEEDED,
    HM_CUSTOMERS,
    HM_CUSTOMERS_NEEDED,
    HM_TRANSACTIONS,
    HM_TRANSACTIONS_NEEDED,
)
from ospo.errors import InputError
from ospo.files import sha256_file

_BLOCK = 1 << 20
_ESCI = (
    "https://media.githubusercontent.com/media/amazon-science/esci-data/"
    "7e0e3073f5ca36c0b5ff79e847cf99a74597645d/shopping_queries_dataset/"
)
_HM = "https://www.kaggle.com/api/v1/competitions/data/download/h-and-m-personalized-fashion-recommendations/"
_ACCEPT = "accept the competition's rules on its page and set KAGGLE_USERNAME and KAGGLE_KEY"


@dataclass(frozen=True)
class Source:
    """A file to download; size in bytes and sha256 where the publisher gives them, else the columns
    of its header.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    columns: tuple[str, ...] = ()


SOURCES = {
    EsciData.tag(): (
        Source(
            ESCI_EXAMPLES,
            _ESCI + ESCI_EXAMPLES,
            51_286_808,
            "4a735b693b4a424a6fc67f5be6e4c811495c488bbf66d02a602d308b2744263a",
        ),
        Source(
            ESCI_PRODUCTS,
            _ESCI + ESCI_PRODUCTS,
            1_108_857_465,
            "25124442d064d64b26f74082d6fa09438d679efc0c183cf28d19064a2b65a265",
        ),
    ),
    HmData.tag(): tuple(
        Source(name, _HM + name, columns=tuple(columns))
        for name, columns in (
            (HM_ARTICLES, HM_ARTICLES_NEEDED),
            (HM_CUSTOMERS, HM_CUSTOMERS_NEEDED),
            (HM_TRANSACTIONS, HM_TRANSACTIONS_NEEDED),
        )
    ),
}


class _Retry(Exception):
    """A failure that another attempt may mend."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never hand the credentials to another host, nor leave https."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            old_parts, new_parts = urlsplit(req.full_url), urlsplit(new.full_url)
            if old_parts.scheme == "https" and new_parts.scheme != "https":
                raise urllib.error.URLError("redirected away from https")
            if old_parts.netloc != new_parts.netloc:
                new.remove_header("Authorization")
        return new


def fetch(
    dataset: str,
    folder: str | Path,
    *,
    mirror: str | None = None,
    environment: Mapping[str, str] = os.environ,
    progress: Callable[[str, int, int | None], None] | None = None,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: float = 2.0,
) -> list[Path]:
    """Download the official raw files of ``dataset`` into ``folder``; files that are there and
    right stay.

    mirror: another base address that holds the same file names. progress: called with (file, bytes
    so far, total or None). attempts: tries of each file; one that brought new bytes does not count.
    timeout: seconds without a byte. Raises InputError: no credentials (H&M), no access, not found,
    gave up, wrong size or checksum, disk full.
    """
    if dataset not in SOURCES:
        raise InputError(dataset, "", "unknown dataset", f"choose one of {', '.join(SOURCES)}")
    sources = SOURCES[dataset]
    if mirror:
        sources = tuple(
            replace(source, url=f"{mirror.rstrip('/')}/{source.name}") for source in sources
        )
    headers = _credentials(environment) if dataset == HmData.tag() and not mirror else {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        download(source, folder, headers, progress, attempts, timeout, pause) for source in sources
    ]


def _credentials(environment: Mapping[str, str]) -> dict[str, str]:
    user, key = environment.get("KAGGLE_USERNAME", ""), environment.get("KAGGLE_KEY", "")
    if not user or not key:
        raise InputError(
            HmData.tag(), "KAGGLE_USERNAME, KAGGLE_KEY", "not set in the environment", _ACCEPT
        )
    token = base64.b64encode(f"{user}:{key}".encode()).decode()
    return {"Authorization": f"Basic {token}"}


def download(
    source: Source,
    folder: Path,
    headers: Mapping[str, str] | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: float = 2.0,
) -> Path:
    """Download one file into ``folder``. What has arrived waits in ``.NAME.part`` for the next try
    or the next run.
    """
    final, part = folder / source.name, folder / f".{source.name}.part"
    if final.exists() and (source.sha256 is None or sha256_file(final) == source.sha256):
        return final
    if urlsplit(source.url).scheme not in ("https", "http"):
        raise InputError(source.name, "", "address is not https", "name an https address as mirror")
    left = attempts
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _attempt(source, part, headers or {}, progress, timeout)
            break
        except _Retry as error:
            gained = part.exists() and part.stat().st_size > before
            left = attempts if gained else left - 1
            if left <= 0:
                fix = "check the connection and run the same command again: it resumes"
                raise InputError(
                    source.name, "", f"gave up after {attempts} tries ({error})", fix
                ) from None
            time.sleep(pause * (attempts - left))
        except OSError as error:
            fix = "free disk space or choose another folder (--out)"
            raise InputError(folder, source.name, f"cannot be written ({error})", fix) from None
    _verify(source, part)
    _place(source, part, final)
    return final


def _attempt(
    source: Source,
    part: Path,
    headers: Mapping[str, str],
    progress: Callable[[str, int, int | None], None] | None,
    timeout: float,
) -> None:
    """One request for the bytes that are still missing. Raises _Retry, InputError, or OSError from
    writing.
    """
    have = part.stat().st_size if part.exists() else 0
    if source.size is not None and have >= source.size:
        return
    resume = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(source.url, headers={**headers, **resume})  # noqa: S310 scheme checked above
    opener = urllib.request.build_opener(_Redirects)
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # the part is longer than the file: start again
                part.unlink(missing_ok=True)
                raise _Retry("the file has changed") from None
            raise _http_problem(source, error.code) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Retry(type(error).__name__) from None
    with response:
        if response.status != 206:
            have = 0  # the server does not resume
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else source.size
        with part.open("ab" if have else "wb") as stream:
            while True:
                try:
                    block = response.read1(_BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Retry(type(error).__name__) from None
                if not block:
                    break
                stream.write(block)
                have += len(block)
                if progress:
                    progress(source.name, have, total)
    if total is not None and have < total:
        raise _Retry(f"connection cut at {have:,} of {total:,} bytes")


def _http_problem(source: Source, code: int) -> Exception:
    host = urlsplit(source.url).hostname or ""
    if code in (401, 403):
        return InputError(source.name, "", f"{host} refuses access (HTTP {code})", _ACCEPT)
    if code == 429 or code >= 500:
        return _Retry(f"HTTP {code}")
    return InputError(
        source.name,
        "",
        f"{host} has no such file (HTTP {code})",
        "see docs/data.md for other sources",
    )


def _verify(source: Source, part: Path) -> None:
    """Size and checksum of a finished download; a wrong one is removed, so that the next run starts
    afresh.
    """
    size = part.stat().st_size
    problem = ""
    if source.size is not None and size != source.size:
        problem = f"has {size:,} bytes instead of {source.size:,}"
    elif source.sha256 is not None:
        with part.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != source.sha256:
            problem = f"has sha256 {found[:12]}… instead of {source.sha256[:12]}…"
    if problem:
        part.unlink()
        raise InputError(
            source.name,
            "",
            f"download {problem}",
            "download again, from another source if it stays so",
        )


def _place(source: Source, part: Path, final: Path) -> None:
    """Rename the download into place; one that came as a zip of the file is unpacked first."""
    whole = part
    if final.suffix != ".zip" and zipfile.is_zipfile(part):
        whole = part.with_suffix(".unpacked")
        try:
            with (
                zipfile.ZipFile(part) as archive,
                archive.open(final.name) as content,
                whole.open("wb") as target,
            ):
                shutil.copyfileobj(content, target, _BLOCK)
        except (KeyError, zipfile.BadZipFile, OSError, RuntimeError) as error:
            whole.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
            raise InputError(
                final, "", f"cannot be unpacked ({error})", "free disk space and download again"
            ) from None
    if source.columns:
        with whole.open("rb") as stream:
            head = stream.readline(1 << 16)
        found = {name.strip().strip('"') for name in head.decode("utf-8-sig", "replace").split(",")}
        if missing := [name for name in source.columns if name not in found]:
            whole.unlink()
            part.unlink(missing_ok=True)
            # A page that asks to log in, for one, comes as a success.
            seen = f"no column {missing[0]}; it begins {head[:40]!r}"
            problem = f"download is not the official file ({seen})"
            raise InputError(source.name, "", problem, _ACCEPT)
    whole.replace(final)
    part.unlink(missing_ok=True)
