"""The doctor: every fault it is for is put in, and must be found with what to do."""

import json
import os
import socket
from pathlib import Path

import pytest
from conftest import ROOT

from ospo import doctor
from ospo.config import edit_params
from ospo.doctor import Finding
from ospo.tracking.journal import Journal


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and constraints.txt and nothing else."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(doctor, "PORTS", {})
    for name in ("params.yaml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    return tmp_path


def found(place: Path, level: str, words: str) -> Finding:
    findings = doctor.examine(place / "params.yaml", place)
    hits = [finding for finding in findings if finding.level == level and words in finding.what]
    assert len(hits) == 1, doctor.report(findings)
    assert hits[0].fix or level == "ok"
    return hits[0]


def test_a_fresh_clone_has_no_failure(place: Path) -> None:
    findings = doctor.examine(place / "params.yaml", place)
    assert not [finding for finding in findings if finding.level == "fail"], doctor.report(findings)
    assert sorted(path.name for path in place.iterdir()) == ["constraints.txt", "params.yaml"], (
        "nothing is changed"
    )
    assert "dvc repro" in doctor.report(findings)


def test_a_wrong_version_is_named_with_its_consequence(place: Path) -> None:
    file = place / "constraints.txt"
    text = file.read_text()
    from importlib.metadata import version

    assert f"fastapi=={version('fastapi')}" in text
    file.write_text(
        text.replace(f"fastapi=={version('fastapi')}", "fastapi==0.1") + "\nno-such-package==1.0\n"
    )
    assert "does not start" in found(place, "fail", "fastapi is").what
    found(place, "fail", "no-such-package is not installed")


def test_a_bad_parameter_is_found_and_the_rest_is_still_looked_at(place: Path) -> None:
    file = place / "params.yaml"
    file.write_text(file.read_text() + "\nnonsense: 1\n")
    found(place, "fail", "nonsense")
    found(place, "ok", "DVC holds no lock")


def test_missing_raw_files_of_your_own_folder(place: Path) -> None:
    file = place / "params.yaml"
    file.write_text(file.read_text().replace("raw: data/sample/esci", "raw: my/esci"))
    assert "ospo config set data.esci.raw" in found(place, "fail", "my/esci lacks").fix


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["retrievers.engine.query=nofile.json"], "nofile.json: file not found"),
        (
            ["retrievers.training=opensearch:https://search/shop"],
            "configs/engine-query.json: file not found; retrievers.engine.query names it",
        ),
        (["retrievers.unseen=[path:my/model]"], "retrievers: path:my/model: my/model is not there"),
        (
            ["policy=paper", "presets.paper.model.source=path:my/llm"],
            "presets.paper.model.source: my/llm is not there",
        ),
        (["data.hm.queries_file=my.jsonl"], "data.hm.queries_file: my.jsonl is not there"),
    ],
)
def test_what_the_parameters_name_is_looked_for(place: Path, changes: list[str], says: str) -> None:
    found(place, "ok", "what params.yaml names is there")
    edit_params(changes, place / "params.yaml")
    found(place, "fail", says)
    file = says.partition(": file")[0] if "file not found" in says else ""
    for name in (file, "my/model", "my/llm", "my.jsonl"):
        if name and name in says:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text('{"query": {"match": {"title": "{{text}}"}}}')
    found(place, "ok", "what params.yaml names is there")


def test_a_policy_that_needs_a_gpu(place: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    file = place / "params.yaml"
    file.write_text(file.read_text().replace("policy: nano", "policy: paper"))
    found(place, "fail", "no GPU")


def test_little_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)
    found(place, "fail", "GB free on the disk")


@pytest.mark.parametrize("alive", [True, False])
def test_a_lock_that_dvc_left_behind(place: Path, alive: bool) -> None:
    folder = place / ".dvc" / "tmp"
    folder.mkdir(parents=True)
    pid = os.getpid() if alive else 2**22 + 1  # above Linux's largest process id
    (folder / "rwlock").write_text(
        json.dumps({"/x/data": {"write": {"pid": pid, "cmd": "repro"}, "read": []}})
    )
    if alive:
        found(place, "ok", "DVC holds no lock")
    else:
        assert found(place, "warn", "left behind").fix == "rm .dvc/tmp/rwlock"


def test_a_port_that_someone_else_holds(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(doctor, "PORTS", {"MLflow": other.getsockname()[1]})
        monkeypatch.setattr(doctor, "_answers", lambda url: False)
        found(place, "warn", "is taken")
    found(place, "ok", "is free")


def test_servers_of_make_up_that_died(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / ".run"
    folder.mkdir()
    note = {"pid": 2**22 + 1, "started": "x", "address": "http://127.0.0.1:9"}
    (folder / "mlflow.json").write_text(json.dumps(note))
    assert (
        found(place, "warn", "the mlflow server that `make up` started runs no longer").fix
        == "make up"
    )
    found(place, "warn", "no worker")
    monkeypatch.setattr(doctor, "PORTS", {"MLflow": 5000})
    found(place, "ok", "port 9 is free for the MLflow server")  # the port in use, not the usual one


def test_a_server_that_does_not_answer(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI",
        "http://user:secret@127.0.0.1:9",  # pragma: allowlist secret
    )
    assert "secret" not in doctor.report(doctor.examine(place / "params.yaml", place))
    found(place, "fail", "does not answer")


def test_records_that_wait_for_mlflow(place: Path) -> None:
    journal = Journal(place / "runs" / "esci" / "sft", "k")
    journal.append({"op": "batch"})
    assert not [
        f for f in doctor.examine(place / "params.yaml", place) if "wait to be sent" in f.what
    ], "the run is alive"
    journal.close()
    assert found(place, "warn", "records of 1 run").fix == "ospo sync"


def test_a_check_that_breaks_is_itself_the_finding(place: Path) -> None:
    (place / ".dvc" / "tmp").mkdir(parents=True)
    (place / ".dvc" / "tmp" / "rwlock").write_text("{broken")
    findings = doctor.examine(place / "params.yaml", place)
    assert [f for f in findings if f.level == "fail" and f.what.startswith("DVC: JSONDecodeError")]
    assert "problem(s)" in doctor.report(findings)
