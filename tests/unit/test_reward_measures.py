"""``reward.measure``: ir_measures' figures, functions of one's own, and mistakes in one line."""

import sys
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from conftest import ROOT
from documentation import python_blocks
from training_shop import make_policy, small_config

from ospo.config import load_config
from ospo.data.dataset import PreparedData
from ospo.errors import ConfigError, InputError
from ospo.retrieval import build_retriever
from ospo.reward.measures import parse_measure
from ospo.reward.search import SearchReward
from ospo.steps.train import _search_reward
from ospo.training.run import TrainingRun
from ospo.training.train import train


def rewards(
    data: PreparedData, measure: str, name: str = "bm25", whole: float = 0.0
) -> SearchReward:
    config = small_config()
    k, found = parse_measure(measure, 10)
    return SearchReward(build_retriever(name, config, data), data, k, 0, whole, found)


@pytest.mark.parametrize("measure", ["nDCG@5", "RR@10", "RR", "R@20", "AP", "AP@10"])
def test_the_reward_is_ir_measures_figure(esci_tiny: PreparedData, measure: str) -> None:
    rows = esci_tiny.rows("train")[:25].tolist()
    texts = [esci_tiny.requests[row].query for row in rows]
    reward = rewards(esci_tiny, measure)
    found = reward(texts, rows)
    scores_BP = reward.retriever.score(texts, esci_tiny.pools_RP[rows])
    wanted = ir_measures.parse_measure(measure)
    for b, row in enumerate(rows):
        order = np.argsort(-scores_BP[b], kind="stable")
        run = {"q": {str(place): float(len(order) - r) for r, place in enumerate(order)}}
        gains = esci_tiny.gains_RP[row]
        qrels = {"q": {str(p): round(float(g) * 100) for p, g in enumerate(gains) if g > 0}}
        expected = ir_measures.calc_aggregate([wanted], qrels, run)[wanted]
        assert found[b] == pytest.approx(expected, abs=1e-6), (measure, row)
    assert len(set(found.tolist())) > 2


def test_the_default_is_the_reward_as_it_was_to_the_bit(esci_tiny: PreparedData) -> None:
    config = small_config("retrievers.training=bm25", "retrievers.unseen=[static]")
    rows = esci_tiny.rows("train").tolist()
    texts = [esci_tiny.requests[row].query for row in rows]
    plain = SearchReward(build_retriever("bm25", config, esci_tiny), esci_tiny, 10, 0)
    assert (_search_reward(config, esci_tiny)(texts, rows) == plain(texts, rows)).all()
    other = small_config(
        "retrievers.training=bm25", "retrievers.unseen=[static]", "reward.measure=RR@10"
    )
    assert (_search_reward(other, esci_tiny)(texts, rows) != plain(texts, rows)).any()
    assert (rewards(esci_tiny, "nDCG")(texts, rows) == plain(texts, rows)).all()


@pytest.mark.parametrize("measure", ["RR@10", "AP"])
def test_coalitions_have_the_measure_s_value_to_the_bit(
    esci_tiny: PreparedData, measure: str
) -> None:
    reward = rewards(esci_tiny, measure, "static", whole=0.25)
    row = int(esci_tiny.rows("train")[0])
    units = ["red dress", "linen", "for work"]
    masks = np.array([[c >> n & 1 for n in range(3)] for c in range(8)], dtype=bool)
    assert reward.coalitions is not None
    [values_C] = reward.coalitions([units], [row], [masks])
    joined = [" ".join(u for u, held in zip(units, mask, strict=True) if held) for mask in masks]
    texts = [text or " " for text in joined]
    assert values_C.tolist() == reward(texts, [row] * 8).tolist()
    one_by_one = [float(reward([text], [row])[0]) for text in texts]
    assert values_C.tolist() == one_by_one, "whatever the batch"


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with the page's functions and broken ones."""
    [block] = [b for b in python_blocks(ROOT / "docs/howto/reward.md") if "clicked_gain" in b]
    (tmp_path / "mymeasures.py").write_text(
        block + "\n\ndef two(gains, texts):\n    return np.zeros(2 * len(texts))\n"
        "\n\ndef big(gains, texts):\n    return gains.sum(1) + 2.0\n"
        "\n\ndef broken(gains):\n    return gains\n\n\nNUMBER = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mymeasures", raising=False)


def test_a_function_of_ones_own_trains(
    esci_tiny: PreparedData, functions: None, tmp_path: Path
) -> None:
    reward = rewards(esci_tiny, "mymeasures:short_clicked_gain")
    row = int(esci_tiny.rows("train")[0])
    query = esci_tiny.requests[row].query
    short, long = reward([query, f"{query} {' '.join(f'word{n}' for n in range(20))}"], [row, row])
    assert 0 <= long <= short <= 1
    assert reward.coalitions is None, "values need the text"
    assert reward.pool is None
    config = small_config(
        "retrievers.training=bm25", "retrievers.unseen=[static]",
        "reward.measure=mymeasures:clicked_gain",
    )  # fmt: skip
    policy = make_policy(config, esci_tiny, tmp_path / "policy")
    run = TrainingRun(
        config, esci_tiny, tmp_path / "run", policy, _search_reward(config, esci_tiny)
    )
    train(run, "ospo")
    assert (tmp_path / "run/model").is_dir()


@pytest.mark.parametrize(
    ("measure", "match"),
    [
        ("nowhere_at_all:f", "cannot be imported"),
        ("mymeasures:missing", "no function 'missing'"),
        ("mymeasures:NUMBER", "is no function"),
        ("mymeasures:two", "of shape"),
        ("mymeasures:big", r"not within \[0, 1\]"),
        ("mymeasures:broken", "fails on two rankings"),
    ],
)
def test_a_wrong_function_is_one_line_before_training(
    functions: None, measure: str, match: str
) -> None:
    with pytest.raises(InputError, match=match) as error:
        parse_measure(measure, 10)
    assert "reward.measure" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("measure", ["ndcg", "R", "P@10", "RR@0", "no module:f", "nDCG@"])
def test_an_unknown_measure_is_refused_with_the_parameters(measure: str) -> None:
    with pytest.raises(ConfigError, match="reward"):
        load_config(Path(__file__).parents[2] / "params.yaml", [f"reward.measure={measure}"])
