"""What `ospo export` writes answers in plain transformers as the registry's policy does here."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from policy_shop import resign, sharp
from registry_shop import SUMMARY, TEXTS, Shop
from typer.testing import CliRunner

from ospo import registry, tracking
from ospo.cli import app
from ospo.config import BeirData, EsciData
from ospo.errors import InputError
from ospo.files import verify_manifest
from ospo.policy.guard import Guard
from ospo.policy.kind import write_answer_kind
from ospo.policy.merge import log_probabilities, merged_policy
from ospo.policy.weights import create_policy, load_policy, save_policy
from ospo.registry import hub
from ospo.registry.export import MARK, check_target, export, named_version
from ospo.registry.export_card import _licence, _origin
from ospo.registry.store import connect

QUERIES = [
    "Running SHOES",
    "red <b>dress</b>, </answer> linen",
    "日本語 e\u0301 🙂",
    "a very long request " * 40,
    "",
    "top\x00\u202e shirt, shirt,, shirt",
]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Shop(tmp_path / "shop")


def registered(
    shop: Shop,
    answer: str = "rewrite",
    adapter: bool = False,
    dtype: str = "float32",
    guard: Guard | None = None,
) -> registry.Version:
    """A policy that answers in words, as a version; ``adapter``: LoRA over a base of its own."""
    model = shop.config.presets["nano"].model.model_copy(
        update={"vocab_size": 320, "hidden_size": 32, "layers": 2, "heads": 2, "dtype": dtype}
    )
    network, tokenizer = create_policy(model, TEXTS, 1)
    sharp(network)
    folder = shop.folder / f"policy-{answer}-{adapter}-{dtype}"
    if adapter:
        base = folder.with_name(folder.name + "-base")
        save_policy(network, tokenizer, model, base)
        lora = {"source": f"path:{base}", "lora_rank": 4, "lora_alpha": 8}
        model = model.model_copy(update=lora)
        network, tokenizer = create_policy(model, [], 1)
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    save_policy(network, tokenizer, model, folder)
    write_answer_kind(folder, answer)  # type: ignore[arg-type]
    resign(folder)
    with tracking.run(shop.config, "ospo", kind="rl", directory=shop.folder / "step") as run:
        pass
    candidate = registry.Candidate("ospo", folder, run.id, SUMMARY, data_md5="0" * 32, guard=guard)
    return registry.register(shop.config, "esci", candidate)


def answered(folder: Path) -> tuple[list[str], list[str]]:
    """(answers of the recipe in a process of its own, modules of ospo that it imported)."""
    code = (
        "import json, sys; from rewrite import rewrite;"
        "print(json.dumps([[rewrite(q) for q in json.loads(sys.argv[1])],"
        "[m for m in sys.modules if m == 'ospo' or m.startswith('ospo.')]]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(QUERIES)],
        capture_output=True, text=True, cwd=folder, timeout=120,
        env=environment | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    texts, modules = json.loads(done.stdout)
    return texts, modules


@pytest.mark.parametrize(("answer", "adapter"), [("rewrite", False), ("expand", True)])
def test_the_recipe_answers_as_ospo_rewrite(shop: Shop, tmp_path: Path, answer, adapter) -> None:
    version = registered(shop, answer, adapter)
    done = export(shop.config, "esci", tmp_path / "out")
    assert done.version.version == version.version
    verify_manifest(done.folder)
    texts, modules = answered(done.folder)
    assert modules == []  # plain transformers alone
    wanted = registry.rewrite(shop.config, "esci", list(QUERIES))
    assert texts == wanted
    assert len(set(texts)) > 3
    assert not (done.folder / "adapter_config.json").exists()
    generation = json.loads((done.folder / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["max_new_tokens"]) == (False, 8)
    if adapter:
        assert 0 <= done.drift < 1e-4


def test_the_code_beside_the_weights_is_short(shop: Shop, tmp_path: Path) -> None:
    registered(shop)
    code = (export(shop.config, "esci", tmp_path / "out").folder / "rewrite.py").read_text()
    body = code.partition('oldest first."""\n')[2].partition("\n\n\n")[0]
    assert len(body.splitlines()) <= 11


