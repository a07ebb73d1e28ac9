"""Words, marks, tables and charts of reports, on figures with known answers."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ospo.data.dataset import PreparedData
from ospo.evaluation.analysis import Analysis, Comparison, Slice
from ospo.evaluation.statistics import Interval, Robustness
from ospo.reports.charts import Line, line_chart, smooth, ticks
from ospo.reports.compare import Named, comparison_table
from ospo.reports.data_profile import _histogram, describe
from ospo.reports.demo_table import demo_table, write_demo_report
from ospo.reports.evaluation import _curves
from ospo.reports.explain import _rankings
from ospo.reports.headline import headline, judged, summary_markdown, verdict
from ospo.reports.pages import coded, credit_class
from ospo.reports.wording import kept_text, marks, p_text, percent, shown, signed

CLEAR, UNCLEAR = 0.01, 0.2  # p-values


def interval(value: float) -> Interval:
    return Interval(value, value - 0.01, value + 0.01)


def analysis(
    differences: dict[tuple[str, str, str], tuple[float, float]],
    means: dict[str, float],
    best: str = "ospo",
) -> Analysis:
    """Comparisons (policy, reference, retriever) → (difference, Holm's p); uncorrected p is 0."""
    retrievers = ["minilm", "bm25", "static"]
    return Analysis(
        policies=list(means),
        retrievers=retrievers,
        requests=100,
        groups=100,
        seeds=1,
        means={policy: dict.fromkeys(retrievers, interval(m)) for policy, m in means.items()},
        seed_means={},
        measures=None,  # type: ignore[arg-type]  # not read here
        comparisons=[
            Comparison(*pair, interval(value), 0.0, p) for pair, (value, p) in differences.items()
        ],
        robustness={policy: [] for policy in means},
        controls=[],
        guards=[],
        slices=[],
        best=best,
    )


def test_numbers_in_words() -> None:
    assert [signed(v) for v in (-0.0004, 0.0004, -0.0, 0.25, -0.25)] == [
        "0.000",
        "0.000",
        "0.000",
        "+0.250",
        "−0.250",
    ]
    assert [p_text(p) for p in (0.0, 0.0009, 0.001, 0.0499, 0.1, 1.0)] == [
        "< 0.001",
        "< 0.001",
        "0.001",
        "0.050",
        "0.10",
        "1.00",
    ]
    assert percent(0.375) == "38 %"
    assert percent(-1.5) == "−150 %"


def test_text_of_data_is_one_printable_line() -> None:
    assert shown("a\u202eb\u2066c\x9bd\ue000e") == "a b c d e"
    assert shown("👩\u200d🚒 क\u094d\u200dष") == "👩\u200d🚒 क\u094d\u200dष"  # joiners are letters
    assert shown("x" * 300) == "x" * 300
    assert shown("x" * 301) == "x" * 299 + "…"


def test_marks_say_what_is_clear_after_the_correction() -> None:
    found = analysis(
        {
            ("ospo", "raw", "minilm"): (0.1, CLEAR),
            ("ospo", "raw", "bm25"): (-0.1, CLEAR),
            ("ospo", "raw", "static"): (0.1, UNCLEAR),
            ("ospo", "grpo", "minilm"): (0.05, CLEAR),
            ("ospo", "grpo", "bm25"): (-0.05, CLEAR),
            ("grpo", "raw", "minilm"): (0.1, CLEAR),
        },
        {"raw": 0.4, "grpo": 0.45, "ospo": 0.5},
    )
    assert [marks(found, "ospo", r) for r in found.retrievers] == ["▲‡", "▼§", ""]
    assert [marks(found, "grpo", r) for r in found.retrievers] == ["▲", "", ""]


@pytest.mark.parametrize(
    ("difference", "p", "says"),
    [
        (0.1, CLEAR, "OSPO's rewrites find the right products more often than the raw queries"),
        (-0.1, CLEAR, "OSPO's rewrites find the right products less often than the raw queries"),
        (
            0.1,
            UNCLEAR,
            "It is not clear that OSPO's rewrites find the right products more often than the raw "
            "queries",
        ),
    ],
)
def test_the_headline_follows_the_test(difference: float, p: float, says: str) -> None:
    found = analysis(
        {
            ("ospo", "raw", "minilm"): (difference, p),
            ("ospo", "raw", "bm25"): (-0.1, CLEAR),
            ("ospo", "raw", "static"): (0.1, CLEAR),
        },
        {"raw": 0.4, "ospo": 0.4 + difference},
    )
    said = headline(found)
    assert said[0] == f"{says} (100 requests, one training run)"
    assert f"from 0.400 to {0.4 + difference:.3f} under minilm" in said[1]
    assert "Under search engines it never saw it is clearly better with 1 of 2" in said[1]
    assert "and clearly worse with 1 of 2" in said[1]
    assert ("Keep the raw query" in said[4]) == (says[:4] != "OSPO" or "less" in says)


def test_a_retriever_where_it_is_worse_is_not_counted_as_better() -> None:
    found = analysis(
        {("ospo", "raw", r): (0.1 if r == "minilm" else -0.1, CLEAR) for r in ("minilm", "bm25")},
        {"raw": 0.4, "ospo": 0.5},
    )
    assert "it is clearly worse with 1 of 1" in headline(found)[1]
    assert "Serve it with minilm only: it is worse under bm25." in headline(found)[4]


def test_the_first_screen_answers_four_questions() -> None:
    found = verdict(analysis({("ospo", "raw", "minilm"): (0.1, CLEAR)}, {"raw": 0.4, "ospo": 0.5}))
    questions = [question for question, _ in found.pairs()]
    assert questions == ["Is it better?", "For whom?", "How sure?", "What next?"]
    better, whom, sure, after = found.answers
    assert better.startswith("Yes: nDCG@10 goes from 0.400 to 0.500")
    assert "n = 100 requests" in better
    assert "n = 100" in whom
    assert "The gain is +0.100, 95 % interval 0.090 to 0.110 (n = 100 requests)." in sure
    assert "one training run: another seed may give another result" in sure
    assert after.startswith("Train two more seeds")


def test_only_groups_of_some_size_are_named() -> None:
    base = analysis({("ospo", "raw", "minilm"): (0.1, CLEAR)}, {"raw": 0.4, "ospo": 0.5})
    slices = [
        Slice("words", "1", 19, {}, interval(0.9)),
        Slice("words", "2", 20, {}, interval(0.3)),
        Slice("words", "3", 50, {}, interval(0.2)),
        Slice("category", "coats", 30, {}, interval(-0.2)),
    ]
    whom = verdict(replace(base, slices=slices)).answers[1]
    assert "Most for “words in the query: 2” (+0.300, n = 20)" in whom
    assert "worse for “category of what is sought: coats” (−0.200, n = 30)" in whom
    whom = verdict(replace(base, slices=slices[1:3])).answers[1]
    assert "no group is clearly worse off" in whom


@pytest.mark.parametrize(
    ("low", "high", "p", "says"),
    [
        (0.001, 0.046, 0.21, "+0.023, p = 0.21 corrected for 24 comparisons"),
        (0.001, 0.046, 0.0004, "+0.023, 95 % interval 0.001 to 0.046"),
        (-0.01, 0.046, 0.21, "+0.023, 95 % interval −0.010 to 0.046"),
        (-0.01, 0.046, 0.0004, "+0.023, p < 0.001 corrected for 24 comparisons"),
    ],
)
def test_one_sentence_has_one_correction(low: float, high: float, p: float, says: str) -> None:
    """An interval without 0 beside "no clear difference" contradicts itself."""
    found = Comparison("ospo", "grpo", "minilm", Interval(0.023, low, high), 0.01, p)
    assert judged(found, 24) == says


def test_a_share_beyond_the_whole_is_all() -> None:
    assert [kept_text(v) for v in (2.12, 1.0, 0.455, 0.0, -0.4)] == [
        "all",
        "all",
        "46 %",
        "none",
        "none",
    ]
    kept = [
        Robustness("minilm", interval(0.1), None),
        Robustness("bm25", interval(0.2), interval(2.12)),
        Robustness("static", interval(0.05), interval(0.5)),
    ]
    pairs = {("ospo", "raw", r): (0.1, CLEAR) for r in ("minilm", "bm25", "static")}
    base = analysis(pairs, {"raw": 0.4, "ospo": 0.5})
    said = headline(replace(base, robustness={"ospo": kept}))[1]
    assert "keeping 50 % to all of that gain (the same n)" in said


@pytest.mark.parametrize(
    ("equal", "says", "after"),
    [
        ((), "OSPO's rewrites find the right products more often than the raw queries (", "Train"),
        (
            ("bm25", "static"),
            "more often than the raw queries, but under bm25 and static SFT is its equal (",
            "Train",
        ),
        (
            ("minilm",),
            "The rewrites find the right products more often than the raw queries, but OSPO is "
            "not clearly better at it than SFT (",
            "SFT alone may do",
        ),
    ],
)
def test_ospo_gets_no_credit_for_what_sft_does(
    equal: tuple[str, ...], says: str, after: str
) -> None:
    pairs = {("ospo", "raw", r): (0.1, CLEAR) for r in ("minilm", "bm25", "static")}
    pairs |= {
        ("ospo", "sft", r): (0.05, UNCLEAR if r in equal else CLEAR)
        for r in ("minilm", "bm25", "static")
    }
    said = headline(analysis(pairs, {"raw": 0.4, "sft": 0.45, "ospo": 0.5}))
    assert says in said[0]
    assert ("not clearly better than SFT." in said[1]) == bool(equal)
    assert said[4].startswith(f"What next? {after}")


@pytest.mark.parametrize(
    ("seeds", "says"),
    [(1, "one training run"), (3, "only 3 training runs"), (5, "5 training runs")],
)
def test_few_seeds_stand_in_the_headline(seeds: int, says: str) -> None:
    base = analysis({("ospo", "raw", "minilm"): (0.1, CLEAR)}, {"raw": 0.4, "ospo": 0.5})
    means = {"ospo": {"minilm": [0.49, 0.5, 0.51][:seeds]}}
    found = verdict(replace(base, seeds=seeds, seed_means=means))
    assert found.heading.endswith(f"(100 requests, {says})")
    assert ("so few make it rough" in found.answers[2]) == (seeds == 3)
    if seeds == 3:
        assert "(0.490, 0.500, 0.510 in 3 runs" in found.answers[2]
    assert ("Train two more seeds" in found.answers[3]) == (seeds == 1)


def test_a_rule_that_does_as_well_is_named() -> None:
    pairs = {("ospo", "raw", "minilm"): (0.1, CLEAR), ("ospo", "history", "minilm"): (0.0, UNCLEAR)}
    found = headline(analysis(pairs, {"raw": 0.4, "history": 0.5, "ospo": 0.5}))
    assert "Serve “rule: history”, which needs no model" in found[4]


def test_our_commands_are_code_and_data_stays_text() -> None:
    assert coded("`ospo <x>` & <b>") == "<code>ospo &lt;x&gt;</code> &amp; &lt;b&gt;"


def test_the_last_tick_is_not_clipped() -> None:
    chart = line_chart("t", "d", [Line("a", [0, 100_000], [0.1, 0.2])], "step", "y")
    [(at, anchor)] = re.findall(
        r'<text x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)"[^>]*>100000<', chart
    )
    assert anchor == "end"
    assert float(at) <= 360


def test_names_cannot_break_the_markdown_table() -> None:
    found = analysis({("a|b<c", "raw", "minilm"): (0.1, CLEAR)}, {"raw": 0.4, "a|b<c": 0.5}, "raw")
    table = [line for line in summary_markdown(found, "shop").splitlines() if line[:1] == "|"]
    assert any(line.startswith("| a\\|b&lt;c | 0.5000 ▲ |") for line in table)
    assert {line.replace("\\|", "").count("|") for line in table} == {5}


def printed(table: Any) -> str:
    shown = io.StringIO()
    Console(file=shown, width=200, force_terminal=True).print(table)
    return shown.getvalue()


def test_a_comparison_names_the_better_one() -> None:
    pairs = {("b", "a", "minilm"): (0.1, CLEAR), ("b", "a", "bm25"): (-0.1, CLEAR)}
    found = analysis(pairs | {("b", "a", "static"): (0.1, UNCLEAR)}, {"a": 0.4, "b": 0.5}, "b")
    a, b = (Named(name, Path(name)) for name in ("a", "b"))
    text = printed(comparison_table(found, a, b, "shop"))
    rows = {r: next(line for line in text.splitlines() if r in line) for r in found.retrievers}
    assert "B is better" in rows["minilm"]
    assert "A is better" in rows["bm25"]
    assert "no clear difference" in rows["static"]
    for row in rows.values():
        assert row.index("0.4000") < row.index("0.5000")


def test_the_demos_table_has_the_best_in_bold_and_data_as_it_is() -> None:
    figures = {"raw": {"minilm": 0.25, "bm25": 0.75}, "[red]x": {"minilm": 0.5, "bm25": 0.125}}
    text = printed(demo_table({"esci": {"test": figures}}, "minilm"))
    bold = "\x1b[1m"
    assert f"{bold}0.5000" in text
    assert f"{bold}0.7500" in text
    assert f"{bold}0.2500" not in text
    assert f"{bold}0.1250" not in text
    assert "[red]x" in text
    assert text.index("minilm") < text.index("bm25")


def test_the_demos_report_refuses_a_dataset_named_like_a_fact(tmp_path: Path) -> None:
    summary = {"test": {"raw": {"minilm": 0.123456789}}}
    facts: dict[str, Any] = {"registered": {}, "seconds": 1.26, "commit": "0" * 40}
    written = write_demo_report(tmp_path / "a.json", {"esci": summary}, **facts)
    assert written == json.loads((tmp_path / "a.json").read_text())
    assert written["esci"] == {"raw": {"minilm": 0.123457}}
    assert written["seconds"] == 1.3
    with pytest.raises(ValueError, match="'seconds', which is a key"):
        write_demo_report(tmp_path / "b.json", {"seconds": summary}, **facts)
    assert not (tmp_path / "b.json").exists()


def test_colours_follow_the_sign_and_the_size() -> None:
    values = [0.5, 0.2, 0.05, 0.01, 0.0, -0.01, -0.05, -0.2, -0.5]
    assert [credit_class(v) for v in values] == "h3 h2 h1 n n n b1 b2 b3".split()


def test_padding_is_in_no_ranking() -> None:
    scores = np.array([[0.5, 0.9, 0.5, -np.inf], [0.0, 0.0, 0.0, -np.inf]], dtype=np.float32)
    orders = _rankings(scores, np.array([7, 8, 9, -1]))
    assert [order.tolist() for order in orders] == [[8, 7, 9], [7, 8, 9]]


def test_a_profile_counts_places_and_relevant_items(esci_tiny: PreparedData) -> None:
    pools, gains = np.array(esci_tiny.pools_RP), np.array(esci_tiny.gains_RP)
    pools[:, 30:], gains[:, 30:] = -1, 0
    data = PreparedData(
        **{
            **{name: getattr(esci_tiny, name) for name in esci_tiny.__dataclass_fields__},
            "pools_RP": pools,
            "gains_RP": gains,
        }
    )
    figures = describe(data).figures
    assert figures["pool places, mean"] == "30.0"
    assert figures["relevant items in a pool, mean"] == f"{(gains > 0).sum(axis=1).mean():.2f}"
    assert (gains > 0).sum() < gains.size


def test_a_histogram_says_that_more_share_its_last_bar() -> None:
    assert _histogram("x", np.array([2, 3, 3, 12, 40])).counts == [
        ("0", 0),
        ("1", 0),
        ("2", 1),
        ("3", 2),
        *((str(n), 0) for n in range(4, 12)),
        ("12+", 2),
    ]


def test_a_running_mean_is_centred() -> None:
    assert smooth([0, 0, 3, 0, 0], 3) == [0, 1, 1, 1, 0]
    assert smooth([1.0, 5.0], 1) == [1.0, 5.0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.95), (0.37, 0.61), (-3, 17), (5, 5), (0, 1e-7)])
def test_an_axis_covers_its_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 9
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    with pytest.raises(ValueError, match="axis from"):
        ticks(low, math.nan)


def test_the_curve_of_several_seeds_ends_where_the_shortest_does(tmp_path: Path) -> None:
    for seed, steps in enumerate((9, 5)):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        rows = [{"step": n, "ndcg": 0.1 * (seed + 1)} for n in range(1, steps + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [{"model": str(tmp_path / f"seed{seed}" / "model")} for seed in (0, 1)]
    details = {"policies": {"ospo": {"model": runs[0]["model"], "runs": runs}}}
    chart, table = _curves(details, tmp_path / "evaluation")
    assert chart is not None
    assert table == [
        {"policy": "OSPO", "points": [(step, "0.150") for step in (1, 2, 3, 4, 5)]},
    ]
