"""Sending an exported folder to a model hub."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ospo.errors import OspoError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class HubError(OspoError):
    """The hub did not take a folder, or there is no token for it; one line with the fix."""


def hub_token(repository: str) -> str:
    """The token from the environment, before anything is exported. HubError where it is missing,
    or where ``repository`` is no ORG/NAME.
    """
    if not _NAME.fullmatch(repository):
        raise HubError(f"--push {repository!r:.80}: is no ORG/NAME. Fix: for example my-shop/ospo")
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise HubError(
            "--push: no token. Fix: set HF_TOKEN to an access token of the hub that may write"
        )
    return token


def push(folder: Path, repository: str, token: str) -> str:
    """Upload ``folder`` as ``repository``, private where it is new; its address.

    The hub is that of HF_ENDPOINT. Raises HubError where it does not take it.
    """
    from huggingface_hub import HfApi

    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        with _online():
            api = HfApi(endpoint=endpoint, token=token)
            api.create_repo(repository, private=True, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder)
            return f"{api.endpoint}/{repository}"
    except Exception as error:  # the library's, its HTTP client's and the system's have no base
        reason = " ".join(str(error).split())
        raise HubError(
            f"--push {repository}: the hub did not take it ({reason:.200}); the folder {folder} is "
            "complete. Fix: check HF_TOKEN, the name and HF_ENDPOINT, then push again with --force"
        ) from error


@contextmanager
def _online() -> Iterator[None]:
    """The command line keeps the hub's library offline; a push is what the user asks for."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
