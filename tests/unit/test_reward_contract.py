"""The reward's contract: abilities are declared, wrappers pass them on, and training uses them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_shop import LetterReward, make_policy, small_config

from ospo.config import Config
from ospo.credit import CreditEngine, PlainValue, Value, segment
from ospo.credit.engine import coalition_text
from ospo.credit.estimators import all_masks
from ospo.data.dataset import PreparedData
from ospo.policy.text import search_text
from ospo.retrieval import build_retriever
from ospo.reward import Counts, Reward, as_reward
from ospo.reward.costs import PricedReward, known_words
from ospo.reward.credit import credit_engine
from ospo.reward.search import SearchReward
from ospo.training.rl import build_trainer, priced, training_engine
from ospo.training.run import TrainingRun

ABILITIES = ("coalitions", "pool", "price", "counts")


def search_reward(name: str, data: PreparedData, config: Config) -> SearchReward:
    return SearchReward(build_retriever(name, config, data), data, config.reward.k, 10_000)


@pytest.mark.parametrize("forgotten", ABILITIES)
def test_a_wrapper_that_forgets_an_ability_cannot_be_made(forgotten: str) -> None:
    members: dict[str, Any] = {name: None for name in ABILITIES if name != forgotten}
    members["__call__"] = lambda self, texts, rows: np.zeros(len(texts))
    with pytest.raises(TypeError, match=forgotten):
        type("Wrapper", (Reward,), members)()
    assert issubclass(Reward, Value)


def test_a_plain_function_has_no_ability() -> None:
    reward = as_reward(lambda texts, rows: np.ones(len(texts)))
    assert (reward.coalitions, reward.pool, reward.price) == (None, None, None)
    reward(["a", "b"], [0, 0])
    assert reward.counts == Counts(0, 2)
    assert as_reward(reward) is reward
    assert isinstance(CreditEngine(LetterReward()).value, PlainValue)


def test_a_priced_reward_can_do_what_its_reward_can(
    esci_tiny: PreparedData, tiny_config: Config
) -> None:
    for name, linear in (("static", True), ("minilm", False)):
        inner = search_reward(name, esci_tiny, tiny_config)
        reward = PricedReward(inner, 0.2)
        assert reward.pool is inner
        assert (reward.coalitions is not None) is linear
        assert reward.counts == inner.counts
        twice = PricedReward(reward, 0.1)
        assert twice.price(["a, a"]) == pytest.approx(1.5 * reward.price(["a, a"]))


def test_prices_are_inside_coalition_values(esci_tiny: PreparedData, tiny_config: Config) -> None:
    inner = search_reward("static", esci_tiny, tiny_config)
    reward = PricedReward(inner, 0.3, 0.05, known_words(esci_tiny))
    answers = ["red xyloq dress!!, linen", f"{esci_tiny.requests[1].query}, blue, blue hat,,,"]
    cut = [segment(text, "delimiters") for text in answers]
    units = [[unit.strip() for unit in one.units] for one in cut]
    masks = [all_masks(len(one)) for one in cut]
    assert reward.coalitions is not None
    values = reward.coalitions(units, [0, 1], masks)
    for one, row, mask_CN, value_C in zip(cut, [0, 1], masks, values, strict=True):
        texts = [coalition_text(one, mask) for mask in mask_CN[:-1]]  # the last is the text itself
        assert value_C[:-1].tolist() == reward(texts, [row] * len(texts)).tolist()
        assert (value_C[:-1] != inner(texts, [row] * len(texts))).any()


def _answers(data: PreparedData) -> tuple[list[str], list[int]]:
    """Texts of seven phrases, with a word that no product holds in some."""
    rng = np.random.default_rng(3)
    words = sorted(known_words(data))
    rows = rng.integers(0, len(data.requests), 12).tolist()
    texts = []
    for row in rows:
        added = [" ".join(rng.choice(words, 2)) for _ in range(6)]
        texts.append(", ".join([data.requests[row].query, *added, "xyloq"][: 7 + row % 2]))
    return texts, rows


def test_credit_under_prices_is_inferred_from_scores(
    esci_tiny: PreparedData, tiny_config: Config
) -> None:
    """The default training's reward: priced, over an encoder. Budget 32 of 128 coalitions."""

    class WholeTexts(SearchReward):
        coalitions = None  # static vectors stand for an encoder

    retriever = build_retriever("static", tiny_config, esci_tiny)
    inner = WholeTexts(retriever, esci_tiny, 10, 100_000)
    reward = PricedReward(inner, 0.2, 0.02, known_words(esci_tiny))
    texts, rows = _answers(esci_tiny)
    values = reward(texts, rows)

    def credit(value: Any, **settings: Any) -> list[Any]:
        engine = CreditEngine(value, segments="delimiters", **settings)
        return engine.credit(texts, rows, values)

    exact = credit(reward, estimator="exact")
    found = credit(reward)
    blind = credit(lambda texts, rows: reward(texts, rows))
    assert {c.estimator for c in exact} == {"exact"}
    assert {c.estimator for c in found} == {"surrogate"}
    assert {c.estimator for c in blind} == {"bayes"}
    for a in found:
        assert a.phi_N.sum() == pytest.approx(a.total - a.empty_value, abs=1e-9)

    def error(credits: list[Any]) -> float:
        pairs = zip(credits, exact, strict=True)
        return float(np.mean([((a.phi_N - b.phi_N) ** 2).mean() for a, b in pairs]))

    assert error(found) < 0.5 * error(blind)
    # A price that is left out of the game, or counted twice, would be the whole error.
    strange = [b for b, text in enumerate(texts) if "xyloq" in text]
    for b in strange:
        assert found[b].phi_N[-1] == pytest.approx(exact[b].phi_N[-1], abs=0.012)


