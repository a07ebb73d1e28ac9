"""Credit on real parts: the tiny shop, MiniLM and BM25, spaCy phrases, the search reward."""

import re

import numpy as np
import pytest

from ospo.config import Config
from ospo.credit import CreditEngine, coalition_text, shapley_values
from ospo.credit.estimators import all_masks
from ospo.credit.segments import repeated
from ospo.data.dataset import PreparedData
from ospo.retrieval import load_retriever
from ospo.reward.search import SearchReward


def _reward(name: str, data: PreparedData, config: Config) -> SearchReward:
    retriever = load_retriever(name, config)
    retriever.index(data.item_ids, data.item_texts)
    return SearchReward(retriever, data, 10, 50_000)


@pytest.fixture(scope="module")
def minilm(esci_tiny: PreparedData, tiny_config: Config) -> SearchReward:
    return _reward("minilm", esci_tiny, tiny_config)


def _answers(data: PreparedData) -> tuple[list[str], list[int]]:
    """Texts of 7 or so phrases without repeats: a query, half of a relevant title, half of another
    item's.
    """

    def words(row: int, place: int) -> list[str]:
        return list(dict.fromkeys(re.findall(r"\w+", data.item_texts[data.pools_RP[row][place]])))

    texts, rows = [], []
    for row in range(3):
        gains = data.gains_RP[row]
        right, wrong = words(row, int(gains.argmax())), words(row, int(gains.argmin()))
        parts = [
            data.requests[row].query,
            *(" ".join(w[i : i + 3]) for w in (right, wrong) for i in (0, 3, 6)),
        ][:7]
        texts.append(", ".join(part for part in parts if part))
        rows.append(row)
    return texts, rows


def test_the_credits_game_is_the_rewards(minilm: SearchReward, esci_tiny: PreparedData) -> None:
    # Trap 2: same pool, same relevant items, same path, to the last bit; the engine raises where
    # v(N) differs.
    answers, rows = _answers(esci_tiny)
    rewards = minilm(answers, rows)
    for credit, reward in zip(
        CreditEngine(minilm).credit(answers, rows, rewards), rewards, strict=True
    ):
        assert credit.total == reward
        assert credit.phi_N.sum() == pytest.approx(reward - credit.empty_value, abs=1e-9)
    with pytest.raises(ValueError, match=r"v\(N\) is"):
        CreditEngine(minilm).credit(answers, rows[::-1], rewards)


def test_scores_explain_the_rewards(minilm: SearchReward, esci_tiny: PreparedData) -> None:
    answers, rows = _answers(esci_tiny)
    scores = minilm.pool_scores([*answers, " ,"], [*rows, 0])
    assert (scores[-1][np.isfinite(scores[-1])] == 0).all()
    for text, row, given in zip(answers, rows, scores, strict=False):
        assert minilm.measure(given[None], row).tolist() == minilm([text], [row]).tolist()


class WholeTexts(SearchReward):
    """A reward that scores no coalition from its parts."""

    coalitions = None


def test_auto_is_close_to_exact_on_real_texts(esci_tiny: PreparedData, tiny_config: Config) -> None:
    # Static embeddings stand in for an encoder: their scores are shown, their parts are not.
    # Encoders are in the benchmark, where all coalitions of many texts take minutes.
    linear = _reward("static", esci_tiny, tiny_config)
    reward = WholeTexts(linear.retriever, esci_tiny, linear.k, tiny_config.reward.cache_texts)
    answers, rows = _answers(esci_tiny)
    errors: dict[str, float] = dict.fromkeys(("auto", "bayes", "contiguous"), 0.0)
    partial = 0
    for name in errors:
        engine = CreditEngine(reward, segments="delimiters", estimator=name, budget=32)
        for credit in engine.credit(answers, rows):
            assert not any(
                repeated(credit.segmentation)
            )  # they do not play: tests/test_credit_repeats.py
            masks = all_masks(len(credit.segmentation))
            row = rows[answers.index(credit.segmentation.text)]
            values = reward(
                [coalition_text(credit.segmentation, mask) for mask in masks], [row] * len(masks)
            )
            errors[name] += float(((credit.phi_N - shapley_values(values)) ** 2).mean())
            partial += len(masks) > 32
            assert credit.evaluations <= 32
    assert partial >= 6  # of 9: else nothing was estimated
    assert errors["auto"] <= errors["contiguous"] / 4
    assert errors["bayes"] <= errors["contiguous"] / 2


def test_linear_retrievers_are_exact_beyond_the_budget(
    esci_tiny: PreparedData, tiny_config: Config
) -> None:
    reward = _reward("bm25", esci_tiny, tiny_config)
    answers, rows = _answers(esci_tiny)
    rewards = reward(answers, rows)
    credits = CreditEngine(reward, segments="delimiters", budget=16).credit(answers, rows, rewards)
    for credit, row in zip(credits, rows, strict=True):
        masks = all_masks(len(credit.segmentation))
        values = reward(
            [coalition_text(credit.segmentation, mask) for mask in masks], [row] * len(masks)
        )
        assert credit.phi_N == pytest.approx(shapley_values(values), abs=1e-12)
        assert credit.total == values[-1]
