"""`make up` for real: servers, worker, deployments, a schedule that fires, what the browser shows,
kills, `make down`.

Slow: it starts everything on free ports. CI runs it as a step of its own. The order of the tests is
the order of a day.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from browser import Page, chromium
from mlflow import MlflowClient
from operations import Shop, free_port
from waiting import wait_for

from ospo import tracking
from ospo.files import read_json
from ospo.steps.replace import attempt
from servers import processes
from servers.place import LIMIT, POOL, leader
from servers.server import training_page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DEPLOYMENTS = {
    "pipeline-dataset/nightly-esci",
    "pipeline-dataset/nightly-hm",
    "champion-check/weekly-champion-check",
    "sft/sft",
    "ospo/ospo",
    "evaluate/evaluate",
}
PICTURES = Path(os.environ.get("OSPO_PICTURES", ""))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = Shop(tmp_path_factory.mktemp("operations") / "ospo")
    try:
        yield shop
    finally:
        shop.servers("down")


@pytest.fixture(scope="module")
def client(shop: Shop) -> MlflowClient:
    return MlflowClient(shop.place.mlflow)


def marks(shop: Shop) -> list[psutil.Process]:
    return [
        p
        for name in ("mlflow", "prefect", "worker", "page")
        for p in processes.marked(shop.place.state, name)
    ]


def test_a_port_that_is_taken_is_one_clear_line_and_nothing_is_started(shop: Shop) -> None:
    other = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(shop.place.mlflow_port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: psutil.Process(other.pid).net_connections(), 30)
        done = shop.servers("up")
        assert (done.returncode, done.stdout) == (2, "")
        [line] = done.stderr.splitlines()
        assert (
            f"port {shop.place.mlflow_port}, for the mlflow server, is taken by process {other.pid}"
            in line
        )
        assert "make up MLFLOW_PORT=" in line
        assert not marks(shop)
        assert shop.servers("down").stdout == "nothing was running\n"
        assert other.poll() is None, "`make down` ends nothing that it did not start"
    finally:
        other.kill()
        other.wait()


def test_up_starts_everything_and_a_second_one_changes_nothing(shop: Shop) -> None:
    said = shop.up()
    for address in (
        shop.place.mlflow,
        shop.place.prefect,
        f"{shop.place.prefect}/work-pools/work-pool/{POOL}",
    ):
        assert address in said
    assert said.splitlines()[0] == f"try a query: {shop.place.page}"
    assert "Try a query" in httpx.get(shop.place.page, timeout=60).text
    names = ("mlflow", "prefect", "worker", "page")
    before = {name: leader(shop.place, name) for name in names}
    assert all(before.values())
    again = shop.up()
    assert "was running already" in again
    assert {name: leader(shop.place, name) for name in before} == before
    listed = shop.post("/deployments/filter", limit=50)
    flows = {flow["id"]: flow["name"] for flow in shop.post("/flows/filter", limit=50)}
    assert {f"{flows[item['flow_id']]}/{item['name']}" for item in listed} == DEPLOYMENTS
    for connection in psutil.net_connections("tcp"):
        if (
            connection.pid in {p.pid for p in marks(shop)}
            and connection.status == psutil.CONN_LISTEN
        ):
            assert connection.laddr.ip == "127.0.0.1"
    nightly = shop.deployment("pipeline-dataset/nightly-hm")
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    [schedule] = nightly["schedules"]
    assert schedule["schedule"]["cron"] == "0 4 * * *"
    limits = {
        item["name"]: item["limit"] for item in shop.post("/v2/concurrency_limits/filter", limit=50)
    }
    assert limits[LIMIT] == 1


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("sft/sft", {"dataset": "amazon"}, "'amazon' is not one of ['esci', 'hm']"),
        ("sft/sft", {"dataset": "hm", "steps": 0}, "'steps'"),
        ("ospo/ospo", {"dataset": "hm", "algorithm": "ppo"}, "'algorithm'"),
        ("ospo/ospo", {"dataset": "hm", "policy": "huge"}, "policy"),
        ("ospo/ospo", {"dataset": "hm", "overrides": ["no assignment"]}, "overrides"),
        ("evaluate/evaluate", {"dataset": "hm", "max_requests": "many"}, "max_requests"),
    ],
)
def test_parameters_have_types_and_limits(
    shop: Shop, name: str, parameters: dict[str, Any], says: str
) -> None:
    found = shop.deployment(name)
    assert set(found["parameter_openapi_schema"]["properties"]) >= {
        "dataset",
        "policy",
        "seed",
        "overrides",
    }
    assert all(
        item["description"] for item in found["parameter_openapi_schema"]["properties"].values()
    )
    answer = shop.ask(
        "POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters}
    )
    assert answer.status_code in (409, 422)
    assert says in answer.text


def test_a_schedule_fires_and_the_run_leaves_everything(shop: Shop, client: MlflowClient) -> None:
    nightly = shop.deployment("pipeline-dataset/nightly-esci")
    soon = (datetime.now(UTC) + timedelta(seconds=15)).replace(microsecond=0)
    shop.schedule(nightly, f"DTSTART:{soon:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=DAILY;COUNT=1")

    def due() -> Any:
        runs = shop.post(
            "/flow_runs/filter", deployments={"id": {"any_": [nightly["id"]]}}, limit=50
        )
        # Exactly that one: near two o'clock the nightly run is due as well.
        return [r["id"] for r in runs if datetime.fromisoformat(r["expected_start_time"]) == soon]

    [run_id] = wait_for(due, 60)
    run = shop.completed(run_id)
    assert run["auto_scheduled"]
    subflows = {
        r["name"] for r in shop.post("/flow_runs/filter", limit=50) if r["parent_task_run_id"]
    }
    steps = ("sft", "grpo", "ospo", "evaluate")
    assert subflows == {f"esci-{step}-nano" for step in steps}
    assert run["name"] == "esci-pipeline-nano"
    for key in ("evaluation-esci", "pipeline-esci"):
        [artifact] = shop.post("/artifacts/filter", artifacts={"key": {"any_": [key]}})
        assert "| raw query |" in artifact["data"]
        assert f"[Report]({shop.place.mlflow}/#/experiments/" in artifact["data"]
    assert artifact["flow_run_id"] == run_id
    assert f"[MLflow run of the pipeline]({shop.place.mlflow}/#/experiments/" in artifact["data"]

    experiment = client.get_experiment_by_name("ospo")
    runs = client.search_runs([experiment.experiment_id], "tags.`ospo.dataset` = 'esci'")
    kinds = {r.data.tags["ospo.kind"]: r for r in runs}
    assert set(kinds) == {"pipeline", "sft", "rl", "evaluation"}
    assert {r.info.status for r in runs} == {"FINISHED"}
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=shop.root, capture_output=True, text=True
    ).stdout.strip()
    locked = yaml.safe_load((shop.root / "dvc.lock").read_text())["stages"]["prepare@esci"]["outs"]
    for run in (kinds["sft"], kinds["rl"], kinds["evaluation"]):
        tags = run.data.tags
        facts = json.loads(
            Path(client.download_artifacts(run.info.run_id, "facts.json")).read_text()
        )
        assert tags["git.commit"] == head
        assert facts["packages"]["prefect"] == version("prefect")
        assert {out["md5"] for out in locked} <= set(facts["data"]["esci"].values())
        assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["esci"]
    others = [key for key in kinds["sft"].data.params if key.startswith(("rl.", "credit."))]
    assert set(others) == {
        "rl.max_prompt_tokens",
        "rl.max_completion_tokens",
        "rl.checkpoint_every",
        "rl.validation_requests",
    }, "of its own step only"
    parent = kinds["pipeline"]
    assert parent.data.tags["prefect.flow_run_id"] == run_id
    assert all(
        r.data.tags["mlflow.parentRunId"] == parent.info.run_id for r in runs if r is not parent
    )
    evaluation = kinds["evaluation"]
    assert evaluation.data.metrics["ospo/static/ndcg_at_10"] >= 0
    assert {"report.html", "summary.json", "evaluation.parquet"} <= {
        item.path for item in client.list_artifacts(evaluation.info.run_id)
    }
    versions = client.search_model_versions("name = 'ospo-rewriter-esci'")
    policies = [item for item in versions if "rule" not in item.tags]  # a rule may answer meanwhile
    assert [int(item.version) for item in policies] == [1]
    assert client.get_registered_model("ospo-rewriter-esci").aliases


def test_people_promote_and_the_champion_is_checked_on_fresh_data(
    shop: Shop, client: MlflowClient
) -> None:
    environment = shop.environment() | {"MLFLOW_TRACKING_URI": shop.place.mlflow}

    def ospo(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ospo.cli", *arguments]
        return subprocess.run(
            command, cwd=shop.root, env=environment, capture_output=True, text=True
        )

    assert "@challenger" in ospo("models").stdout
    assert (
        ospo("promote", "--dataset", "esci").stdout
        == "ospo-rewriter-esci: version 1 is the champion\n"
    )
    # Before, a rule answered: no policy of these few steps is better than the best rule.
    back = ospo("rollback", "--dataset", "esci")
    assert back.stdout == "ospo-rewriter-esci: version 2 is the champion again\n"
    assert client.get_model_version("ospo-rewriter-esci", "2").tags["rule"] == "raw"
    assert ospo("promote", "--dataset", "esci", "--version", "1").returncode == 0
    shop.completed(shop.run("champion-check/weekly-champion-check"))
    [artifact] = shop.post(
        "/artifacts/filter", artifacts={"key": {"any_": ["champion-check-esci"]}}
    )
    assert "| champion |" in artifact["data"]
    found = json.loads(client.get_model_version("ospo-rewriter-esci", "1").tags["fresh"])
    assert set(found["figures"]) == {"raw", "feedback", "champion"}  # no request has a history
    run = client.get_run(found["run_id"])
    assert (run.info.status, run.data.tags["ospo.model_version"]) == ("FINISHED", "1")
    old = read_json(shop.root / "data" / "prepared" / "esci" / "stats.json")
    fresh = (
        shop.root
        / "runs"
        / "esci"
        / "fresh"
        / "input"
        / "data"
        / "prepared"
        / "esci"
        / "stats.json"
    )
    assert read_json(fresh) != old


def test_the_browser_shows_runs_deployment_and_registry(
    shop: Shop, client: MlflowClient, tmp_path: Path
) -> None:
    if chromium() is None:
        pytest.skip("no Chromium")
    experiment = client.get_experiment_by_name("ospo").experiment_id
    [pipeline] = client.search_runs([experiment], "tags.`ospo.kind` = 'pipeline'")
    place = tracking.Place(experiment, pipeline.info.run_id)
    flow_run = pipeline.data.tags["prefect.flow_run_id"]
    note = pipeline.data.tags["mlflow.note.content"]
    link = note.partition("[Compare GRPO and OSPO](")[2].partition(")")[0]
    compare = f"{shop.place.mlflow}/{link}"
    page = Page()
    try:
        found = shop.deployment("pipeline-dataset/nightly-esci")
        pages = {
            "deployment": (
                f"{shop.place.prefect}/deployments/deployment/{found['id']}",
                ["nightly-esci", "At 02:00 AM", "esci-pipeline-nano"],
            ),
            "form": (
                f"{shop.place.prefect}/deployments/deployment/{found['id']}/run",
                ["dataset", "policy", "seed"],
            ),
            "registry": (
                f"{shop.place.mlflow}/#/models/ospo-rewriter-esci",
                ["ospo-rewriter-esci", "Version 1", "champion"],
            ),
            "version": (
                f"{shop.place.mlflow}/#/models/ospo-rewriter-esci/versions/1",
                ["nDCG@10", "policy_sha256"],
            ),
            "pipeline": (
                f"{shop.place.mlflow}/{place.link}",
                ["The whole job", "Compare GRPO and OSPO", "95 % interval"],
            ),
            "comparison": (compare, ["comparing 2 runs", "grpo-esci", "ospo-esci"]),
            "experiment": (
                training_page(shop.place, "ospo"),
                ["Sort: Created", "pipeline-esci", "matching runs"],
            ),
            "flow-run": (
                f"{shop.place.prefect}/runs/flow-run/{flow_run}",
                ["esci-pipeline-nano", "Completed", "Artifacts"],
            ),
        }
        for name, (address, words) in pages.items():
            page.visit(address)
            text = ""
            deadline = time.monotonic() + 60
            while (
                not all(word.casefold() in text for word in words) and time.monotonic() < deadline
            ):
                time.sleep(0.3)
                text = page.ask("document.body.innerText").casefold()
            page.photograph((PICTURES if PICTURES.name else tmp_path) / f"{name}.png")
            missing = [word for word in words if word.casefold() not in text]
            assert not missing, f"{name} lacks {missing}: {text[:2000]}"
    finally:
        page.close()


def test_two_runs_on_a_dataset_take_turns(shop: Shop) -> None:
    ids = [
        shop.run("sft/sft", dataset="hm", steps=4),
        shop.run("ospo/ospo", dataset="hm", algorithm="grpo", steps=3),
    ]
    for run_id in ids:
        shop.completed(run_id)
    tasks = shop.post("/task_runs/filter", flow_runs={"id": {"any_": ids}}, limit=50)
    spans = {
        run_id: (
            min(t["start_time"] for t in tasks if t["flow_run_id"] == run_id),
            max(t["end_time"] for t in tasks if t["flow_run_id"] == run_id),
        )
        for run_id in ids
    }
    first, second = sorted(spans.values())
    assert first[1] <= second[0], f"they worked at the same time: {spans}"


LONG = 100  # steps, of a second each while the run is held, and of a tenth once it is let go


def training(shop: Shop, dataset: str, seed: int) -> tuple[str, Path]:
    """Start a run that trains slowly until ``shop.hold`` is removed, and wait until it has a
    checkpoint.
    """
    shop.hold.touch()
    run_id = paced(shop, dataset, seed)
    folder = shop.root / "runs" / dataset / "grpo"

    wait_for(lambda: list(attempt(folder).glob("checkpoints/checkpoint-*/manifest.json")))
    return run_id, folder


def paced(shop: Shop, dataset: str, seed: int) -> str:
    """The run of ``training``: the same parameters give the same run."""
    return shop.run(
        "ospo/ospo",
        dataset=dataset,
        algorithm="grpo",
        steps=LONG,
        seed=seed,
        overrides=["retrievers.training=paced:Paced"],
    )


def steps_done(folder: Path) -> int:
    """Steps of a run so far."""
    return (attempt(folder) / "metrics.jsonl").read_bytes().count(b"\n")


def still_at_work(folder: Path, steps: int = 2) -> None:
    """The run makes some more steps, and has not ended with them."""
    wanted = steps_done(folder) + steps
    wait_for(lambda: steps_done(folder) >= wanted)
    assert not read_json(attempt(folder) / "step.json")["finished"], "it must still be training"


def sync(shop: Shop) -> None:
    """`ospo sync` in the copy."""
    environment = shop.environment() | {"MLFLOW_TRACKING_URI": shop.place.mlflow}
    command = [sys.executable, "-m", "ospo.cli", "sync"]
    subprocess.run(command, cwd=shop.root, env=environment, check=True, capture_output=True)


def test_prefect_restarted_in_the_middle_of_a_run(shop: Shop) -> None:
    run_id, folder = training(shop, "hm", seed=11)
    shop.kill("prefect", children=True)
    still_at_work(folder)
    shop.up()
    still_at_work(folder)
    shop.hold.unlink()
    shop.completed(run_id)
    assert read_json(folder / "step.json")["finished"]


def test_mlflow_killed_in_the_middle_of_a_run_loses_nothing(
    shop: Shop, client: MlflowClient
) -> None:
    run_id, folder = training(shop, "hm", seed=12)
    shop.kill("mlflow", children=True)
    still_at_work(folder)
    shop.hold.unlink()
    shop.completed(run_id)
    shop.up()
    sync(shop)
    mlflow_run = read_json(folder / "step.json")["run_id"]
    if mlflow_run.startswith("pending:"):
        pytest.fail("the run had begun before MLflow was killed")
    assert client.get_run(mlflow_run).info.status == "FINISHED"
    history = client.get_metric_history(mlflow_run, "reward")
    assert sorted(metric.step for metric in history) == list(range(1, LONG + 1))


def test_a_worker_killed_in_training_leaves_no_orphan_and_a_rerun_goes_on(
    shop: Shop, client: MlflowClient
) -> None:
    run_id, folder = training(shop, "hm", seed=13)
    shop.kill("worker", children=False)
    # Meanwhile a schedule comes round three times; one run makes up for them.
    weekly = shop.deployment("champion-check/weekly-champion-check")
    first = (datetime.now(UTC) + timedelta(seconds=12)).replace(microsecond=0)
    shop.schedule(weekly, f"DTSTART:{first:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=SECONDLY;COUNT=3")

    def weekly_runs() -> list[dict[str, Any]]:
        """Those of these three times: there is the one of next Sunday, too."""
        runs = shop.post(
            "/flow_runs/filter", deployments={"id": {"any_": [weekly["id"]]}}, limit=50
        )
        due = [(run, datetime.fromisoformat(run["expected_start_time"]) - first) for run in runs]
        return [run for run, after in due if timedelta(0) <= after < timedelta(seconds=3)]

    wait_for(lambda: not processes.marked(shop.place.state, "worker"))
    state = read_json(attempt(folder) / "step.json")
    assert not state["finished"]
    checkpoints = attempt(folder).glob("checkpoints/checkpoint-*")
    last = max(int(path.name.rpartition("-")[2]) for path in checkpoints)
    assert 1 <= last < LONG
    # It says so itself where MLflow answers within seconds; on a busy machine the next command says
    # it.
    sync(shop)
    assert client.get_run(state["run_id"]).info.status == "KILLED"
    wait_for(lambda: len(weekly_runs()) == 3 and datetime.now(UTC) > first + timedelta(seconds=3))
    shop.hold.unlink()
    shop.up()
    assert shop.state(run_id) == "CRASHED"

    def made_up() -> Any:
        states = [run["state_type"] for run in weekly_runs()]
        return states if all(s in ("COMPLETED", "CANCELLED") for s in states) else None

    assert sorted(wait_for(made_up)) == ["CANCELLED", "CANCELLED", "COMPLETED"]
    shop.completed(paced(shop, "hm", seed=13))
    finished = read_json(folder / "step.json")
    assert (finished["finished"], finished["run_id"]) == (True, state["run_id"]), (
        "the same MLflow run goes on"
    )
    found = client.get_run(state["run_id"])
    assert found.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(state["run_id"], "reward")]
    assert sorted(steps) == list(range(1, LONG + 1)), "every step once"


STAGES = ("dvc repro", "sft hm", "grpo hm", "ospo hm", "rewrite", "register")


def test_ctrl_c_at_every_stage_is_one_line_without_orphans_and_the_next_start_goes_on(
    shop: Shop,
) -> None:
    environment = shop.environment() | {
        "PREFECT_API_URL": f"{shop.place.prefect}/api",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "flows.demo"]  # both shops, side by side
    (shop.root / "params.yaml").write_text(
        (shop.root / "params.yaml").read_text().replace("seed: 0", "seed: 21", 1)
    )
    for stage in STAGES:
        demo = subprocess.Popen(
            command,
            cwd=shop.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        said = bytearray()
        seen = threading.Event()

        def read(
            said: bytearray = said,
            demo: Any = demo,
            stage: str = stage,
            seen: threading.Event = seen,
        ) -> None:
            while chunk := demo.stdout.read1(4096):
                said.extend(chunk)
                if stage.encode() in said:
                    seen.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert seen.wait(240), said.decode(errors="replace")[-3000:]
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
        code = demo.wait(timeout=90)
        reader.join(timeout=30)
        text = said.decode(errors="replace")
        assert code == 130, f"at {stage}: {text[-3000:]}"
        assert (
            text.rstrip().splitlines()[-1]
            == "ospo: interrupted; `make demo` resumes where it stopped"
        ), text[-3000:]
        left = _alive_in_session(demo.pid)
        working = [line for line in left if "multiprocessing.resource_tracker" not in line]
        assert not working, f"at {stage}: {working}"
        # The tracker ends when it sees that its parent has.
        wait_for(lambda demo=demo: not _alive_in_session(demo.pid), seconds=10)
    done = subprocess.run(
        command, cwd=shop.root, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(shop.root / "reports" / "demo.json")


def test_sigterm_is_one_line_and_the_next_start_resumes(shop: Shop) -> None:
    """While a flow runs, where Prefect handles the signal first."""
    environment = shop.environment() | {
        "PREFECT_API_URL": f"{shop.place.prefect}/api",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "flows.demo"]  # both shops, side by side
    (shop.root / "params.yaml").write_text(
        (shop.root / "params.yaml").read_text().replace("seed: 21", "seed: 22", 1)
    )
    log = shop.root / "sigterm.log"
    with log.open("wb") as stream:
        demo = subprocess.Popen(
            command, cwd=shop.root, env=environment, stdout=stream, stderr=stream
        )
        # Of what it prints, not of the files of SFT's attempt: those are there for a moment only.
        wait_for(lambda: b"sft hm" in log.read_bytes() or demo.poll() is not None)
        demo.terminate()
        assert demo.wait(timeout=120) == 143, log.read_text()[-3000:]
    wanted = "ospo: terminated; `make demo` resumes where it stopped"
    assert log.read_text().rstrip().splitlines()[-1] == wanted, log.read_text()[-3000:]
    log.unlink()


def _alive_in_session(session: int) -> list[str]:
    """Command lines of a session's processes."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (OSError, psutil.Error):
            continue  # gone meanwhile, or another user's
    return found