def test_training_says_which_estimator_it_uses(
    esci_tiny: PreparedData, tiny_config: Config, tmp_path: Path
) -> None:
    policy = make_policy(small_config(), esci_tiny, tmp_path / "policy")
    for name, config, expected in (
        ("minilm", small_config(), "surrogate"),
        ("static", small_config("credit.budget=8"), "exact"),
        ("minilm", small_config("credit.estimator=kernel"), "kernel"),
    ):
        reward = search_reward(name, esci_tiny, tiny_config)
        out = tmp_path / expected
        out.mkdir()
        trainer = build_trainer(TrainingRun(config, esci_tiny, out, policy, reward), "ospo")
        written = json.loads((out / "trainer_args.json").read_text())["credit"]
        assert written["estimator_used"] == expected
        assert trainer.engine is not None
        assert trainer.engine.estimator_used == expected
        assert trainer.engine.value.price is not None
    assert training_engine(small_config(), "grpo", as_reward(LetterReward()), "en") is None


def test_training_and_explanations_use_the_same_estimator(
    esci_tiny: PreparedData, tiny_config: Config
) -> None:
    reward = search_reward("minilm", esci_tiny, tiny_config)
    config = small_config()
    trained = training_engine(config, "ospo", priced(reward, config, esci_tiny), "en")
    assert trained is not None
    assert credit_engine(config, reward).estimator_used == trained.estimator_used == "surrogate"


def test_float32_rewards_are_of_the_same_game() -> None:
    engine = CreditEngine(LetterReward(), segments="delimiters")
    answer = ["red dress, linen"]
    rounded = torch.tensor(LetterReward()(answer, [0]), dtype=torch.float32)
    [credit] = engine.credit(answer, [0], rounded.numpy())
    assert credit.total == LetterReward()(answer, [0])[0]
    with pytest.raises(ValueError, match="not the one the rewards come from"):
        engine.credit(answer, [0], rounded.numpy() + np.float32(1e-6))


def test_empty_texts_of_a_search_reward_are_free(
    esci_tiny: PreparedData, tiny_config: Config
) -> None:
    reward = PricedReward(search_reward("static", esci_tiny, tiny_config), 0.5, 0.1, frozenset())
    assert search_text(" ,.") == ""
    assert reward([""], [0]).tolist() == [0.0]