def test_the_card_says_what_was_trained_on_and_what_is_left_behind(
    shop: Shop, tmp_path: Path
) -> None:
    registered(shop, guard=Guard(-1.0))
    card = (export(shop.config, "esci", tmp_path / "out").folder / "README.md").read_text()
    assert "Trained on a made-up sample shop in the format of Amazon Shopping Queries" in card
    assert "`rewrite.py` answers without it" in card
    official = EsciData(format="esci", raw="/data/esci")
    assert _origin("esci", official).startswith("Amazon Shopping Queries (ESCI), Apache-2.0")
    own = BeirData(format="beir", raw="/data/shop")
    assert _origin("shop", own) == "the data set `shop` of its owner"
    assert [_licence(data, "") for data in (official, own)] == ["apache-2.0", "other"]
    assert _licence(official, "hub:some/base") == "other"


def test_a_rule_has_no_weights_to_export(shop: Shop, tmp_path: Path) -> None:
    version = registered(shop)
    with connect(shop.config, ".") as client:
        client.set_model_version_tag(version.name, str(version.version), "rule", "history")
    with pytest.raises(InputError, match="is the rule 'history', no policy"):
        export(shop.config, "esci@1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_is_in_the_hubs_format_and_tells_the_rest(shop: Shop, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    version = registered(shop)
    found = {"minilm": {"difference": 0.031, "low": 0.02, "high": 0.04, "p": 0.0001}}
    decision: dict[str, Any] = {"promoted": False, "reason": "no gain", "against": "raw", "requests": 300}  # fmt: skip
    decision["rule"] = {"name": "raw", "figures": found}
    registry.note(shop.config, "esci", version.version, decision=decision)
    folder = export(shop.config, "ospo-rewriter-esci@1", tmp_path / "out").folder
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert "answers without it" not in card.text
    assert card.data.library_name == "transformers"
    assert {r.metric_name: r.metric_value for r in card.data.eval_results or []} == {
        "nDCG@10 (bm25)": 0.32, "nDCG@10 (minilm)": 0.45,
    }  # fmt: skip
    for needed in (
        "| best rule (raw) | minilm | +0.0310 | +0.0200 to +0.0400 | 0.0001 |",
        "300 held-out requests", "Limits:", "Apache-2.0", "vllm serve . --served-model-name",
        "ollama create", "python rewrite.py",
    ):  # fmt: skip
        assert needed in card.text
    model = (folder / "Modelfile").read_text()
    assert model.startswith("FROM .\n")
    assert "{{ .Prompt }}" in model
    assert "PARAMETER temperature 0" in model
    assert str(tmp_path) not in card.content


def test_the_adapter_alone(shop: Shop, tmp_path: Path) -> None:
    registered(shop, adapter=True)
    folder = export(shop.config, "esci", tmp_path / "out", adapter=True).folder
    assert (folder / "adapter_model.safetensors").is_file()
    assert not list(folder.rglob("model.safetensors"))
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = next(shop.folder.glob("policy-*-base"))
    plain = AutoModelForCausalLM.from_pretrained(base)
    whole = PeftModel.from_pretrained(plain, str(folder))
    ours, _ = load_policy(next(p for p in shop.folder.glob("policy-*") if p != base))
    ids = torch.arange(3, 12)[None]
    assert torch.allclose(whole(ids).logits, ours(ids).logits)


def test_bad_input_is_one_line(shop: Shop, tmp_path: Path) -> None:
    registered(shop)
    with pytest.raises(InputError, match="holds full weights"):
        export(shop.config, "esci", tmp_path / "out", adapter=True)
    for name, problem in (
        ("esci@9", r"esci@9: no such version \(there are: @1/champion\)"),
        ("esci@nosuch", "no such version"),
        ("hm", "there are: none"),
        ("shoes", "no such model"),
        ("../esci", "no such model"),
    ):
        with pytest.raises(registry.RegistryError, match=problem) as caught:
            named_version(shop.config, name)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


def test_what_exists_is_kept_and_only_an_export_is_ever_replaced(
    shop: Shop, tmp_path: Path
) -> None:
    registered(shop)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError, match="is no earlier export"):
            export(shop.config, "esci", out, force=force)
    assert (out / "thesis.txt").read_text() == "mine"
    export(shop.config, "esci", tmp_path / "second")
    with pytest.raises(InputError, match="give --force"):
        export(shop.config, "esci", tmp_path / "second")
    (tmp_path / "second" / "left.txt").write_text("old")
    export(shop.config, "esci", tmp_path / "second", force=True)
    assert not (tmp_path / "second" / "left.txt").exists()
    check_target(tmp_path / "new", force=False)
    (tmp_path / "link").symlink_to(tmp_path / "second")
    with pytest.raises(InputError, match="no earlier export"):
        check_target(tmp_path / "link", force=True)