def test_dvc_killed_leaves_no_lock_in_the_way(shop: Shop) -> None:
    environment = shop.environment()
    repro = [sys.executable, "-m", "dvc", "repro", "--force", "prepare@hm"]
    process = subprocess.Popen(
        repro,
        cwd=shop.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    while b"> ospo" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert read_json(shop.root / ".dvc" / "tmp" / "rwlock"), (
        "a lock must have been left for this test to see anything"
    )
    again = [sys.executable, "-m", "dvc", "repro", "prepare@hm"]
    done = subprocess.run(again, cwd=shop.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Auto removed it from the lock file" in done.stderr


def test_half_dead_servers_are_named_and_down_clears_them_up(shop: Shop) -> None:
    found = leader(shop.place, "prefect")
    assert found is not None
    frozen = processes.marked(shop.place.state, "prefect")
    for process in frozen:
        process.suspend()
    done = shop.servers("up")
    assert done.returncode == 2
    assert (
        "the prefect server runs but does not answer. Fix: `make down`, then `make up`"
        in done.stderr
    )
    for process in frozen:
        process.resume()
    shop.kill("mlflow", children=False)
    if processes.marked(shop.place.state, "mlflow"):
        done = shop.servers("up")
        assert done.returncode == 2
        assert "the mlflow server died and left process" in done.stderr
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "mlflow server", "prefect worker"]
    )
    try:
        assert "stopped" in shop.servers("down").stdout
        assert not marks(shop)
        assert other.poll() is None, "a process with the like name is not ours"
    finally:
        other.kill()
        other.wait()
    assert shop.servers("down").stdout == "nothing was running\n"
    assert sorted(path.name for path in shop.place.state.glob("*.json")) == ["deployed.json"]


def test_a_process_id_used_again_is_not_ours(shop: Shop) -> None:
    """The note of a server that is long gone names a process id that someone else has now."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        note = {"pid": other.pid, "started": "another", "address": f"x:{free_port()}"}
        shop.place.file("mlflow").write_text(json.dumps(note))
        assert leader(shop.place, "mlflow") is None
        shop.servers("down")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        shop.place.file("mlflow").unlink(missing_ok=True)
