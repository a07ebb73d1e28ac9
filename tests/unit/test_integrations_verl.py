"""Phrase credit through verl's token-level tensors: what comes out is what the one function gives."""

import numpy as np
import pytest
import torch
from test_credit_completions import ANSWERS, Letters, batch, find, worth

from ospo.credit import Completions, CreditEngine, Redistribution, completion_advantages
from ospo.integrations.verl import TINY, phrase_rewards, to_go_advantage

UIDS = np.array(["b", "a", "b", "a", "b", "a", "c"], dtype=object)
GROUPS = [1, 0, 1, 0, 1, 0, 2]


def game(answers: list[str], added: bool = True):
    ids, mask = batch(answers)
    completions = Completions.read(
        [row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)], Letters(), find=find
    )
    engine = CreditEngine(worth, segments="delimiters", estimator="exact", added=added)
    rewards = worth(answers, [])
    return completions, mask, rewards, engine.credit(answers, [0] * len(answers), rewards)


def test_the_estimator_gives_what_the_one_function_gives() -> None:
    completions, mask, rewards, credits = game(ANSWERS)
    table = phrase_rewards(completions, credits, rewards, mask.shape[1])
    assert table.double().sum(1).tolist() == pytest.approx(rewards.tolist(), abs=1e-6)
    advantages, returns = to_go_advantage(table, mask, UIDS, config={"use_kl_in_reward": False})
    wanted = completion_advantages(
        Redistribution("to-go"), completions, mask, GROUPS, rewards, credits
    )
    assert torch.equal(advantages, returns)
    assert torch.allclose(advantages.double(), wanted, atol=1e-4)
    assert float((advantages[0] - advantages[0, 0]).abs().max()) > 0.01


def test_padding_on_the_left_and_another_order_change_nothing() -> None:
    completions, mask, rewards, credits = game(ANSWERS)
    table = phrase_rewards(completions, credits, rewards, mask.shape[1])
    first, _ = to_go_advantage(table, mask, UIDS)
    order = [3, 6, 0, 2, 5, 1, 4]
    pad = torch.zeros(len(order), 3)
    wide, wide_mask = torch.cat([pad, table[order]], 1), torch.cat([pad, mask[order]], 1)
    second, _ = to_go_advantage(wide, wide_mask, UIDS[order])
    assert torch.allclose(second[:, 3:], first[order], atol=1e-6)
    assert (second[:, :3] == 0).all()


def test_a_phrase_worth_nothing_is_a_phrase_still() -> None:
    completions, mask, rewards, credits = game(["wide, linen", "wide"])
    table = phrase_rewards(completions, credits, rewards, mask.shape[1])
    assert float(table[0, 6]) == pytest.approx(TINY, rel=1e-3)


def test_what_cannot_work_is_refused_in_one_line() -> None:
    completions, mask, rewards, credits = game(ANSWERS)
    table = phrase_rewards(completions, credits, rewards, mask.shape[1])
    whole = torch.zeros_like(table)
    whole[torch.arange(len(rewards)), mask.sum(1) - 1] = torch.tensor(rewards).float()
    plain = game(ANSWERS, added=False)[3]
    calls = [
        (lambda: to_go_advantage(whole, mask, UIDS), "no response holds a phrase"),
        (lambda: to_go_advantage(table, mask, UIDS, {"use_kl_in_reward": True}), "use_kl_in"),
        (lambda: phrase_rewards(completions, plain, rewards, 40), "is no credit for to-go"),
        (lambda: phrase_rewards(completions, credits, rewards, 5), "1 to 5"),
        (lambda: phrase_rewards(completions, credits[:2], rewards, 40), "2 credits"),
    ]
    for call, problem in calls:
        with pytest.raises(ValueError, match=problem) as caught:
            call()
        assert "\n" not in str(caught.value)
