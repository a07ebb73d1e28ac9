"""Explanations add up, rank as the reward ranks, and show hostile text as text."""

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from ospo.config import Config
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.reports.explain import Explanation, explain
from ospo.reports.explain_page import render, to_html, write_html
from ospo.reports.wording import shown as printable
from ospo.retrieval import load_retriever
from ospo.retrieval.base import Retriever
from ospo.reward.search import SearchReward


@pytest.fixture(scope="module")
def bm25(hm_tiny: PreparedData, tiny_config: Config) -> Retriever:
    retriever = load_retriever("bm25", tiny_config)
    retriever.index(hm_tiny.item_ids, hm_tiny.item_texts)
    return retriever


@pytest.fixture(scope="module")
def explained(bm25: Retriever, hm_tiny: PreparedData, tiny_config: Config) -> Explanation:
    request = hm_tiny.requests[3]
    target = hm_tiny.item_texts[hm_tiny.item_ids.index(request.target_id)]
    text = f"{request.query}, {' '.join(target.split()[:3])}; wooden spoon set, for the garden"
    return explain(tiny_config, hm_tiny, bm25, request.request_id, text)


def test_figures_add_up(
    explained: Explanation, bm25: Retriever, hm_tiny: PreparedData, tiny_config: Config
) -> None:
    reward = SearchReward(bm25, hm_tiny, tiny_config.reward.k, 100)
    target = [hm_tiny.item_ids[i] for i in hm_tiny.pools_RP[3]].index(explained.target.item_id)

    def rank(text: str) -> int:
        """The target's place under the scores that the reward ranks by."""
        scores = bm25.score([text], hm_tiny.pools_RP[3:4])[0]
        return 1 + (scores > scores[target]).sum() + (scores[:target] == scores[target]).sum()

    assert explained.reward == reward([explained.text], [3])[0]
    assert explained.estimator == "exact"
    assert len(explained.phrases) >= 3
    assert "".join(phrase.text for phrase in explained.phrases) == explained.text
    total = sum(phrase.credit for phrase in explained.phrases)
    assert total == pytest.approx(explained.reward - explained.empty_reward)
    for i, phrase in enumerate(explained.phrases):
        rest = " ".join(p.text.strip() for j, p in enumerate(explained.phrases) if j != i)
        assert phrase.reward_without == reward([rest], [3])[0]
        assert phrase.rank_without == rank(rest)
    assert explained.rank == rank(explained.text)
    assert explained.pool == 40
    assert (explained.target in explained.top) == (explained.rank <= 10)


def test_each_phrase_has_its_own_rank_without_it(
    bm25: Retriever, hm_tiny: PreparedData, tiny_config: Config
) -> None:
    """Without the only phrase that names the target, it falls; without the others it stays."""
    request = hm_tiny.requests[3]
    place = [hm_tiny.item_ids[i] for i in hm_tiny.pools_RP[3]].index(request.target_id)
    words = hm_tiny.item_texts[hm_tiny.item_ids.index(request.target_id)].split()[:3]
    text = f"{' '.join(words)}, wooden spoon set, for the garden"
    found = explain(tiny_config, hm_tiny, bm25, request.request_id, text)
    ranks = []
    for i in range(len(found.phrases)):
        rest = " ".join(p.text.strip() for j, p in enumerate(found.phrases) if j != i)
        scores = bm25.score([rest], hm_tiny.pools_RP[3:4])[0]
        before = scores[:place] == scores[place]
        ranks.append(1 + (scores > scores[place]).sum() + before.sum())
    assert [phrase.rank_without for phrase in found.phrases] == ranks
    assert ranks[0] > ranks[-1] == found.rank


def test_by_query_and_without_a_text(
    bm25: Retriever, hm_tiny: PreparedData, tiny_config: Config
) -> None:
    request = hm_tiny.requests[0]
    found = explain(tiny_config, hm_tiny, bm25, f" {request.query.upper()} ")
    assert found.query == request.query
    assert found.text == request.query
    assert found.to_dict()["dataset"] == "hm"
    assert len(explain(tiny_config, hm_tiny, bm25, request.request_id, "").phrases) == 0


def test_unknown_request_is_one_clear_line(
    bm25: Retriever, hm_tiny: PreparedData, tiny_config: Config
) -> None:
    with pytest.raises(
        InputError, match=r"no request has the id or the query 'nothing like it'.*for example"
    ):
        explain(tiny_config, hm_tiny, bm25, "nothing like it")


class _Tags(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> \x1b[31m[red]&amp;'


def test_hostile_text_stays_text(explained: Explanation, tmp_path: Path) -> None:
    phrase = dataclasses.replace(explained.phrases[0], text=HOSTILE)
    item = dataclasses.replace(explained.target, title=HOSTILE)
    hostile = dataclasses.replace(
        explained,
        text=HOSTILE,
        query=HOSTILE,
        request_id=HOSTILE,
        history=(HOSTILE,),
        retriever=HOSTILE,
        dataset=HOSTILE,
        target=item,
        top=(item, dataclasses.replace(item, gain=0.0)),
        phrases=(phrase, *explained.phrases[1:]),
    )
    page = _Tags(to_html(hostile))
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "img", "iframe", "a"}
    for _, attributes in page.seen:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href") or value == "data:,"
    assert page.text.count(printable(HOSTILE)) >= 8
    shown = io.StringIO()
    Console(file=shown, force_terminal=True, width=200).print(render(hostile))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    assert "\x1b" not in plain
    assert "[31m[red]&amp;" in plain  # the escape character is gone, the rest is shown as it is
    write_html(hostile, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == to_html(hostile)


def test_terminal_shows_phrases_and_ranks(explained: Explanation) -> None:
    shown = io.StringIO()
    Console(file=shown, width=160).print(render(explained))
    for phrase in explained.phrases:
        assert phrase.text.strip() in shown.getvalue()
        assert f"{phrase.credit:+.3f}" in shown.getvalue()
    assert f"rank {explained.rank} of 40" in shown.getvalue()


def test_page_is_self_contained(explained: Explanation) -> None:
    page = to_html(explained)
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
