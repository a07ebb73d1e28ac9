"""A warm start by the rule: names of earlier purchases of the requested type, and nothing else."""

from pathlib import Path

import pytest
from training_shop import LetterReward, small_config

from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.policy.guard import Guard, grounds, read_guard
from ospo.policy.prompts import asked_for, clean
from ospo.policy.rules import latest_name
from ospo.policy.text import EXPAND, REWRITE
from ospo.training.names import NameTeacher
from ospo.training.run import TrainingRun
from ospo.training.sft import train_sft
from ospo.training.train import train


def examples(teacher: NameTeacher, draws: int = 6):  # type: ignore[no-untyped-def]
    """Requests and texts of a few draws of every training request."""
    for row in teacher.rows.tolist():
        for draw in range(draws):
            yield teacher.example(row, draw)


def test_without_noise_the_text_is_what_the_rule_adds(hm_tiny: PreparedData) -> None:
    teacher = NameTeacher(hm_tiny, 0.0, 0, EXPAND)
    told = 0
    for request, text in examples(teacher):
        expected = EXPAND.added(request.query, latest_name(request))
        if expected:
            assert text == expected
            told += 1
    assert told > 0.9 * 6 * len(teacher.rows), "every type a shopper has bought can be asked for"
    whole = NameTeacher(hm_tiny, 0.0, 0, REWRITE)
    assert all(text.startswith(clean(request.query)) for request, text in examples(whole, 1))


def test_noise_varies_the_names_and_stays_with_the_requested_type(hm_tiny: PreparedData) -> None:
    teacher, plain = NameTeacher(hm_tiny, 1.0, 0, EXPAND), NameTeacher(hm_tiny, 0.0, 0, EXPAND)
    kinds = set()
    for (request, text), (_, latest) in zip(examples(teacher), examples(plain), strict=True):
        own = asked_for(request.query, request.history)
        names = {EXPAND.added(request.query, clean(p.name)) for p in own}
        colours = {clean(p.colour) for p in own}
        for part in filter(None, text.split(", ")):
            assert part in names or part in colours
        if latest:
            kinds.add("same" if text == latest else "more" if text.startswith(latest) else "other")
    assert kinds >= {"more", "other"}, "two names or a colour; an earlier name"


def test_texts_follow_from_seed_request_and_draw(hm_tiny: PreparedData) -> None:
    one, again = (list(examples(NameTeacher(hm_tiny, 0.5, 3, EXPAND), 2)) for _ in range(2))
    assert one == again
    assert one != list(examples(NameTeacher(hm_tiny, 0.5, 4, EXPAND), 2))
    row = int(hm_tiny.rows("test")[0])
    with pytest.raises(KeyError, match="not of the training split"):
        NameTeacher(hm_tiny, 0.5, 3, EXPAND).example(row, 0)


def test_targets_are_never_read(hm_tiny: PreparedData) -> None:
    """What the shopper bought then stands in no text, unless the shopper had bought it before."""
    for request, text in examples(NameTeacher(hm_tiny, 1.0, 0, EXPAND)):
        known = {word for p in request.history for word in clean(f"{p.name} {p.colour}").split()}
        assert set(text.replace(",", "").split()) <= known


def test_data_without_purchases_is_refused(esci_tiny: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sft\.targets"):
        NameTeacher(esci_tiny, 0.5, 0, EXPAND)
    config = small_config("presets.nano.sft.targets=history")
    with pytest.raises(InputError, match=r"sft\.targets"):
        train_sft(TrainingRun(config, esci_tiny, tmp_path / "sft"))


def test_a_policy_trained_where_there_is_a_name_answers_only_there(
    hm_tiny: PreparedData, tmp_path: Path
) -> None:
    config = small_config(
        "presets.nano.sft.targets=history", "training.only_with_history=true", "answer=expand"
    )
    run = TrainingRun(config, hm_tiny, tmp_path / "sft")
    train_sft(run)
    assert read_guard(tmp_path / "sft/model") == Guard(None, "own")
    then = TrainingRun(config, hm_tiny, tmp_path / "ospo", tmp_path / "sft/model", LetterReward())
    train(then, "ospo")
    assert read_guard(tmp_path / "ospo/model") == Guard(None, "own")
    given = [grounds(hm_tiny.requests[row]) for row in hm_tiny.rows("train").tolist()]
    assert {"own", "history"} <= set(given)
    plain = small_config("answer=expand")
    assert TrainingRun(plain, hm_tiny, tmp_path / "plain").guard is None


def test_two_guards_use_what_both_use() -> None:
    assert Guard(-1.0, "own").also(Guard(-2.0)) == Guard(-1.0, "own")
    assert Guard(None, "none").also(Guard(-2.0, "history")) == Guard(-2.0, "history")
    assert Guard().also(Guard()) == Guard()
