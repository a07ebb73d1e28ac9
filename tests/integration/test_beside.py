"""Runs side by side: processes of their own that share Prefect's server, and end together."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from beside import LINGER, both, in_turn, one_fails
from conftest import ROOT
from prefect import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId
from prefect.testing.utilities import prefect_test_harness
from waiting import wait_for

from flows import demo
from flows import pipeline as job
from ospo.config import load_config
from ospo.errors import ConfigError, InputError, OspoError
from ospo.retrieval.base import RetrieverError

PARAMS = str(ROOT / "params.yaml")


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    """A server of its own, with a database of its own."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


def test_processes_share_the_server_and_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    state = both(str(tmp_path), return_state=True)
    found = state.result()
    assert len({seen["pid"] for seen in found} | {os.getpid()}) == 3
    with get_client(sync_client=True) as client:
        assert {seen["PREFECT_API_URL"] for seen in found} == {str(client.api_url)}
    assert {seen["PREFECT_UI_URL"] for seen in found} == {""}  # it has no pages to link to
    assert {seen["OMP_NUM_THREADS"] for seen in found} == {"1"}
    runs = [UUID(seen["run"]) for seen in found]
    wanted = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=runs))
    with get_client(sync_client=True) as client:  # tasks are told of on the way out

        def told() -> Any:
            tasks = client.read_task_runs(task_run_filter=wanted)
            return len(tasks) == 2 and all(task.state_name == "Completed" for task in tasks)

        wait_for(told)
    assert {seen["parent"] for seen in found} == {str(state.state_details.flow_run_id)}
    assert "OMP_NUM_THREADS" not in os.environ  # as it was
    assert "PREFECT_API_URL" not in os.environ
    assert "PREFECT_UI_URL" not in os.environ


def test_threads_and_a_server_that_the_user_chose_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with get_client(sync_client=True) as client:
        monkeypatch.setenv("PREFECT_API_URL", str(client.api_url))  # a server with pages
    found = both(str(tmp_path))
    assert {seen["OMP_NUM_THREADS"] for seen in found} == {"3"}
    assert {seen["PREFECT_UI_URL"] for seen in found} == {None}
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_the_first_that_fails_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        one_fails(str(tmp_path), "fail")
    assert str(caught.value) == "a.csv: query: is empty. Fix: fill it"
    (other,) = tmp_path.iterdir()
    assert time.time() - other.stat().st_mtime < LINGER / 2
    assert not psutil.pid_exists(int(other.name))


def test_a_process_that_vanishes_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="crash: its process ended with exit code 9"):
        one_fails(str(tmp_path), "crash")
    (other,) = tmp_path.iterdir()
    assert not psutil.pid_exists(int(other.name))


def test_no_more_at_a_time_than_places(tmp_path: Path) -> None:
    results = in_turn(str(tmp_path))
    assert set(results) == set("abc")
    assert max(results.values()) == 2


@pytest.mark.parametrize("ends", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_the_end_of_the_parent_ends_them(ends: str, tmp_path: Path) -> None:
    with get_client(sync_client=True) as client:
        env = os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": str(client.api_url)}
    folder = tmp_path / "there"
    folder.mkdir()
    with (tmp_path / "log").open("wb") as log:
        parent = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/beside.py"), str(folder)],
            env=env,
            stdout=log,
            stderr=log,
        )
        wait_for(lambda: len(list(folder.iterdir())) == 2, 240)
        os.kill(parent.pid, getattr(signal, ends))
        parent.wait(timeout=60)
    text = (tmp_path / "log").read_text()
    pids = [int(file.name) for file in folder.iterdir()]
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), 30)
    assert parent.returncode != 0, text


@pytest.mark.parametrize(
    "error",
    [
        OspoError("wrong"),
        InputError("a.csv", "query", "is empty", "fill it"),
        ConfigError("params.yaml", "seed", "is wrong", "mend it"),
        RetrieverError("bm25", "is away", "start it"),
    ],
)
def test_a_users_mistake_comes_back_from_another_process(error: OspoError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


def test_data_sets_train_one_after_the_other_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []
    monkeypatch.setattr(
        job, "pipeline_dataset", lambda name, **_: made.append((name, os.getpid())) or {"of": name}
    )
    for at_once in (None, 1):
        assert job.pipeline(["esci", "hm"], params=PARAMS, at_once=at_once) == {
            "esci": {"of": "esci"},
            "hm": {"of": "hm"},
        }
    assert job.pipeline(["hm", "hm"], params=PARAMS, at_once=2) == {"hm": {"of": "hm"}}
    assert made == [(name, os.getpid()) for name in ("esci", "hm", "esci", "hm", "hm")]


def test_the_demo_has_a_processor_per_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ospo.tracking.facts.processors", lambda: 2)
    both = ["esci", "hm"]
    assert demo.at_once(load_config(PARAMS), both) == 2
    assert demo.at_once(load_config(PARAMS, ["policy=smollm2-135m"]), both) == 1
    other = load_config(PARAMS, ["overrides={hm: [policy=smollm2-135m]}"])
    assert (demo.at_once(other, both), demo.at_once(other, ["esci"])) == (1, 2)
    own = load_config(PARAMS, ["data.hm.raw=/data/hm"])  # it may need all the memory
    assert (demo.at_once(own, both), demo.at_once(own, ["esci"])) == (1, 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert demo.at_once(load_config(PARAMS), both) == 1
