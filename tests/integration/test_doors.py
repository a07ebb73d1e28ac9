"""The Prefect server of `make up` as a web page from elsewhere meets it: a foreign origin, a name
that its owner points to this machine, a flow run that brings a command.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ROOT
from operations import free_port
from starlette.testclient import TestClient

from ospo.hosts import allowed_hosts
from servers.place import HOST, POOL, Place, allowed_origins
from servers.prefect_app import guarded
from servers.server import commands, health

pytestmark = pytest.mark.timeout(600)
PAGE = "https://evil.example"
PASSWORD = "user:a-test-password"  # pragma: allowlist secret


def start(place: Place, **settings: str) -> tuple[subprocess.Popen[bytes], httpx.Client]:
    """The server as `make up` starts it, and a client of it."""
    command, environment = commands(place)["prefect"]
    environment |= {"PYTHONPATH": str(ROOT), **settings}
    with (place.root / "prefect.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 240
    while not health(place, "prefect"):
        text = (place.root / "prefect.log").read_text()
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.3)
    return process, httpx.Client(base_url=f"{place.prefect}/api", timeout=120)


def new_place(folder: Path) -> Place:
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return Place(folder, free_port(), free_port())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("doors")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PREFECT_API_URL", "PREFECT_HOME", "OSPO_ALLOWED_HOSTS"):
            patch.delenv(name, raising=False)
        yield new_place(folder)


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[httpx.Client]:
    process, client = start(place)
    yield client
    process.terminate()
    process.wait()


def prepare(place: Place, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `make up` does once the server answers."""
    return subprocess.run(
        [sys.executable, "-m", "servers.deployed", "prepare", "1"],
        cwd=ROOT,
        env=place.environment() | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def deployment(place: Place, api: httpx.Client) -> str:
    """A deployment in the pool, which was there before with Prefect's own template."""
    api.post("/work_pools/", json={"name": POOL, "type": "process"}).raise_for_status()
    done = prepare(place)
    assert done.returncode == 0, done.stderr
    flow = api.post("/flows/", json={"name": "sft"}).json()["id"]
    made = api.post("/deployments/", json={"name": "sft", "flow_id": flow, "work_pool_name": POOL})
    made.raise_for_status()
    return str(made.json()["id"])


@pytest.mark.parametrize("origin", [PAGE, "null", "http://127.0.0.1:1", "http://localhost"])
def test_requests_of_other_pages_are_refused(
    api: httpx.Client, deployment: str, origin: str
) -> None:
    before = api.post("/flow_runs/count", json={}).json()
    body = json.dumps({"job_variables": {"command": "touch /tmp/here"}})
    for headers in (
        {"Content-Type": "application/json"},
        {"Content-Type": "text/plain"},  # needs no permission of the server to be sent
        {},
    ):
        answer = api.post(
            f"/deployments/{deployment}/create_flow_run",
            content=body,
            headers={"Origin": origin, **headers},
        )
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    preflight = api.options(
        "/deployments/filter",
        headers={"Origin": origin, "Access-Control-Request-Method": "POST"},
    )
    assert preflight.status_code == 403
    assert api.get("/health", headers={"Origin": origin}).status_code == 403
    assert api.post("/flow_runs/count", json={}).json() == before


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4200", "127.0.0.1.evil.example", "localhost.evil", ""]
)
def test_other_names_for_this_machine_are_refused(api: httpx.Client, host: str) -> None:
    assert api.get("/health", headers={"Host": host}).status_code == 400


