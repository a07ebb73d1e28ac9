"""The report: what it says, that data cannot break out of it, and how it looks in a real
browser.
"""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import evaluation_shop as shop
import polars as pl
import pytest
from browser import Page, chromium
from typer.testing import CliRunner

from ospo.cli import app
from ospo.data.dataset import load_prepared
from ospo.errors import InputError
from ospo.evaluation.evaluate import evaluate
from ospo.evaluation.statistics import Interval
from ospo.metrics import read_metrics
from ospo.reports.evaluation import write_report
from ospo.reports.headline import headline, summary_markdown
from ospo.reports.pages import credit_class
from ospo.reports.wording import (
    interval_text,
    percent,
    shown,
    signed,
)

HOSTILE = '<script>alert("x")</script><img src=//evil.example/a.png onerror=alert(1)>"\'&{{ 7*7 }}\u202egnp.exe'
LONG = "x" * 5000
SECTIONS = [
    "results",
    "robustness",
    "learning",
    "slices",
    "examples",
    "measures",
    "checks",
    "lineage",
    "reproduce",
]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    """An evaluation of a good, a weak and a hostile policy over a shop with a hostile product and
    query.
    """
    root = tmp_path_factory.mktemp("report")
    shop.write_shop(root)
    folder = root / "prepared" / "shop"
    catalogue = pl.read_parquet(folder / "catalogue.parquet")
    catalogue.with_columns(title=pl.col("title") + f" {HOSTILE}").write_parquet(
        folder / "catalogue.parquet"
    )
    requests = pl.read_parquet(folder / "requests.parquet")
    requests.with_columns(query=pl.col("query") + f" {HOSTILE}").write_parquet(
        folder / "requests.parquet"
    )
    data = load_prepared(folder)

    def weak(request, colour: str) -> str:
        return (
            f"{colour if request.request_id[-1] in '02468' else 'pink'} {request.query.split()[-1]}"
        )

    policies = {
        "sft": shop.write_answers(root / "sft.jsonl", data, weak),
        "grpo": shop.write_answers(
            root / "grpo.jsonl", data, lambda r, colour: f"{HOSTILE}, {LONG}, {colour}"
        ),
        "ospo": shop.write_answers(
            root / "ospo.jsonl", data, lambda r, colour: f"{colour}, {r.query}, {HOSTILE}"
        ),
    }
    out = root / "runs" / "evaluation"
    evaluate(shop.config(), data, policies, out, cache=None)
    for name in ("grpo", "ospo"):
        (root / "runs" / name).mkdir()
        lines = [json.dumps({"step": step, "ndcg": 0.4 + 0.003 * step}) for step in range(1, 60)]
        (root / "runs" / name / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 60, "nd')
    return out


@pytest.fixture(scope="module")
def page(evaluation: Path, tmp_path_factory) -> Path:
    """The report, written once."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(evaluation, out, resamples=500, facts={"registered": HOSTILE})
    return out


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_data_stays_text(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    reader = Reader(html)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert not [
        name for _, attributes in reader.tags for name in attributes if name.startswith("on")
    ]
    # The hostile text was there to be escaped, its template braces were not run, its override mark
    # is gone.
    assert '<script>alert("x")</script>' in reader.text
    assert "{{ 7*7 }}" in reader.text
    assert "\u202e" not in html
    assert "x" * 400 not in html


def test_nothing_is_loaded_from_anywhere(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    for tag, attributes in Reader(html).tags:
        for name in ("src", "href", "action", "data", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert "@import" not in html
    assert not re.search(r"url\((?!data:)", html)
    assert len(html) < 400_000


def test_structure_for_screen_readers(page: Path) -> None:
    tags = Reader(page.read_text(encoding="utf-8")).tags
    names = [tag for tag, _ in tags]
    assert names.count("h1") == 1
    assert dict(tags)["html"].get("lang") == "en"
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    assert names.count("table") == names.count("caption")
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    drawings = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(drawings) >= 4
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert set(str(drawing["aria-labelledby"]).split()) <= set(ids)
    for tag, attributes in tags:
        if tag == "a":
            assert str(attributes["href"])[1:] in ids
        if (
            attributes.get("class") == "scroll"
        ):  # reachable and named, so that a keyboard can scroll it
            assert attributes["tabindex"] == "0"
            assert attributes.get("aria-label") or attributes.get("aria-labelledby") in ids


def test_figures_are_those_of_the_table(evaluation: Path, page: Path, tmp_path: Path) -> None:
    analysis = write_report(
        evaluation, tmp_path / "again.html", resamples=500, facts={"registered": HOSTILE}
    )
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    rows = pl.read_parquet(evaluation / "evaluation.parquet").filter(
        (pl.col("split") == "test") & (pl.col("scope") == "pool") & (pl.col("decoding") == "greedy")
    )
    text = Reader(page.read_text(encoding="utf-8")).text
    for (policy, retriever), part in rows.group_by("policy", "retriever"):
        mean = part["ndcg@10"].mean()
        assert analysis.means[policy][retriever].value == pytest.approx(mean)
        assert f"{mean:.3f}" in text
    summary = json.loads((evaluation / "summary.json").read_text())
    for policy, row in summary["test"].items():
        for retriever, value in row.items():
            assert analysis.means[policy][retriever].value == pytest.approx(value)


def test_words(evaluation: Path, tmp_path: Path) -> None:
    analysis = write_report(evaluation, tmp_path / "r.html", resamples=500)
    said = headline(analysis)
    assert said[0].startswith("OSPO's rewrites find the right products more often")
    assert "never saw it is clearly better with 1 of 1, keeping" in said[1]
    table = summary_markdown(analysis, "shop")
    assert "| OSPO |" in table
    assert "▲" in table
    assert signed(-0.0004) == "0.000"
    assert signed(0.1) == "+0.100"
    assert signed(-0.1) == "−0.100"
    assert interval_text(Interval(0.1, -0.0004, 0.2)) == "0.000 to 0.200"
    assert interval_text(Interval(-0.1, -0.2, -0.03), 2) == "−0.20 to −0.03"
    assert percent(-0.2) == "−20 %"
    assert shown("a\x00b\u202ec\nd\ud800") == "a b c d"
    assert shown("y" * 50, 10) == "y" * 9 + "…"


def test_missing_or_empty_evaluation(tmp_path: Path, evaluation: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation"):
        write_report(tmp_path, tmp_path / "r.html")
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("details.json", "summary.json", "slices.parquet"):
        (broken / name).write_bytes((evaluation / name).read_bytes())
    with pytest.raises(InputError, match="file not found"):
        write_report(broken, tmp_path / "r.html")
    (broken / "evaluation.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="not a readable parquet"):
        write_report(broken, tmp_path / "r.html")
    table = pl.read_parquet(evaluation / "evaluation.parquet")
    table.filter(pl.col("split") == "validation").write_parquet(broken / "evaluation.parquet")
    with pytest.raises(InputError, match="holds no test request"):
        write_report(broken, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(InputError, match="none named"):
        write_report([], tmp_path / "r.html")


def test_training_log(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_metrics(file) == []
    file.write_text('{"step": 1, "ndcg": 0.5}\nnonsense\n')
    with pytest.raises(InputError, match="line 2"):
        read_metrics(file)


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any policies on any prepared data, two seeds of one of them, and the page of that
    evaluation.
    """
    data = shop.write_shop(tmp_path)
    good = [shop.write_answers(tmp_path / f"good{s}.jsonl", data, shop.oracle) for s in (0, 1)]
    weak = shop.write_answers(tmp_path / "weak.jsonl", data, lambda request, colour: "pink hat")
    monkeypatch.chdir(tmp_path)
    common = ["--params", str(shop.ROOT / "params.yaml"), "--set", "retrievers.training=bm25"]
    common += ["--set", "retrievers.unseen=[static]", "--set", "evaluation.resamples=200"]
    policies = [
        f"--policy={name}={file}"
        for name, file in (("good", good[0]), ("good", good[1]), ("weak", weak))
    ]
    done = CliRunner().invoke(
        app,
        ["evaluate", *policies, "--data", str(data.directory), "--out", "tables", *common],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    assert "good" in done.stdout
    done = CliRunner().invoke(
        app, ["report", "--evaluation", "tables", *common], catch_exceptions=False
    )
    assert "wrote reports/tables.html" in done.stdout
    page = (tmp_path / "reports" / "tables.html").read_text(encoding="utf-8")
    assert "mean of 2 seeds" in page
    assert "t-test over training seeds" in page
    text = " ".join(Reader(page).text.split())
    # The page says how to make it again, with the very files.
    assert f"--policy 'good={good[0]}' --policy 'good={good[1]}' --policy 'weak={weak}'" in text
    for wrong in ("good", "=x", "raw=x.jsonl", "good="):
        with pytest.raises(InputError, match="is not NAME=PATH"):
            CliRunner().invoke(
                app,
                ["evaluate", "--policy", wrong, "--data", "prepared/shop", *common],
                catch_exceptions=False,
            )
    for command in (["evaluate"], ["report"], ["evaluate", "--policy", f"a={weak}"]):
        with pytest.raises(InputError, match="is missing"):
            CliRunner().invoke(app, [*command, *common], catch_exceptions=False)
    with pytest.raises(InputError, match="need --policy"):
        CliRunner().invoke(app, ["evaluate", "--out", "x", *common], catch_exceptions=False)


def test_colours_mean_the_same_everywhere() -> None:
    assert [credit_class(v) for v in (0, 0.01, -0.019, 0.05, 0.2, 0.9)] == [
        "n",
        "n",
        "n",
        "h1",
        "h2",
        "h3",
    ]
    assert [credit_class(-v) for v in (0.05, 0.1, 0.3)] == ["b1", "b2", "b3"]


@pytest.fixture(scope="module")
def tab():
    """A browser tab; skipped where no Chromium is installed."""
    if chromium() is None:
        pytest.skip("no Chromium on this machine")
    opened = Page()
    yield opened
    opened.close()


def overflow(tab: Page) -> list[str]:
    """Elements that stick out of the viewport, outside of regions that scroll by themselves."""
    return tab.ask(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, .sr, "
        ".skip') &&"
        " e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName + '.' + "
        "e.className).slice(0, 5)"
    )


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser(tab: Page, page: Path, width: int, dark: bool) -> None:
    tab.problems.clear()
    tab.requests.clear()
    tab.open(page, width, dark)
    tab.keep(f"report-{width}-{'dark' if dark else 'light'}")
    for section in SECTIONS:
        assert (
            tab.ask(f"document.getElementById('{section}').getBoundingClientRect().height") > 20
        ), section
    tab.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.ask("document.documentElement.scrollWidth") <= width
    assert overflow(tab) == []
    assert tab.problems == []
    assert tab.requests == [page.resolve().as_uri()]
    background = tab.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in re.findall(r"\d+", background)[:3]) < 200) == dark


