"""Load test of the served rewriter: ``python -m benchmarks.serving`` → a table and
.benchmarks/serving.json.

Compares, in one run on one machine and with the same requests, decoding and answer length:

* ``transformers loop``: plain ``model.generate`` for one request after the other, as a first script
  would do it;
* ``rewriter``: ``Rewriter.rewrite`` with one request a call, and with 32;
* ``server``: a real ``mlflow models serve`` of the registered champion, with 1, 4 and 16 clients at
  once, each time with other requests; then with 16 clients that ask those again.

Without a registered champion (or with --scratch) a freshly drawn ``nano`` policy is registered in a
temporary folder; its answers run to the token limit, so its figures are the slow end. Latency and
throughput vary with whatever else runs; processor time a request (of the server's process where
there is one) hardly does.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import psutil

from benchmarks import start
from ospo import registry, tracking
from ospo.config import Config, load_config
from ospo.files import write_json

WORDS = [
    "red",
    "blue",
    "linen",
    "cotton",
    "summer",
    "winter",
    "running",
    "casual",
    "slim",
    "kids",
    "women",
    "men",
    "shoes",
    "shirt",
    "dress",
    "jacket",
    "bag",
]


def make_queries(count: int, seed: int = 0) -> list[str]:
    """Different queries of two to five words; every third is a JSON object with a history of one to
    six purchases.
    """
    random = np.random.default_rng(seed)
    queries = []
    for number in range(count):
        query = " ".join(random.choice(WORDS, size=random.integers(2, 6)))
        if number % 3 == 0:
            purchases = [
                {"name": " ".join(random.choice(WORDS, size=3)), "type": "Shirt", "colour": "Blue"}
                for _ in range(random.integers(1, 7))
            ]
            query = json.dumps({"query": query, "history": purchases})
        queries.append(query)
    return queries


def scratch_registry(config: Config, folder: Path) -> Config:
    """A registry in ``folder`` with an untrained policy of the chosen preset's size."""
    from ospo.policy.weights import create_policy, save_policy

    config = config.model_copy(
        update={
            "tracking": config.tracking.model_copy(update={"uri": f"sqlite:///{folder}/mlflow.db"})
        }
    )
    model = config.preset.model
    network, tokenizer = create_policy(model, [*WORDS, *make_queries(2000)], config.seed)
    save_policy(network, tokenizer, model, folder / "model")
    with tracking.run(config, "benchmark", kind="benchmark", directory=folder / "step") as run:
        pass
    registry.register(
        config,
        "esci",
        registry.Candidate(
            algorithm="sft",
            model_dir=folder / "model",
            run_id=run.id,
            data_md5="none",
            summary={"sft": {"none": 0.0}},
        ),
    )
    return config


@contextlib.contextmanager
def served(config: Config, dataset: str, threads: int) -> Iterator[int]:
    """A real ``mlflow models serve`` of the champion on 127.0.0.1; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "mlflow"),
        "models",
        "serve",
        "--env-manager",
        "local",
    ]
    command += [
        "-m",
        f"models:/{registry.model_name(dataset)}@champion",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(config, Path()),
        "OMP_NUM_THREADS": str(threads),
        # The command starts uvicorn by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 180
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise RuntimeError(log.read().decode(errors="replace")[-3000:]) from None
                    time.sleep(0.2)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def measure(call: Callable[[list[str]], object], groups: list[list[str]]) -> dict[str, float]:
    """Latency of ``call`` on each group of requests, one call after the other."""
    seconds = []
    begun, worked = time.perf_counter(), time.process_time()
    for group in groups:
        start = time.perf_counter()
        call(group)
        seconds.append(time.perf_counter() - start)
    total, cpu = time.perf_counter() - begun, time.process_time() - worked
    return figures(seconds, sum(map(len, groups)), total, cpu)


def measure_server(port: int, queries: list[str], clients: int) -> dict[str, float]:
    """Latency and throughput of the server with ``clients`` connections that each wait for their
    answer.
    """
    lock, waiting, seconds, failures = threading.Lock(), list(queries), [], []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                if not waiting:
                    return
                query = waiting.pop()
            body = json.dumps({"inputs": [query]})
            start = time.perf_counter()
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            with lock:
                seconds.append(time.perf_counter() - start)
                if response.status != 200 or len(json.loads(content)["predictions"]) != 1:
                    failures.append(content)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begun, worked = time.perf_counter(), processor_seconds(port)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} requests failed, the first with {failures[0][:500]!r}")
    total = time.perf_counter() - begun
    return figures(seconds, len(queries), total, processor_seconds(port) - worked)


def processor_seconds(port: int) -> float:
    """Processor time so far of the process that listens on ``port``."""
    for connection in psutil.net_connections("tcp"):
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == port
            and connection.pid
        ):
            times = psutil.Process(connection.pid).cpu_times()
            return float(times.user + times.system)
    raise RuntimeError(f"nothing listens on port {port}")


def figures(seconds: list[float], requests: int, total: float, cpu: float) -> dict[str, float]:
    """p50 and p99 latency and processor time a request in milliseconds, and requests per second."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "per_second": round(requests / total, 1),
        "cpu_ms": round(cpu / requests * 1000, 1),
    }