def test_the_servers_own_pages_are_answered(api: httpx.Client, place: Place) -> None:
    for name in (HOST, "localhost"):
        own = f"http://{name}:{place.prefect_port}"
        answer = api.post(
            "/deployments/filter",
            json={},
            headers={"Origin": own, "Host": f"{name}:{place.prefect_port}"},
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == own
    page = httpx.get(place.prefect, headers={"Accept": "text/html"}, follow_redirects=True)
    assert "<html" in page.text
    settings = httpx.get(f"{place.prefect}/ui-settings", timeout=60).json()
    assert settings["api_url"] == f"{place.prefect}/api"


def test_the_background_services_run(api: httpx.Client, place: Place, deployment: str) -> None:
    """As under `prefect server start`: the scheduler makes the runs of a schedule."""
    body = [{"schedule": {"interval": 3600.0}, "active": True}]
    api.post(f"/deployments/{deployment}/schedules", json=body).raise_for_status()
    deadline = time.monotonic() + 150
    wanted = {"deployments": {"id": {"any_": [deployment]}}}
    while not any(
        run["auto_scheduled"] for run in api.post("/flow_runs/filter", json=wanted).json()
    ):
        assert time.monotonic() < deadline, (place.root / "prefect.log").read_text()[-3000:]
        time.sleep(1)


@pytest.mark.parametrize(
    "variables",
    [
        {"command": "touch /tmp/here"},
        {"env": {"LD_PRELOAD": "/tmp/evil.so"}},
        {"env.LD_PRELOAD": "/tmp/evil.so"},
        {"working_dir": "/tmp"},
    ],
)
def test_a_run_brings_no_command_environment_or_folder(
    api: httpx.Client, deployment: str, variables: dict[str, Any]
) -> None:
    refused = api.post(
        f"/deployments/{deployment}/create_flow_run", json={"job_variables": variables}
    )
    assert refused.status_code == 422, refused.text
    plain = api.post(f"/deployments/{deployment}/create_flow_run", json={})
    assert plain.status_code == 201, plain.text
    changed = api.patch(f"/flow_runs/{plain.json()['id']}", json={"job_variables": variables})
    assert changed.status_code == 422, changed.text
    flow = api.get(f"/deployments/{deployment}").json()["flow_id"]
    made = api.post(
        "/deployments/",
        json={
            "name": "mine",
            "flow_id": flow,
            "work_pool_name": POOL,
            "job_variables": variables,
        },
    )
    assert made.status_code in (409, 422), made.text


def test_the_worker_makes_nothing_of_them_either(
    api: httpx.Client, place: Place, deployment: str
) -> None:
    """The template decides, should values get past the server's check."""
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.workers.process import ProcessJobConfiguration

    template = api.get(f"/work_pools/{POOL}").json()["base_job_template"]
    values = {"command": "touch /tmp/here", "env": {"A": "1"}, "working_dir": "/tmp", "env.B": "2"}
    with temporary_settings({PREFECT_API_URL: f"{place.prefect}/api"}):
        made = asyncio.run(
            ProcessJobConfiguration.from_template_and_values(
                base_job_template=template, values=values
            )
        )
    assert (made.command, made.env, made.working_dir) == (None, {}, None)
    assert made.stream_output


def test_a_password_is_used_by_all_who_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", PASSWORD)
    place = new_place(tmp_path)
    assert place.environment()["PREFECT_API_AUTH_STRING"] == PASSWORD
    process, api = start(place)
    try:
        assert api.post("/deployments/filter", json={}).status_code == 401
        done = prepare(place)
        assert done.returncode == 0, done.stderr
        without = prepare(place, PREFECT_API_AUTH_STRING="")
        assert without.returncode != 0
        page = httpx.get(f"{place.prefect}/ui-settings", timeout=60).json()
        assert page["auth"] == "BASIC", "the pages ask for it"
        worker, environment = commands(place)["worker"]
        with (tmp_path / "worker.log").open("wb") as log:
            working = subprocess.Popen(
                worker,
                cwd=ROOT,
                env=environment | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
        try:
            deadline = time.monotonic() + 120
            while not health(place, "worker"):
                assert working.poll() is None, (tmp_path / "worker.log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "worker.log").read_text()
                time.sleep(0.5)
        finally:
            working.terminate()
            working.wait()
    finally:
        process.terminate()
        process.wait()


async def answer_all(scope: Any, receive: Any, send: Any) -> None:
    """An application that takes whatever reaches it."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def test_configured_names_are_answered_and_websockets_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from starlette.testclient import WebSocketDenialResponse

    monkeypatch.setenv("OSPO_ALLOWED_HOSTS", "ospo.example.org, Other.Example.Org")
    assert allowed_hosts()[3:] == ["ospo.example.org", "other.example.org"]
    assert "https://ospo.example.org" in allowed_origins(4200)
    client = TestClient(guarded(answer_all, 4200), base_url="http://ospo.example.org")
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"Origin": "https://ospo.example.org"}).status_code == 200
    assert client.get("/", headers={"Origin": PAGE}).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"Host": "[::1]:4200"}).status_code == 200
    name = {"Host": "ospo.example.org"}
    with client.websocket_connect("/", headers={"Origin": "https://ospo.example.org", **name}):
        pass
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/", headers={"Origin": PAGE, **name}),
    ):
        pass
    assert refused.value.status_code == 403


def test_mlflow_answers_only_its_own_pages(place: Place) -> None:
    """MLflow refuses by itself; `make up` tells it the names and pages of this machine."""
    _, environment = commands(place)["mlflow"]
    assert "*" not in environment["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert f"{HOST}:{place.mlflow_port}" in environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS") is None