@pytest.mark.parametrize("width", [390, 1400])
def test_no_letter_of_a_chart_is_clipped(tab: Page, page: Path, width: int) -> None:
    tab.open(page, width)
    clipped = tab.ask(
        "[...document.querySelectorAll('svg')].flatMap(s => [...s.querySelectorAll('text')].filter("
        "t => { const a = t.getBoundingClientRect(), b = s.getBoundingClientRect();"
        " return a.width && (a.right > b.right + 1 || a.left < b.left - 1 || a.bottom > b.bottom + "
        "1) })).map(t => t.textContent)"
    )
    assert clipped == []


def test_the_first_screen_holds_the_four_answers(tab: Page, page: Path) -> None:
    tab.open(page, 1400)
    assert tab.ask("[...document.querySelectorAll('.verdict dt')].map(e => e.textContent)") == [
        "Is it better?",
        "For whom?",
        "How sure?",
        "What next?",
    ]
    bottom = tab.ask("document.querySelector('.verdict').getBoundingClientRect().bottom")
    assert bottom < 844


def test_a_table_that_is_cut_says_so(tab: Page, page: Path) -> None:
    """On a phone: a shade at the edge beyond which there is more, and words where the browser can."""
    tab.open(page, 390)
    tab.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    cut = tab.ask(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
        ".map(e => getComputedStyle(e).backgroundImage.split('linear-gradient').length - 1)"
    )
    assert cut
    assert set(cut) == {4}
    if tab.ask("CSS.supports('container-type: scroll-state')"):
        words = tab.ask(
            "[...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth > e.clientWidth + 1,"
            " getComputedStyle(e.querySelector('caption > span'), '::after').content])"
        )
        assert {(wide, "scroll for more" in said) for wide, said in words} <= {
            (True, True),
            (False, False),
        }


