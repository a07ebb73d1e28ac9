"""One generator: what plain transformers generates, and the same answers wherever it is called."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import ROOT
from policy_shop import DEFAULTS, TINY, edit_json, resign, write_policy
from training_shop import LetterReward, small_config

from ospo.config.algorithms import ALGORITHMS
from ospo.data.dataset import PreparedData
from ospo.data.request import Purchase, Request
from ospo.errors import InputError
from ospo.evaluation.completions import CachedPolicy
from ospo.policy.decoding import Decoding, draw_seed
from ospo.policy.generate import Generator, end_ids, render
from ospo.policy.scratch import build_tokenizer
from ospo.policy.text import search_text
from ospo.policy.weights import load_policy
from ospo.serving.rewriter import Rewriter
from ospo.training.offline import sample_offline
from ospo.training.ospo import SearchRewardFunction
from ospo.training.rl import train_rl
from ospo.training.run import TrainingRun
from ospo.training.sft import sft_examples
from ospo.training.teacher import Teacher

REQUESTS = [
    Request(query=query, history=history)
    for query in ("red dress", "linen", "a summer top for the evening", "blue")
    for history in ((), (Purchase(name="Linen shirt", type="Shirt", colour="Blue"),) * 2)
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy") / "model")


def inputs(request: Request) -> dict[str, object]:
    """A request as a server gets it."""
    purchases = [{"name": p.name, "type": p.type, "colour": p.colour} for p in request.history]
    return {"query": request.query, "history": purchases}


def transformers_answers(policy: Path, tokens: int, batch: bool) -> list[str]:
    """What ``model.generate`` of plain transformers writes, greedily, up to an end token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(policy).eval()
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    texts = [render(tokenizer, request, 128).text for request in REQUESTS]
    found = []
    for group in [texts] if batch else [[text] for text in texts]:
        encoded = tokenizer(group, add_special_tokens=False, padding=True, return_tensors="pt")
        out = network.generate(**encoded, max_new_tokens=tokens, do_sample=False)
        width = encoded["input_ids"].shape[1]
        found += tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return found


@pytest.mark.parametrize("batch", [True, False])
def test_greedy_answers_are_those_of_plain_transformers(policy: Path, batch: bool) -> None:
    generator = Generator.load(policy)
    prompts = [render(generator.tokenizer, request, 128) for request in REQUESTS]
    found = [generator.decode(ids) for ids in generator(prompts, Decoding(12))]
    assert found == transformers_answers(policy, 12, batch)
    assert len(set(found)) > 3


def test_rows_that_end_leave_the_batch_without_a_trace(policy: Path) -> None:
    """Let a fifth of all tokens be ends, so that rows leave one by one."""
    generator = Generator.load(policy)
    generator.ends = set(range(0, 400, 5))
    prompts = [
        render(generator.tokenizer, Request(query=f"query {n} " * (n % 4 + 1)), 128)
        for n in range(24)
    ]
    decoding = Decoding(12, temperature=1.5, seed=1)
    alone = [generator([prompt], decoding)[0] for prompt in prompts]
    assert len({len(ids) for ids in alone}) > 4, "lengths must differ for this test to see anything"
    assert generator(prompts, decoding) == alone
    for ids in alone:
        assert not set(ids[:-1]) & generator.ends
        assert ids[-1] in generator.ends or len(ids) == 12, "the end token is kept"


