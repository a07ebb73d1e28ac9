"""The warm start: noisy teacher texts from the training split alone, loss on completions alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_shop import small_config

from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.policy.prompts import clean
from ospo.policy.seen import read_seen, request_keys
from ospo.policy.text import EXPAND
from ospo.policy.weights import create_policy, load_policy
from ospo.training.arguments import trainer_arguments
from ospo.training.callbacks import read_metrics
from ospo.training.dpo import dpo_arguments
from ospo.training.run import TrainingRun
from ospo.training.sft import (
    IGNORE,
    collate,
    sft_examples,
    supervised_arguments,
    teacher_of,
    train_sft,
)
from ospo.training.teacher import Teacher


def test_teacher_texts_hold_the_request_and_attributes_of_a_relevant_item(
    esci_tiny: PreparedData,
) -> None:
    teacher = Teacher(esci_tiny, 0.0, 0)
    for row in teacher.rows[:20].tolist():
        query = clean(esci_tiny.requests[row].query)
        gains = esci_tiny.gains_RP[row]
        own = {
            a
            for i in esci_tiny.pools_RP[row][gains == gains.max()]
            for a in teacher.attributes(int(i))
        }
        for draw in range(5):
            text = teacher.text(row, draw)
            assert text.startswith(query)
            rest = text[len(query) :]
            assert all(word in " ".join(own) for word in rest.replace(",", " ").split())


def test_noise_loses_and_replaces_attributes(hm_tiny: PreparedData) -> None:
    def share_of_own(noise: float) -> tuple[float, float]:
        teacher = Teacher(hm_tiny, noise, 0)
        own = words = texts = 0
        for row in teacher.rows.tolist():
            item = hm_tiny.item_ids.index(hm_tiny.requests[row].target_id)
            query = clean(hm_tiny.requests[row].query)
            for draw in range(4):
                added = teacher.text(row, draw)[len(query) :].replace(",", " ").split()
                own += sum(word in " ".join(teacher.attributes(item)) for word in added)
                words, texts = words + len(added), texts + 1
        return own / words, words / texts

    clean_share, clean_words = share_of_own(0.0)
    noisy_share, noisy_words = share_of_own(0.6)
    assert clean_share == 1
    assert 0.4 < noisy_share < 0.9
    assert noisy_words < 0.9 * clean_words


def test_teacher_texts_vary_by_draw_and_depend_on_nothing_else(hm_tiny: PreparedData) -> None:
    teacher, again = Teacher(hm_tiny, 0.5, 3), Teacher(hm_tiny, 0.5, 3)
    row = int(teacher.rows[0])
    texts = [teacher.text(row, draw) for draw in range(20)]
    assert texts == [again.text(row, draw) for draw in range(20)]
    assert len(set(texts)) > 5
    assert any("," in text for text in texts)


def test_nothing_is_written_for_held_out_requests(hm_tiny: PreparedData) -> None:
    teacher = Teacher(hm_tiny, 0.5, 0)
    train = set(hm_tiny.rows("train").tolist())
    assert set(teacher.rows.tolist()) == train
    for row in [*hm_tiny.rows("test").tolist(), *hm_tiny.rows("validation").tolist()]:
        with pytest.raises(KeyError):
            teacher.text(row, 0)
        for draw in range(10):
            with pytest.raises(KeyError):
                teacher.example(row, draw)


def test_examples_show_only_what_a_training_request_and_the_catalogue_hold(
    hm_tiny: PreparedData,
) -> None:
    teacher = Teacher(hm_tiny, 0.0, 0)
    kinds = {"purchase": 0, "item": 0}
    named = {
        " ".join(sorted(f"{c} {k}".lower().split()))
        for c, k in hm_tiny.catalogue["colour", "category"].rows()
    }
    for row in teacher.rows.tolist():
        original = hm_tiny.requests[row]
        for draw in range(12):
            request, text = teacher.example(row, draw)
            assert request.request_id == original.request_id
            assert text.startswith(clean(request.query))
            if request.history or " ".join(sorted(request.query.split())) not in named:
                kinds["purchase"] += 1
                assert set(request.history) <= set(original.history)
                assert (
                    len(original.history) < 2 or len(request.history) == len(original.history) - 1
                )
            else:
                kinds["item"] += 1
    assert min(kinds.values()) > 20


def test_the_warm_start_does_not_learn_a_shoppers_target_by_heart(hm_tiny: PreparedData) -> None:
    teacher = Teacher(hm_tiny, 0.0, 0)
    types = {i: kind.lower() for i, kind in hm_tiny.catalogue["item_id", "category"].rows()}
    asked = 0
    for row in teacher.rows.tolist():
        original = hm_tiny.requests[row]
        for draw in range(6):
            request, _ = teacher.example(row, draw)
            if len(request.history) and types[original.target_id] not in {
                p.type.lower() for p in original.history
            }:
                asked += (
                    len(original.history) > 1 and types[original.target_id] in request.query.split()
                )
    assert asked == 0


def test_a_purchase_is_said_in_its_order_and_an_item_in_any(hm_tiny: PreparedData) -> None:
    teacher = Teacher(hm_tiny, 0.0, 0, EXPAND, (2, 3))
    purchases = 0
    for row in teacher.rows.tolist():
        original = hm_tiny.requests[row]
        for draw in range(12):
            request, text = teacher.example(row, draw)
            left = set(original.history) - set(request.history)
            if not request.history or len(left) != 1:
                continue
            bought = left.pop()
            own = " ".join([clean(bought.colour), *clean(bought.name).split()]).split()
            said = [own.index(word) for word in text.replace(",", "").split() if word in own]
            assert said == sorted(said), (text, own)
            purchases += len(said) > 1
    assert purchases > 50

    orders = set()  # a target's: an order by rank would tell which attribute comes first
    for row in teacher.rows.tolist():
        target = hm_tiny.item_ids.index(hm_tiny.requests[row].target_id)
        for draw in range(6):
            words = teacher.text(row, draw).replace(",", "").split()
            places = [" ".join(teacher.attributes(target)).split().index(word) for word in words]
            orders.add(places == sorted(places))
    assert orders == {True, False}


@pytest.mark.parametrize(("least", "most"), [(1, 1), (1, 4), (3, 4), (2, 2)])
def test_a_teacher_text_says_as_many_attributes_as_it_may(
    least: int, most: int, esci_tiny: PreparedData
) -> None:
    teacher = Teacher(esci_tiny, 0.0, 0, EXPAND, (least, most))
    texts = [teacher.text(row, draw) for row in teacher.rows.tolist() for draw in range(20)]
    # Commas mostly; texts whose words run on are of as many words, as attributes are here.
    said = {len(text.replace(",", "").split()) for text in texts}
    assert (min(said), max(said)) == (least, most)


def test_the_configuration_says_how_many_attributes(esci_tiny: PreparedData) -> None:
    sft = "presets.nano.sft"
    row = int(esci_tiny.rows("train")[0])
    for number in (2, 3):
        exactly = [f"{sft}.min_attributes={number}", f"{sft}.max_attributes={number}"]
        config = small_config(f"{sft}.teacher_noise=0", *exactly)
        text = teacher_of(config, esci_tiny, EXPAND).text(row, 0)
        assert len(text.replace(",", "").split()) == number
    with pytest.raises(InputError, match="min_attributes: is 3, above max_attributes, 2"):
        small_config("presets.nano.sft.min_attributes=3", "presets.nano.sft.max_attributes=2")


def test_only_the_answer_is_trained_on_and_it_ends(esci_tiny: PreparedData) -> None:
    config = small_config()
    teacher = Teacher(esci_tiny, 0.5, 0)
    _, tokenizer = create_policy(config.preset.model, teacher.tokenizer_texts(), 0)
    for example in sft_examples(config, esci_tiny, tokenizer, teacher, 16):
        trained = [label for label in example["labels"] if label != IGNORE]
        assert len(example["labels"]) == len(example["input_ids"])
        assert example["input_ids"][-len(trained) :] == trained
        assert trained[-1] == tokenizer.eos_token_id
        assert trained[0] == tokenizer.convert_tokens_to_ids("<answer>")
        assert len(trained) <= config.preset.rl.max_completion_tokens


def test_padding_is_never_trained_on() -> None:
    batch = collate(
        [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}], pad=0
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


def test_a_request_of_the_training_split_is_seen_once_a_pass(esci_tiny: PreparedData) -> None:
    config = small_config()
    teacher = Teacher(esci_tiny, 0.5, 0)
    _, tokenizer = create_policy(config.preset.model, teacher.tokenizer_texts(), 0)
    n = len(teacher.rows)
    from ospo.training.sft import _order

    order = list(_order(teacher.rows, 2 * n + 3, 0))
    assert sorted(row for row, draw in order if draw == 0) == sorted(teacher.rows.tolist())
    assert sorted(row for row, draw in order if draw == 1) == sorted(teacher.rows.tolist())
    assert len(order) == 2 * n + 3
    assert len(sft_examples(config, esci_tiny, tokenizer, teacher, 2 * n + 3)) == 2 * n + 3


@pytest.mark.parametrize(
    ("key", "value", "argument", "expected"),
    [
        ("steps", "7", "max_steps", 7),
        ("batch_size", "3", "per_device_train_batch_size", 3),
        ("gradient_accumulation", "2", "gradient_accumulation_steps", 2),
        ("learning_rate", "3.0e-5", "learning_rate", 3e-5),
        ("warmup", "5", "warmup_steps", 5),
    ],
)
def test_each_sft_key_reaches_the_trainer(
    tmp_path: Path, key: str, value: str, argument: str, expected: float
) -> None:
    config = small_config(f"presets.nano.sft.{key}={value}")
    assert getattr(supervised_arguments(config, config.preset.sft, tmp_path), argument) == expected


def test_every_trainer_writes_checkpoints_as_often_as_the_preset_says(tmp_path: Path) -> None:
    config = small_config("presets.nano.rl.checkpoint_every=7")
    preset = config.preset
    arguments = [
        supervised_arguments(config, preset.sft, tmp_path),
        supervised_arguments(config, preset.rft, tmp_path),
        dpo_arguments(config, tmp_path),
        trainer_arguments(config, "ospo", tmp_path),
    ]
    assert [(a.save_strategy, a.save_steps) for a in arguments] == [("steps", 7)] * 4


def test_training_lowers_the_loss_writes_metrics_and_a_policy_and_repeats_itself(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    config = small_config("presets.nano.sft.steps=30", "presets.nano.sft.learning_rate=5.0e-3")
    logged: list[tuple[int, float]] = []
    train_sft(
        TrainingRun(
            config,
            esci_tiny,
            tmp_path / "a",
            on_log=lambda step, metrics: logged.append((step, metrics["loss"])),
        )
    )
    assert [step for step, _ in logged] == list(range(1, 31))
    losses = [loss for _, loss in logged]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    assert [row["loss"] for row in read_metrics(tmp_path / "a" / "metrics.jsonl")] == losses
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["metrics.jsonl", "model"]
    again: list[float] = []
    train_sft(
        TrainingRun(
            config,
            esci_tiny,
            tmp_path / "b",
            on_log=lambda step, metrics: again.append(metrics["loss"]),
        )
    )
    assert again == losses
    assert read_seen(tmp_path / "a" / "model") == set(
        request_keys(esci_tiny, esci_tiny.rows("train"))
    )
    first, _ = load_policy(tmp_path / "a" / "model")
    second, _ = load_policy(tmp_path / "b" / "model")
    assert all(
        torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)
    )
