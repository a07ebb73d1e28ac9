"""The command line: exit codes, where lines go, and that each option reaches what it names."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY
from registry_shop import Shop
from typer.testing import CliRunner

from ospo import doctor, registry, tracking
from ospo.cli import app, main
from ospo.config import load_config
from ospo.data.dataset import PreparedData, load_prepared
from ospo.policy.text import REWRITE

PARAMS = str(ROOT / "params.yaml")


def settings(*overrides: str) -> list[str]:
    return ["--params", PARAMS, *(part for one in overrides for part in ("--set", one))]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The whole program: (exit code, stdout, stderr)."""
    before = signal.getsignal(signal.SIGTERM)

    def program(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["ospo", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    yield program
    signal.signal(signal.SIGTERM, before)


def test_a_mistake_of_the_user_is_one_line_on_stderr_and_exit_code_2(run: Any) -> None:
    code, out, err = run("config", "show", *settings("reward.kk=1"))
    assert (code, out) == (2, "")
    assert err.startswith("ospo: ")
    assert err.count("\n") == 1
    assert run("config", "show", *settings())[0] == 0


def test_a_bug_is_a_traceback(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(doctor, "examine", broken)
    monkeypatch.setattr(sys, "argv", ["ospo", "doctor"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main()


def test_a_place_that_cannot_be_written_is_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/a")

    monkeypatch.setattr(doctor, "examine", refused)
    assert run("doctor")[::2] == (
        2,
        "ospo: /data/a: permission denied. Fix: make it accessible to this user, or work in "
        "another folder\n",
    )


@pytest.mark.parametrize(("levels", "code"), [(["ok"], 0), (["ok", "warn"], 0), (["fail"], 1)])
def test_doctor_fails_for_failures_alone(
    run: Any, monkeypatch: pytest.MonkeyPatch, levels: list[Any], code: int
) -> None:
    found = [doctor.Finding(level, "what", "do this") for level in levels]
    monkeypatch.setattr(doctor, "examine", lambda _params: found)
    assert run("doctor")[0] == code


def test_data_check_exits_with_1_for_problems(esci_raw: Path, tmp_path: Path, run: Any) -> None:
    code, out, err = run("data", "check", str(esci_raw), "--params", PARAMS)
    assert (code, err) == (0, "")
    assert "raw esci" in out
    (tmp_path / "shopping_queries_dataset_examples.parquet").write_bytes(b"no parquet")
    code, _, err = run("data", "check", str(tmp_path), "--params", PARAMS)
    assert code == 1
    assert err.startswith("problem: ")


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_prepare_takes_the_folder_that_the_parameters_name(
    dataset: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    raw = request.getfixturevalue(f"{dataset}_raw")
    other = {"esci": "hm", "hm": "esci"}[dataset]
    named = [f"data.{dataset}.raw={raw}", f"data.{other}.raw={tmp_path}/none"]
    done = CliRunner().invoke(
        app, ["prepare", dataset, "--out", str(tmp_path / "out"), *settings(*TINY, *named)]
    )
    assert done.exit_code == 0, done.output
    data = load_prepared(tmp_path / "out")
    assert f"{len(data.item_ids)} items" in done.output
    assert f"{len(data.requests)} requests" in done.output


@pytest.mark.parametrize("option", ["--data", "--out"])
def test_options_that_say_nothing_without_a_policy_are_refused(run: Any, option: str) -> None:
    code, _, err = run("evaluate", "--dataset", "hm", option, "x", *settings())
    assert code == 2
    assert "need --policy" in err


def test_the_champion_rewrites_a_request_with_its_history(
    workspace: Path, hm_tiny: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Double:
        """Stands in for a loaded champion."""

        answer = REWRITE

        def __init__(self, _config: object, dataset: str):
            self.dataset = dataset

        def rewrite(self, inputs: list[Any]) -> list[str]:
            asked.append((self.dataset, inputs))
            return ["red dress"]

    monkeypatch.setattr(registry, "champion_rewriter", Double)
    request = next(r for r in hm_tiny.requests if len(r.history) > 1)
    words = ["explain", "--dataset=hm", "--retriever=bm25"]
    done = CliRunner().invoke(
        app,
        [*words, f"--request={request.request_id}", *settings()],
    )
    assert done.exit_code == 0, done.output
    history = [{"name": p.name, "type": p.type, "colour": p.colour} for p in request.history]
    assert asked == [("hm", [{"query": request.query, "history": history}])]
    assert "red dress" in done.output


def test_the_named_version_becomes_the_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shop = Shop(tmp_path)
    for seed in (1, 2, 3):
        shop.register(seed=seed)
    store = settings(f"tracking.uri={shop.config.tracking.uri}")
    for words, says in (
        (["promote", "--version", "2"], "version 2 is the champion"),
        (["promote"], "version 3 is the champion"),
        (["rollback"], "version 2 is the champion again"),
    ):
        done = CliRunner().invoke(app, [*words, "--dataset", "esci", *store])
        assert done.exit_code == 0, done.output
        assert says in done.output
    assert registry.champion(shop.config, "esci").version == 2


def test_rewriting_says_where_the_raw_query_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shop = Shop(tmp_path)
    version = shop.register("sft", seed=1)
    store = settings(f"tracking.uri={shop.config.tracking.uri}")

    def said() -> str:
        words = ["rewrite", "--dataset", "esci", "lamp", *store]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.stdout.count("\n") == 1  # the search text alone
        return done.stderr

    assert "raw query is better" not in said()  # on held-out requests it is not
    for name, value in (("minilm", "0.500000"), ("bm25", "0.100000")):
        client = tracking.store.MlflowClient(shop.config.tracking.uri)
        key = f"raw_ndcg_at_10.{name}"
        assert key in version.tags
        client.set_model_version_tag(version.name, "1", key, value)
    line = said()
    assert "the raw query is better than version 1 on held-out requests of esci" in line
    assert "nDCG@10 under minilm (0.500 against 0.420). Next: `ospo models`, then" in line
    assert "`ospo rollback --dataset esci`" in line
    # What the weekly check on fresh data found counts for more.
    figures = {"raw": {"minilm": 0.4, "bm25": 0.6}, "champion": {"minilm": 0.5, "bm25": 0.5}}
    registry.tag(shop.config, "esci", 1, "fresh", {"figures": figures, "at": "2026-11-26"})
    assert "on fresh data (of 2026-11-26) of esci: nDCG@10 under bm25 (0.600" in said()


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["report", "--dataset", "hm"], "evaluate --dataset hm"),
        (["report", "--evaluation", "x"], "evaluate --dataset NAME --policy NAME=PATH --out x"),
        (["evaluate", "--dataset", "hm"], "sft --dataset hm"),
        (["register", "--dataset", "hm"], "evaluate --dataset hm"),
        (["promote", "--dataset", "hm"], "register --dataset hm"),
        (["export", "hm", "--to", "x"], "register --dataset hm"),
        (["rewrite", "--dataset", "hm", "x"], "promote --dataset hm"),
        (["train", "--dataset", "hm"], "dvc repro vectors@hm"),
        (["explain", "--dataset", "hm", "--request", "x"], "dvc repro vectors@hm"),
    ],
)
def test_an_error_names_the_next_command(
    words: list[str], command: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, _, err = run(*words, *settings())
    assert code == 2
    assert f"{command}`" in err.partition("Fix:")[2]


def test_what_fetch_says_comes_next_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ospo.data.fetch.fetch", lambda *_, **__: [tmp_path / "articles.csv"])
    done = CliRunner().invoke(app, ["data", "fetch", "hm", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    *_, line = done.output.splitlines()
    program, *words = line.removeprefix("Next: ").split()
    assert program == "ospo"
    params = tmp_path / "params.yaml"
    params.write_text(Path(PARAMS).read_text())
    assert CliRunner().invoke(app, [*words, "--params", str(params)]).exit_code == 0
    assert load_config(params).data.hm.raw == str(tmp_path)
