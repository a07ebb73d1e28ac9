"""Beyond one machine, as far as one machine can show: PostgreSQL, S3-compatible storage, a DVC
remote, queues.

The servers are real: Debian's PostgreSQL, and moto's S3 server. Kubernetes and Slurm themselves are
not here; their configuration is checked by the code that would use it, and Slurm's `srun` is
replaced by a script that runs its command.
"""

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from conftest import ROOT
from operations import Shop, free_port
from waiting import wait_for

from ospo.config import edit_params
from servers.server import answers

pytestmark = pytest.mark.timeout(900)
SCALE = ROOT / "configs" / "scale"


def test_the_kubernetes_pool_makes_a_job() -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker")
    from prefect.utilities.templating import apply_values

    template = json.loads((SCALE / "kubernetes-pool.json").read_text())
    chosen = {
        "image": "registry.example.org/ospo:1",
        "gpus": 8,
    }
    brought = {"command": "touch /tmp/here", "env": {"A": "1"}}
    assert not set(brought) & set(template["variables"]["properties"])
    assert template["variables"]["additionalProperties"] is False
    properties = template["variables"]["properties"]
    values = (
        {
            name: item["default"]
            for name, item in properties.items()
            if item.get("default") is not None
        }
        | chosen
        | brought
    )
    made = worker.KubernetesWorkerJobConfiguration(
        **apply_values(template["job_configuration"], values)
    )
    spec = made.job_manifest["spec"]["template"]["spec"]
    [container] = spec["containers"]
    assert "args" not in container
    assert "env" not in container
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8, "memory": "64Gi"}
    assert container["image"] == "registry.example.org/ospo:1"
    assert container["envFrom"] == [{"secretRef": {"name": "ospo-env"}}]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert made.job_manifest["spec"]["backoffLimit"] == 0
    assert made.namespace == "ospo"


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda f: f.stem
)
def test_accelerate_reads_the_configuration_and_the_batch_divides(file: Path) -> None:
    """As far as it goes without eight GPUs: the launcher takes the file, and the preset's batch
    splits evenly.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    from ospo.config import load_config
    from ospo.training.arguments import batch_shape

    arguments = launch_command_parser().parse_args(
        ["--config_file", str(file), "-m", "ospo.cli", "train"]
    )
    launched, _, _ = _validate_launch_command(arguments)
    assert (launched.num_processes, launched.use_fsdp, launched.use_deepspeed) == {
        "cpu-2": (2, False, False),
        "gpu-1": (1, False, False),
        "gpu-8-fsdp": (8, True, False),
        "gpu-8-deepspeed": (8, False, True),
    }[file.stem]
    policy = "nano" if file.stem == "cpu-2" else "paper"
    whole = [
        f"presets.{policy}.rl.per_device_batch_size=0",
        f"presets.{policy}.rl.gradient_accumulation=1",
    ]
    for overrides, completions in (([], None), (whole, 64)):
        config = load_config(ROOT / "params.yaml", [f"policy={policy}", *overrides])
        batch = batch_shape(config, launched.num_processes)
        step = batch.per_device * batch.processes * batch.accumulation
        assert step == (completions or (64 if policy == "nano" else 16 * launched.num_processes))


@pytest.mark.slow
def test_paper_trains_a_small_stand_in_as_far_as_it_goes_without_a_gpu(tmp_path: Path) -> None:
    """What `benchmarks.gpu` starts under FSDP 2: SFT and two OSPO steps of the preset, in one
    process.
    """
    from benchmarks.gpu import stand_in

    stand_in(tmp_path / "model")
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", "paper", "--policy", "fsdp"]
    done = subprocess.run(
        [*command, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "distributed": "NO",
        "steps": 2,
        "policy": True,
        "memory_gb": None,
    }


def test_no_password_is_in_a_configuration_file() -> None:
    for file in SCALE.iterdir():
        for line in file.read_text().splitlines():
            name, assigned, value = line.partition("=")
            if assigned and not line.startswith("#"):
                assert not any(
                    word in name.upper() for word in ("PASSWORD", "SECRET", "ACCESS_KEY")
                ), f"{file}: {name}"
                assert "@" not in value or "://" not in value


def test_a_dvc_remote_brings_the_data_to_another_clone(tmp_path: Path) -> None:
    """A folder that both machines see (NFS, say) as DVC's remote: the second clone pulls and has
    nothing to do.
    """
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        shutil.copytree(
            ROOT / "ospo", folder / "ospo", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
            shutil.copy(ROOT / name, folder / name)
        from conftest import TINY

        edit_params(
            [*TINY, "retrievers.training=static", "retrievers.unseen=[bm25]"],
            folder / "params.yaml",
        )
        dvc(folder, "init", "--no-scm", "-q")
        dvc(folder, "config", "core.analytics", "false")
        dvc(folder, "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    dvc(first, "repro", "prepare@hm")
    dvc(first, "push", "prepare@hm")
    shutil.copy(first / "dvc.lock", second / "dvc.lock")
    dvc(second, "pull", "prepare@hm")
    name = "data/prepared/hm/requests.parquet"
    assert (second / name).read_bytes() == (first / name).read_bytes()
    assert "Running stage 'prepare@hm'" not in dvc(second, "repro", "prepare@hm")


def dvc(folder: Path, *arguments: str) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def binaries() -> Path:
    """Debian's PostgreSQL programs; skips where they are missing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL (apt-get install postgresql)")
    return found[-1].parent


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A PostgreSQL server of its own with the empty databases mlflow and prefect; its port."""
    programs, folder, port = binaries(), tmp_path_factory.mktemp("postgres"), free_port()
    user: dict[str, object] = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        for parent in folder.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(programs / program), *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
            **user,
        )  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr + done.stdout

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "ospo", "--auth=trust", "-E", "UTF8")
    options = (
        f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    )
    run("pg_ctl", "-D", data, "-w", "-o", options, "-l", str(folder / "log"), "start")
    try:
        for name in ("mlflow", "prefect"):
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "ospo", name)
        yield port
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server of its own with the bucket ospo; its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: answers(f"{address}/moto-api/"), 60)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_the_whole_job_on_postgresql_and_s3_and_through_a_queue(
    postgres: int, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dict(
        line.split("=", 1)
        for line in (SCALE / "servers.env").read_text().splitlines()
        if line and line[0] != "#"
    )
    assert {
        "PGHOST",
        "PGPORT",
        "PGUSER",
        "MLFLOW_ARTIFACTS_DESTINATION",
        "MLFLOW_S3_ENDPOINT_URL",
    } <= set(given)
    given |= {"PGPORT": str(postgres), "MLFLOW_S3_ENDPOINT_URL": storage}
    given |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",  # pragma: allowlist secret
    }
    given["PREFECT_API_DATABASE_CONNECTION_URL"] = (
        f"postgresql+asyncpg://ospo@127.0.0.1:{postgres}/prefect"
    )
    queue = tmp_path / "bin" / "srun"  # what Slurm's srun does with its command once it has a node
    queue.parent.mkdir()
    queue.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/queued\nwhile [ "${{1#--}}" != "$1" ]; do shift; done\nexec "$@"\n'
    )
    queue.chmod(0o755)
    given["PATH"] = f"{queue.parent}{os.pathsep}{os.environ['PATH']}"
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    s3 = boto3.client("s3", endpoint_url=storage, region_name="us-east-1")
    s3.create_bucket(Bucket="ospo")
    shop = Shop(tmp_path / "ospo")
    edit_params(["tracking.uri=postgresql:///mlflow"], shop.root / "params.yaml")
    deployments = yaml.safe_load((shop.root / "prefect.yaml").read_text())
    queued = yaml.safe_load((SCALE / "slurm-deployment.yaml").read_text())["deployments"][0]
    queued["parameters"] |= {"dataset": "hm", "policy": "nano"}
    every = yaml.safe_dump(deployments | {"deployments": [*deployments["deployments"], queued]})
    worker = None
    try:
        shop.up()
        prefect = str(Path(sys.executable).parent / "prefect")
        pool = ["--type", "process", "--base-job-template", "configs/scale/slurm-pool.json"]
        inside = {"cwd": shop.root, "env": shop.place.environment() | shop.environment()}
        inside["env"] |= {"PREFECT_API_URL": f"{shop.place.prefect}/api"}
        subprocess.run([prefect, "work-pool", "create", "ospo-slurm", *pool], check=True, **inside)
        (shop.root / "prefect.yaml").write_text(every)
        subprocess.run(
            [prefect, "--no-prompt", "deploy", "--name", "ospo-slurm"], check=True, **inside
        )
        worker = subprocess.Popen([prefect, "worker", "start", "--pool", "ospo-slurm"], **inside)
        shop.completed(shop.run("pipeline-dataset/nightly-esci"))
        shop.completed(shop.run("ospo/ospo-slurm", dataset="hm", policy="nano", algorithm="ospo"))
        assert "--partition=gpu --gres=gpu:1" in (tmp_path / "queued").read_text()
        assert not list(shop.root.glob("*.db")), "nothing went to sqlite"
        assert not (shop.root / ".prefect" / "prefect.db").exists()
        assert not (shop.root / "mlartifacts").exists()
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket="ospo")["Contents"]]
        assert any(key.endswith("report.html") for key in keys)
        assert any(key.endswith("policy/model.safetensors") for key in keys)
        environment = shop.environment() | {"MLFLOW_TRACKING_URI": shop.place.mlflow}
        for arguments in (
            ("promote", "--dataset", "esci"),
            ("rewrite", "--dataset", "esci", "running shoes"),
        ):
            command = [sys.executable, "-m", "ospo.cli", *arguments]
            done = subprocess.run(
                command, cwd=shop.root, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        for database, table in (("mlflow", "runs"), ("prefect", "flow_run")):
            query = [
                str(binaries() / "psql"),
                "-h",
                "127.0.0.1",
                "-p",
                str(postgres),
                "-U",
                "ospo",
                "-d",
                database,
            ]
            counted = subprocess.run(
                [*query, "-Atc", f"select count(*) from {table}"], capture_output=True, text=True
            )
            assert int(counted.stdout) >= 5, counted.stderr
    finally:
        if worker is not None:
            worker.terminate()
            worker.wait()
        shop.servers("down")