def test_both_loops_write_the_same(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our decoder and, where a network is not one that it is tested for, transformers' forward."""
    generator = Generator.load(policy)
    generator.ends = set(range(0, 400, 5))
    prompts = [render(generator.tokenizer, request, 128) for request in REQUESTS] * 2
    forwards = []
    generator.model.register_forward_pre_hook(lambda *_: forwards.append(1))

    def written() -> list[list[list[int]]]:
        draws = list(range(len(prompts)))
        return [generator(prompts, d, draws) for d in (Decoding(12), Decoding(12, 0.8, seed=2))]

    ours = written()
    assert not forwards
    monkeypatch.setattr("ospo.policy.generate.decoder_of", lambda *_: None)
    assert written() == ours
    assert forwards
    assert len({len(ids) for ids in ours[1]}) > 3


def test_a_batch_computes_only_the_rows_that_still_write(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ospo.policy.generate.decoder_of", lambda *_: None)
    generator = Generator.load(policy)
    generator.ends = set(range(0, 400, 3))
    rows: list[int] = []
    generator.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    prompts = [render(generator.tokenizer, Request(query=f"query {n}"), 128) for n in range(24)]
    generator(prompts, Decoding(12, temperature=1.5))
    assert rows[0] == 24
    assert rows[-1] < 12


def test_each_row_may_have_a_draw_of_its_own(policy: Path) -> None:
    generator = Generator.load(policy)
    prompt = render(generator.tokenizer, REQUESTS[0], 128)
    together = generator([prompt] * 3, Decoding(8, 1.0), [4, 5, 4])
    assert together[0] == together[2] != together[1]
    assert generator([prompt], Decoding(8, 1.0, sample=5)) == [together[1]]


def test_a_draw_depends_on_seed_sample_and_prompt() -> None:
    seeds = {draw_seed(*key) for key in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"))}
    assert len(seeds) == 4


def served(policy: Path, requests: list[Request], **params: float) -> list[str]:
    rewriter = Rewriter.load(policy, max_prompt_tokens=128, max_new_tokens=12)
    return rewriter.rewrite([inputs(request) for request in requests], params)


def evaluated(policy: Path, requests: list[Request], decoding: Decoding) -> list[str]:
    """Search texts of the evaluated answers; an empty one is the query, as in serving."""
    found = CachedPolicy(policy, 3, 128, None).complete(requests, decoding)
    return [
        search_text("".join(c if c.isprintable() else " " for c in completion.answer))
        or search_text(request.query)
        for completion, request in zip(found, requests, strict=True)
    ]


@pytest.mark.parametrize("asks", [False, True])
def test_what_is_served_is_what_was_evaluated(policy: Path, tmp_path: Path, asks: bool) -> None:
    """Also for a policy whose generation_config.json asks for penalties and cuts."""
    if asks:
        policy = write_policy(tmp_path / "model")
        edit_json(policy / "generation_config.json", **DEFAULTS)
    greedy = evaluated(policy, REQUESTS, Decoding(12))
    assert served(policy, REQUESTS) == greedy
    drawn = evaluated(policy, REQUESTS, Decoding(12, 0.8, seed=7))
    assert served(policy, REQUESTS, temperature=0.8, seed=7) == drawn
    assert greedy != drawn


def test_what_a_model_asks_for_in_generation_config_takes_no_part(
    policy: Path, tmp_path: Path
) -> None:
    asking = write_policy(tmp_path / "model")
    ends = load_policy(policy)[0].generation_config.eos_token_id
    edit_json(asking / "generation_config.json", **DEFAULTS)
    for decoding in (Decoding(12), Decoding(12, 1.0)):
        plain = CachedPolicy(policy, 8, 128, None).complete(REQUESTS, decoding)
        assert CachedPolicy(asking, 8, 128, None).complete(REQUESTS, decoding) == plain
    kept = load_policy(asking)[0].generation_config
    assert kept.eos_token_id == ends, "which tokens end an answer is no matter of decoding"
    assert kept.repetition_penalty in (None, 1.0)


def test_offline_completions_are_those_that_evaluation_draws(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    config = small_config("presets.nano.rl.steps=2")
    rl = config.preset.rl
    policy = write_policy(tmp_path / "model", esci_tiny.item_texts, model=config.preset.model)
    found = sample_offline(
        TrainingRun(config, esci_tiny, tmp_path / "parts", policy, LetterReward())
    )
    assert len(found) == 2 * rl.prompts_per_step * rl.generations
    cached = CachedPolicy(policy, 4, rl.max_prompt_tokens, None)
    tokenizer = load_policy(policy)[1]
    texts = []
    for number, completion in enumerate(found):
        request = esci_tiny.requests[completion.row]
        decoding = Decoding(rl.max_completion_tokens, rl.temperature, config.seed, number)
        [wanted] = cached.complete([request], decoding)
        text = tokenizer.decode(completion.completion_ids, skip_special_tokens=True)
        assert (text, completion.answer) == (wanted.completion, wanted.answer)
        assert completion.prompt_ids == render(tokenizer, request, rl.max_prompt_tokens).ids
        texts.append(text)
    assert len(set(texts)) > len(texts) / 2


def test_online_training_samples_without_the_models_defaults(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    """TRL fills what it does not set itself (min_p, no_repeat_ngram_size) from the model."""
    assert ALGORITHMS["grpo"].online
    config = small_config("presets.nano.rl.steps=1")
    frames = []
    for name in ("plain", "asks"):
        policy = write_policy(tmp_path / name, esci_tiny.item_texts, model=config.preset.model)
        if name == "asks":
            edit_json(policy / "generation_config.json", **DEFAULTS)
        out = tmp_path / f"run-{name}"
        train_rl(TrainingRun(config, esci_tiny, out, policy, LetterReward()), "grpo")
        frames.append(pl.read_parquet(out / "completions.parquet")["completion"].to_list())
    assert frames[0] == frames[1]


def test_a_thought_that_the_template_opened_is_no_answer_anywhere(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    """An untrained policy never closes the thought: no answer evaluated, drawn, served, rewarded."""
    config = small_config("presets.nano.rl.steps=1")
    policy = write_policy(tmp_path / "model", esci_tiny.item_texts, model=config.preset.model)
    template = policy / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if add_generation_prompt %}<think>{% endif %}")
    resign(policy)
    found = CachedPolicy(policy, 8, 128, tmp_path / "cache").complete(REQUESTS, Decoding(8))
    again = CachedPolicy(policy, 8, 128, tmp_path / "cache").complete(REQUESTS, Decoding(8))
    assert found == again
    assert {c.answer for c in found} == {""}
    assert all(c.completion for c in found)
    drawn = sample_offline(
        TrainingRun(config, esci_tiny, tmp_path / "parts", policy, LetterReward())
    )
    assert {c.answer for c in drawn} == {""}
    assert served(policy, REQUESTS[:2]) == ["red dress", "red dress"], "the query itself"
    function = SearchRewardFunction(LetterReward(), load_policy(policy)[1])
    ids = function.tokenizer("aaa")["input_ids"]
    closed = function.tokenizer("aaa</think><answer>ab</answer>")["input_ids"]
    assert function(completion_ids=[ids, closed], row=[0, 0]) == [0.0, 0.5]


def test_a_warm_start_closes_the_thought_before_the_answer(esci_tiny: PreparedData) -> None:
    config = small_config("presets.nano.rl.max_completion_tokens=32")
    teacher = Teacher(esci_tiny, 0.0, 0)
    tokenizer = build_tokenizer(teacher.tokenizer_texts(), 600)
    tokenizer.chat_template += "<think>"
    example = sft_examples(config, esci_tiny, tokenizer, teacher, 1)[0]
    label = tokenizer.decode([i for i in example["labels"] if i >= 0])
    assert label.startswith("</think><answer>")


def test_a_prompt_and_answer_beyond_the_models_context_are_refused(policy: Path) -> None:
    generator = Generator.load(policy)
    prompt = render(generator.tokenizer, REQUESTS[0], 128)
    room = 512 - len(prompt.ids)
    generator.ends = set(range(400))  # one step is enough here
    assert generator([prompt], Decoding(room))
    with pytest.raises(InputError, match="exceed the model's 512"):
        generator([prompt], Decoding(room + 1))
    with pytest.raises(InputError, match="exceed the model's 512"):
        Rewriter(generator, max_prompt_tokens=500, max_new_tokens=13)
    assert Rewriter(generator, max_prompt_tokens=500, max_new_tokens=12).most_new_tokens == 12


def test_a_network_without_a_key_value_cache_is_one_clear_line(
    tmp_path: Path, policy: Path
) -> None:
    from transformers import AutoTokenizer, RwkvConfig, RwkvForCausalLM

    folder = tmp_path / "rwkv"
    sizes = {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
    tokenizer = AutoTokenizer.from_pretrained(policy)
    RwkvForCausalLM(RwkvConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    resign(folder)
    generator = Generator.load(folder)
    with pytest.raises(InputError, match="keeps no key-value cache"):
        generator([render(generator.tokenizer, REQUESTS[0], 128)], Decoding(4))


def test_noise_is_seeded_per_row_not_per_batch(policy: Path) -> None:
    """At a temperature where only the noise speaks, every prompt has noise of its own."""
    generator = Generator.load(policy)
    prompts = [render(generator.tokenizer, request, 128) for request in REQUESTS]
    hot = generator(prompts, Decoding(8, 1e6))
    assert len({tuple(ids) for ids in hot}) == len(REQUESTS)
    assert generator(prompts[::-1], Decoding(8, 1e6)) == hot[::-1]


def test_serving_needs_no_data_library_no_retrieval_and_no_trainer() -> None:
    code = (
        "import sys, ospo.serving.rewriter;"
        "unwanted = ('polars', 'pandas', 'trl', 'datasets', 'mlflow', 'peft', 'ospo.retrieval', 'ospo.reward', "
        "'ospo.data.dataset', 'ospo.training', 'ospo.evaluation');"
        "sys.exit(', '.join(name for name in unwanted if name in sys.modules) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_policy_saved_in_bfloat16_writes_too(tmp_path: Path) -> None:
    model = TINY.model_copy(update={"dtype": "bfloat16"})
    generator = Generator.load(write_policy(tmp_path / "model", model=model))
    assert generator.model.dtype == torch.bfloat16
    [ids] = generator([render(generator.tokenizer, REQUESTS[0], 128)], Decoding(4))
    assert 1 <= len(ids) <= 4
    logits = generator.logits(render(generator.tokenizer, REQUESTS[0], 128))
    assert np.isfinite(logits.float().numpy()).all()


@pytest.mark.parametrize(("configured", "listed"), [(3, {3}), ([3, 4], {3, 4}), (None, set())])
def test_a_completion_ends_at_the_model_s_ends_and_at_the_tokenizer_s(
    policy: Path, configured: int | list[int] | None, listed: set[int]
) -> None:
    generator = Generator.load(policy)
    tokenizer = generator.tokenizer
    own = {tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    assert own
    assert not own & {3, 4}
    generator.model.generation_config.eos_token_id = configured
    assert end_ids(generator.model, tokenizer) == own | listed
