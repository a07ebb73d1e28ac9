"""Passwords and tokens do not reach messages."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from ospo.tracking.store import describe, without_password

SECRET = "s3cr3t"  # pragma: allowlist secret


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"http://user:{SECRET}@mlflow.example:5000", "http://mlflow.example:5000"),
        (f"postgresql://ospo:p@{SECRET}@db.example/mlflow", "postgresql://db.example/mlflow"),
        (f"postgresql://ospo:p/{SECRET}@db.example/mlflow", "postgresql://db.example/mlflow"),
        (f"https://{SECRET}@mlflow.example/a", "https://mlflow.example/a"),
        (f"https://mlflow.example/a?token={SECRET}&x={SECRET}", "https://mlflow.example/a?token=…&x=…"),
        (f"postgresql:///mlflow?password={SECRET}", "postgresql:///mlflow?password=…"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)  # fmt: skip
def test_addresses_are_shown_without_secrets(address: str, shown: str) -> None:
    assert without_password(address) == shown
    text = describe(ValueError(f"request to\n {address} failed;\nwrite to nobody@example.org"))
    assert SECRET not in text
    assert "nobody@example.org" in text
    assert "\n" not in text


def test_named_secrets_in_messages() -> None:
    text = describe(ValueError(f"dsn host=db password={SECRET} user=ospo, Token: {SECRET}"))
    assert SECRET not in text
    assert "user=ospo" in text


@pytest.mark.parametrize(
    ("user", "fix"),
    [
        (f"ospo:{SECRET}", "start the database"),
        (f"ospo:p%40{SECRET}", "start the database"),
        (f"ospo:p@{SECRET}", "write %40 for @"),  # SQLAlchemy takes it for part of the host
    ],
)
def test_a_wrong_postgresql_address_is_one_line_within_seconds(
    tmp_path: Path, user: str, fix: str
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    uri = f"postgresql://{user}@127.0.0.1:9/mlflow"
    command = [sys.executable, "-m", "ospo.cli", "models", "--params", str(ROOT / "params.yaml")]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--set", f"tracking.uri={uri}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("ospo: tracking.uri: ")
    assert "postgresql://127.0.0.1:9/mlflow" in line
    assert f"Fix: {fix}" in line
    assert SECRET not in line
    assert time.monotonic() - began < 60