def test_figures_name_their_n(page: Path) -> None:
    text = Reader(page.read_text(encoding="utf-8")).text
    html = page.read_text(encoding="utf-8")
    captions = re.findall(r"<caption[^>]*><span>(.*?)</span>", html)
    counted = [c for c in captions if "nDCG@10" in c or "Gain" in c or c.startswith("Measures")]
    assert len(counted) >= 4
    assert all("n = " in c or "by" in c or ": nDCG@10" in c for c in counted)
    cards = re.findall(r'<li><span class="name">.*?</li>', html)
    assert cards
    assert all("n = " in card for card in cards)
    assert text.count("n = ") > 10


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(tab: Page, page: Path, dark: bool) -> None:
    """WCAG AA: 4.5 to 1 for all running text, colours composed over what lies below."""
    tab.open(page, 1200, dark)
    worst = tab.ask(
        """(() => {
          const canvas = document.createElement('canvas'), pen = canvas.getContext('2d', {willReadFrequently: true});
          canvas.width = canvas.height = 1;
          const paint = layers => {
            pen.clearRect(0, 0, 1, 1);
            for (const c of layers) { pen.fillStyle = c; pen.fillRect(0, 0, 1, 1); }
            return pen.getImageData(0, 0, 1, 1).data; };
          const light = rgb => { const f = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            return 0.2126 * f(rgb[0]) + 0.7152 * f(rgb[1]) + 0.0722 * f(rgb[2]); };
          let worst = [99, ''];
          const text = 'p, li, td, th, dd, dt, h1, h2, h3, a, summary, small, span, caption, figcaption';
          for (const e of document.querySelectorAll(text)) {
            if (!e.textContent.trim() || e.closest('.skip')) continue;
            const layers = [];
            for (let n = e; n; n = n.parentElement) layers.unshift(getComputedStyle(n).backgroundColor);
            const below = light(paint(layers)), ink = light(paint([...layers, getComputedStyle(e).color]));
            const ratio = (Math.max(below, ink) + 0.05) / (Math.min(below, ink) + 0.05);
            if (ratio < worst[0]) worst = [ratio, e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 40)];
          }
          return worst; })()"""
    )
    assert worst[0] >= 4.5, worst


def test_keyboard_and_print(tab: Page, page: Path) -> None:
    tab.open(page, 1200)
    tab.press("Tab", 9)
    assert tab.ask("document.activeElement.className") == "skip"
    assert tab.ask("document.activeElement.getBoundingClientRect().left") >= 0
    seen = set()
    for _ in range(60):
        tab.press("Tab", 9)
        seen.add(tab.ask("document.activeElement.tagName"))
    assert {"A", "SUMMARY", "DIV"} <= seen
    assert tab.pdf().startswith(b"%PDF")