def transformers_loop(directory: Path, max_new_tokens: int) -> Callable[[list[str]], object]:
    """What is compared against: load by transformers, generate for one prompt after the other."""
    import torch

    from ospo.policy.prompts import extract_answer, prompt_messages
    from ospo.policy.weights import load_policy
    from ospo.serving.requests import parse_request

    model, tokenizer = load_policy(directory)
    model.eval()

    def call(queries: list[str]) -> list[str]:
        answers = []
        for query in queries:
            messages = prompt_messages(parse_request(query))
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            text = tokenizer.decode(
                out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            answers.append(extract_answer(text)[0])
        return answers

    return call


def run(config: Config, dataset: str, requests: int, threads: int) -> dict[str, dict[str, float]]:
    """All measurements; see the module's docstring."""
    import torch

    from ospo.serving.rewriter import Rewriter

    torch.set_num_threads(threads)
    version, directory = registry.whole_champion(config, dataset)
    tokens = int(version.tags["max_new_tokens"])
    rewriter = Rewriter.load(
        directory,
        max_prompt_tokens=int(version.tags["max_prompt_tokens"]),
        max_new_tokens=tokens,
        remembered=0,
    )
    loop = transformers_loop(directory, tokens)
    queries = make_queries(requests)
    results: dict[str, dict[str, float]] = {}
    for name, call, size, count in (
        ("transformers loop", loop, 1, requests),
        ("rewriter, 1 a call", rewriter.rewrite, 1, requests),
        ("rewriter, 32 a call", rewriter.rewrite, 32, requests),
    ):
        groups = [queries[start : start + size] for start in range(0, count, size)]
        call(groups[0])
        results[name] = measure(call, groups)
        report(name, results[name])
    with served(config, dataset, threads) as port:
        measure_server(port, queries[:20], 2)
        for clients in (1, 4, 16):
            name = f"server, {clients} client{'s' * (clients > 1)}"
            asked = make_queries(requests, seed=clients)
            results[name] = measure_server(port, asked, clients)
            report(name, results[name])
        name = "server, 16 clients, asked before"
        results[name] = measure_server(port, asked, clients)
        report(name, results[name])
    return results


def report(name: str, row: dict[str, float]) -> None:
    """One line of the table."""
    print(
        f"{name:22} {row['p50_ms']:10.1f} {row['p99_ms']:10.1f} {row['per_second']:12.1f} "
        f"{row['cpu_ms']:10.1f}",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="esci", choices=("esci", "hm"))
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--scratch", action="store_true", help="an untrained policy instead of the champion"
    )
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--out", default=".benchmarks/serving.json")
    options = parser.parse_args()
    config = load_config(options.params)
    with tempfile.TemporaryDirectory() as folder:
        if options.scratch:
            config = scratch_registry(config, Path(folder))
        print(
            f"{'':22} {'p50 ms':>10} {'p99 ms':>10} {'requests/s':>12} {'cpu ms':>10}",
            file=sys.stderr,
        )
        results = run(
            config,
            "esci" if options.scratch else options.dataset,
            options.requests,
            options.threads,
        )
    machine = {"platform": platform.platform(terse=True), "cpus": len(os.sched_getaffinity(0))}
    ratio = results["server, 16 clients"]["per_second"] / results["transformers loop"]["per_second"]
    record = {"results": results, "threads": options.threads, "scratch": options.scratch, **machine}
    write_json(options.out, record | {"server_over_loop": round(ratio, 2)})
    print(json.dumps(record | {"server_over_loop": round(ratio, 2)}))


if __name__ == "__main__":
    start(main)
