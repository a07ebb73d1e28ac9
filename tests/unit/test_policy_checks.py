"""A policy folder from elsewhere: only safetensors, every weight, finite; a template within limits;
one line otherwise.
"""

import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from policy_shop import TEXTS, TINY, edit_json, resign, write_policy
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ospo.config import Model
from ospo.data.request import Request
from ospo.errors import InputError
from ospo.files import MANIFEST, read_json
from ospo.policy import checks
from ospo.policy.checks import TEMPLATE_SECONDS, check_template
from ospo.policy.generate import render
from ospo.policy.prompts import MAX_TEMPLATE, render_messages
from ospo.policy.scratch import CHAT_TEMPLATE, build_tokenizer
from ospo.policy.weights import create_policy, load_policy, save_policy


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A policy of full weights."""
    return write_policy(tmp_path / "full")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter on a policy of full weights."""
    base = write_policy(tmp_path / "base")
    model = Model(source=f"path:{base}", lora_rank=4, lora_alpha=8)
    save_policy(*create_policy(model, [], 1), model, tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(directory: Path, match: str) -> None:
    """The directory is refused in one line, by whoever made its checksums."""
    resign(directory)
    with pytest.raises(InputError, match=match) as caught:
        load_policy(directory)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


def edit_weights(file: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a safetensors file; None takes one out."""
    tensors: dict[str, torch.Tensor | None] = {**load_file(file), **changes}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, file, metadata={"format": "pt"})


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["evil", "benign"])
def test_an_index_that_leads_to_a_pickle_is_refused_unread(
    full: Path, tmp_path: Path, kind: str
) -> None:
    state = load_file(full / "model.safetensors")
    (full / "model.safetensors").unlink()
    if kind == "evil":
        (full / "weights.bin").write_bytes(pickle.dumps(Evil(tmp_path / "opened")))
    else:
        torch.save(state, full / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "weights.bin")}
    (full / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(full, r"names 'weights\.bin', no safetensors file here")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name", ["../full2/model.safetensors", "/etc/x.safetensors", 3, None])
def test_an_index_names_files_of_its_own_folder(full: Path, name: object) -> None:
    shutil.copytree(full, full.with_name("full2"))
    (full / "model.safetensors").unlink()
    (full / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(full, "no safetensors file here")


def test_an_index_of_safetensors_loads_and_a_missing_part_is_named(full: Path) -> None:
    network, _ = load_policy(full)
    network.save_pretrained(full, max_shard_size="30KB")
    assert (full / "model.safetensors.index.json").is_file()
    (full / "model.safetensors").unlink(missing_ok=True)
    resign(full)
    loaded, _ = load_policy(full)
    ids = torch.tensor([[5, 6]])
    assert torch.equal(loaded(ids).logits, network(ids).logits)
    next(iter(sorted(full.glob("model-*.safetensors")))).unlink()
    refused(full, "which is missing")


def test_config_json_cannot_name_a_pickle_either(full: Path) -> None:
    torch.save(load_file(full / "model.safetensors"), full / "adapter_model.bin")
    edit_json(full / "config.json", transformers_weights="adapter_model.bin")
    refused(full, "transformers_weights: names")


def test_an_adapter_of_pickles_alone_is_refused(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    refused(adapter, r"no adapter_model\.safetensors")


def test_an_adapter_beside_full_weights_is_refused(full: Path, adapter: Path) -> None:
    """transformers would put the adapter of a base's folder onto the base without a word."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, full / name)
    with pytest.raises(InputError, match="lies beside full weights"):
        create_policy(Model(source=f"path:{full}"), [], 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(full: Path, adapter: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(full / "model.safetensors")[name]
    weights[3, 4] = value
    edit_weights(full / "model.safetensors", **{name: weights})
    refused(full, rf"{name} holds NaN or infinity")
    file = adapter / "adapter_model.safetensors"
    name, tensor = next(iter(load_file(file).items()))
    edit_weights(file, **{name: torch.full_like(tensor, value)})
    refused(adapter, "holds NaN or infinity")


def test_weights_that_are_missing_left_over_or_of_another_shape_are_refused(full: Path) -> None:
    file, name = full / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensor = load_file(file)[name]
    edit_weights(file, **{name: None})
    refused(full, rf"lacks 1 of its weights, first {name}")
    edit_weights(file, **{name: tensor[:, :7].contiguous()})
    refused(full, "weights")
    edit_weights(file, **{name: tensor, "model.layers.2.mlp.up_proj.weight": tensor.clone()})
    refused(full, "beyond its architecture")
    edit_weights(file, **{"model.layers.2.mlp.up_proj.weight": None})
    resign(full)
    assert load_policy(full)


def test_another_architecture_is_refused(full: Path) -> None:
    """All of its weights would be drawn at random."""
    edit_json(full / "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    refused(full, "lacks|cannot be loaded")


@pytest.mark.parametrize("change", ["no tensors", "one missing", "one more", "another shape"])
def test_an_adapters_tensors_and_layers_correspond(adapter: Path, change: str) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    if change == "no tensors":
        save_file({}, file, metadata={"format": "pt"})
    elif change == "one missing":
        edit_weights(file, **{name: None})
    elif change == "one more":
        edit_weights(file, **{name.replace("layers.0", "layers.9"): tensors[name]})
    else:
        edit_weights(file, **{name: tensors[name][:2].contiguous()})
    refused(adapter, "weights")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_modules", "(([a-z._0-9])+)+!"),
        ("exclude_modules", "(a|a)*$"),
        ("rank_pattern", {"(.*)*x": 4}),
        ("layers_pattern", ["(.+)+"]),
    ],
)
def test_an_adapter_names_its_layers_by_names(adapter: Path, key: str, value: object) -> None:
    edit_json(adapter / "adapter_config.json", **{key: value})
    refused(adapter, f"{key}: holds .* no layer's name")


def truncated(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def no_json(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def broken_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')


def short_network(directory: Path) -> None:
    tokenizer = load_policy(directory)[1]
    tokenizer.add_tokens([f"word{n}" for n in range(50)])
    tokenizer.save_pretrained(directory)


def quantized(directory: Path) -> None:
    edit_json(directory / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def kernels(directory: Path) -> None:
    edit_json(directory / "config.json", attn_implementation="kernels-community/flash-attn")


def other_code(directory: Path) -> None:
    edit_json(
        directory / "config.json",
        model_type="mine",
        auto_map={"AutoModelForCausalLM": "evil.Model"},
    )
    (directory / "evil.py").write_text("raise SystemExit('code from the folder was run')")


def templates_without_default(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    templates = [{"name": name, "template": "x"} for name in ("tool_use", "rag")]
    edit_json(directory / "tokenizer_config.json", chat_template=templates)


def epsilon_nan(directory: Path) -> None:
    file = directory / "config.json"
    values = read_json(file) | {"rms_norm_eps": float("nan")}
    file.write_text(json.dumps(values))
    resign(directory)


def end_is_text(directory: Path) -> None:
    edit_json(directory / "generation_config.json", eos_token_id=["</s>"])


def generation_no_json(directory: Path) -> None:
    (directory / "generation_config.json").write_text("[1")
    resign(directory)


BROKEN = [truncated, no_json, broken_tokenizer, short_network, quantized, kernels, other_code]
BROKEN += [templates_without_default, epsilon_nan, end_is_text, generation_no_json]


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_folder_is_one_line(full: Path, spoil: Any) -> None:
    spoil(full)
    refused(full, "Fix:")


def test_the_command_line_says_it_in_one_line_too(full: Path, tmp_path: Path) -> None:
    truncated(full)
    resign(full)
    code = "import sys; from ospo.policy.weights import load_policy; from ospo.errors import OspoError\n"
    code += "try: load_policy(sys.argv[1])\nexcept OspoError as error: sys.exit(str(error))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(full)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


# --- chat templates -------------------------------------------------------------------------------

FOREVER = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% set x = a * b * c %}{% endfor %}{% endfor %}{% endfor %}"
)


def with_template(template: str) -> Any:
    tokenizer = build_tokenizer(TEXTS, 400)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (FOREVER, "is not rendered within"),
        ("{{ 'x' * 2000000000 }}", "characters or more|cannot be rendered"),
        ("{{ 'x' * 30000 }}", "makes a prompt of 30"),
        ("{{ messages[0].nothing.here }}", "cannot be rendered"),
        ("{% if %}", "cannot be rendered"),
        ("{{ raise_exception('not for you') }}", "not for you"),
        ("{{ ().__class__.__mro__[1].__subclasses__() }}", "cannot be rendered"),
    ],
)
def test_templates_have_limits(
    template: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "TEMPLATE_SECONDS", 5.0)
    started = time.monotonic()
    with pytest.raises(InputError, match=problem):
        check_template("folder", with_template(template))
    assert time.monotonic() - started < TEMPLATE_SECONDS


def test_an_ordinary_template_passes_and_is_tried_once_per_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = CHAT_TEMPLATE + "{% generation %}{% endgeneration %}{{ eos_token }}"
    check_template("folder", with_template(template))
    monkeypatch.setattr(subprocess, "run", None)
    check_template("folder", with_template(template))
    with pytest.raises(InputError, match="has none"):
        check_template("folder", with_template(None))  # type: ignore[arg-type]


def test_a_policy_with_a_template_that_loops_for_ever_does_not_load(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "TEMPLATE_SECONDS", 5.0)
    (full / "chat_template.jinja").write_text(FOREVER + " ")
    refused(full, "is not rendered within 5 s")


def test_a_prompt_is_held_to_the_limit_whatever_the_template_was_tried_on() -> None:
    template = "{% if 'linen' in messages[-1].content %}{{ 'x' * 30000 }}{% endif %}ok"
    tokenizer = with_template(template)
    assert render(tokenizer, Request(query="red dress"), 128).text == "ok"
    with pytest.raises(InputError, match=f"over {MAX_TEMPLATE} more"):
        render(tokenizer, Request(query="linen dress"), 128)


@pytest.mark.parametrize("tag", ["</think>", "<answer>"])
def test_a_tokenizer_that_drops_a_tag_in_decoding_is_refused(full: Path, tag: str) -> None:
    tokenizer = load_policy(full)[1]
    tokenizer.add_special_tokens({"additional_special_tokens": [tag]})
    tokenizer.save_pretrained(full)
    refused(full, f"tokenizer: treats {tag} as a special token")


# --- the identity of a base -----------------------------------------------------------------------


def test_checksums_that_do_not_fit_are_refused(full: Path) -> None:
    (full / "config.json").write_text((full / "config.json").read_text() + " ")
    with pytest.raises(InputError, match="differs from the manifest"):
        load_policy(full)
    (full / MANIFEST).unlink()
    assert load_policy(full), "a policy made by other tools has no manifest"


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ({"source": "nowhere"}, "does not name the base"),
        ({"source": 3}, "does not name the base"),
        ({}, "does not name the base"),
        ({"source": "hub:nobody/nothing"}, "cannot be loaded"),
        ({"source": "path:/nowhere"}, r"no config\.json"),
        ({"source": "path:.", "dtype": "float8"}, "one of float32, bfloat16"),
        ([], "is not a JSON object"),
    ],
)
def test_base_json_is_checked(adapter: Path, base: Any, says: str) -> None:
    (adapter / "base.json").write_text(json.dumps(base))
    refused(adapter, says)


def test_an_adapter_made_by_other_tools_needs_no_base_json(adapter: Path, tmp_path: Path) -> None:
    source = read_json(adapter / "base.json")["source"].partition(":")[2]
    (adapter / "base.json").unlink()
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=source)
    network, _ = load_policy(adapter)
    assert network.peft_config["default"].r == 4
    assert TINY.lora_rank == 0


def test_the_limit_on_templates_is_on_what_they_add(full: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(full)
    long = [{"role": "user", "content": "word " * MAX_TEMPLATE}]
    assert render_messages(tokenizer, long).count("word") == MAX_TEMPLATE