def test_a_full_disk_leaves_nothing(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(shop)

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ospo.registry.export.rules_source", full)
    with pytest.raises(OSError, match="No space"):
        export(shop.config, "esci", tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_merging_into_bfloat16_is_measured_and_refused_where_it_changes_answers(
    shop: Shop, tmp_path: Path
) -> None:
    """The drift is that of the weights written, and an adapter too fine for them is refused."""
    registered(shop, adapter=True, dtype="bfloat16")
    folder = next(p for p in shop.folder.glob("policy-*") if not p.name.endswith("-base"))
    network, _, drift = merged_policy(folder, 128, bound=1.0)
    assert network.dtype == torch.bfloat16
    exact, _, none = merged_policy(folder, 128, "float32")
    assert 0 <= none < 1e-5 < drift < 1.0
    rows = [(list(range(3, 20)), 4)]
    [ours], [theirs] = log_probabilities(network.float(), rows), log_probabilities(exact, rows)
    assert float((ours - theirs).abs().mean()) < 20 * drift
    with pytest.raises(InputError, match=r"move by .* give --dtype float32") as caught:
        merged_policy(folder, 128, bound=drift / 2)
    assert "\n" not in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """A double of the hub's HTTP: it takes every file in the commit itself."""

    files: ClassVar[dict[str, int]] = {}
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length")
        body = self.rfile.read(int(size)) if size else self._chunks()
        self.asked.append((self.path, self.headers.get("Authorization", "")))
        if self.headers.get("Authorization") != "Bearer good":
            return self._answer(401, {"error": "Invalid credentials"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self._answer(200, {"files": [{"path": f["path"], **modes} for f in files]})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = len(line["value"]["content"])
            address = f"http://{self.headers['Host']}/my-shop/ospo/commit/{'1' * 40}"
            return self._answer(
                200, {"commitUrl": address, "commitOid": "1" * 40, "hookOutput": "", "success": 1}
            )
        return self._answer(
            200, {"url": f"http://{self.headers['Host']}/my-shop/ospo", "name": "my-shop/ospo"}
        )

    def do_GET(self) -> None:
        self._answer(200, {"id": "my-shop/ospo", "sha": "1" * 40, "siblings": []})

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    Hub.files.clear()
    Hub.asked.clear()
    yield Hub
    server.shutdown()


def test_a_folder_is_pushed_with_the_token_from_the_environment(
    double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("# card")
    (tmp_path / "model.safetensors").write_bytes(b"w" * 100)
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as the command has it
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", os.environ["HF_ENDPOINT"])
    address = hub.push(tmp_path, "my-shop/ospo", hub.hub_token("my-shop/ospo"))
    assert address.endswith("/my-shop/ospo")
    assert set(double.files) == {"README.md", "model.safetensors"}
    assert {token for _, token in double.asked} == {"Bearer good"}
    with pytest.raises(hub.HubError, match="the hub did not take it") as caught:
        hub.push(tmp_path, "my-shop/ospo", "stale")
    assert "\n" not in str(caught.value)
    assert "stale" not in str(caught.value)


def test_no_token_or_no_name_is_told_before_anything_is_written(double, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for repository, problem in (("my-shop/ospo", "no token"), ("ospo", "is no ORG/NAME")):
        with pytest.raises(hub.HubError, match=problem):
            hub.hub_token(repository)
        done = CliRunner().invoke(app, ["export", "esci", "--to", str(out), "--push", repository])
        assert isinstance(done.exception, hub.HubError)
    assert not out.exists()
    assert not double.asked


def test_the_command_writes_the_folder(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(shop)
    monkeypatch.setattr("ospo.api.load_config", lambda *_: shop.config)
    monkeypatch.setattr("ospo.cli.registry.load_config", lambda *_: shop.config)
    done = CliRunner().invoke(app, ["export", "esci@champion", "--to", str(tmp_path / "out")])
    assert done.exception is None, done.output
    assert "ospo-rewriter-esci version 1" in done.output
    assert (tmp_path / "out" / MARK).is_file()
