"""The page of ``ospo page`` in a real Chromium: typing, switching phrases off, going back, errors;
no console error, and nothing but the page's own server is asked.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from browser import Page, chromium
from conftest import ROOT
from page_shop import settings, write_data, write_project
from screenshots import served, settled

pytestmark = [
    pytest.mark.skipif(
        chromium() is None, reason="Chromium is not installed: apt-get install chromium"
    ),
    pytest.mark.timeout(180),
]
REQUEST = "r00008"
JUDGED = f"/?request={REQUEST}&version=rule-raw&text=red+dress,+cotton,+green+wool&scope=pool"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page-browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        write_project(folder)
        with served(folder) as found:
            yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    page = Page()
    yield page
    page.close()


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    """A tab; afterwards: no problem in the console, no request to another server."""
    browser.problems.clear()
    browser.requests.clear()
    yield browser
    browser.ask("1")  # events that are still on their way
    foreign = [
        url for url in browser.requests if not url.startswith(("data:", "about:", f"{address}/"))
    ]
    assert not foreign
    assert browser.ask("window.hacked") is None
    assert not browser.problems


def until(page: Page, expression: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not page.ask(expression):
        assert time.monotonic() < deadline, f"{expression}: in vain"
        time.sleep(0.05)


def write(page: Page, text: str) -> None:
    page.call("Input.insertText", text=text)


def click(page: Page, selector: str) -> None:
    """A click with the mouse in the middle of an element."""
    place = page.ask(
        f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
        "const r = e.getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=place[0],
            y=place[1],
            button="left",
            clickCount=1,
        )


def titles(page: Page, number: int) -> list[str]:
    return page.ask(
        f"[...document.querySelectorAll('.list')[{number}].querySelectorAll('.title')].map(e => e.textContent)"
    )


def test_typing_shows_results_without_a_new_page(page: Page, address: str) -> None:
    page.visit(address)
    page.ask("window.same = true; document.querySelector('#q').focus()")
    write(page, "green jacket")
    until(page, "document.querySelectorAll('.list').length === 2")
    settled(page)
    assert page.ask("window.same")
    assert page.ask("document.activeElement.id + document.activeElement.value") == "qgreen jacket"
    assert "green" in titles(page, 0)[0]
    assert "10 results for the raw query" in page.ask(
        "document.querySelector('#status').textContent"
    )
    assert "q=green+jacket" in page.ask("location.search")
    page.visit(page.ask("location.href"))
    assert "green" in titles(page, 0)[0]


def test_clicking_a_phrase_off_moves_items_and_on_again(page: Page, address: str) -> None:
    page.visit(address + JUDGED)
    page.ask("window.same = true")
    whole = titles(page, 1)
    assert page.ask("document.querySelectorAll('a.phrase').length") == 3
    assert page.ask("document.querySelectorAll('.move.up').length") > 0
    numbers = page.ask("[...document.querySelectorAll('a.phrase small')].map(e => e.textContent)")
    assert all(number[0] in "+−0" for number in numbers)
    click(page, "a.phrase")
    until(page, "document.querySelectorAll('a.phrase.off').length === 1")
    settled(page)
    assert page.ask("window.same")
    assert titles(page, 1) != whole
    assert titles(page, 0)
    assert page.ask("document.activeElement.dataset.focus") == "phrase-0-0", "focus stays"
    page.press("Enter", 13)
    page.call("Input.dispatchKeyEvent", type="char", text="\r")
    until(page, "document.querySelectorAll('a.phrase.off').length === 0")
    settled(page)
    assert titles(page, 1) == whole
    page.ask("history.back()")
    until(page, "document.querySelectorAll('a.phrase.off').length === 1")
    assert not page.ask("window.same ?? false"), "going back loads that state"


def test_editing_the_rewrite_by_hand(page: Page, address: str) -> None:
    page.visit(f"{address}/?request={REQUEST}&version=rule-raw&scope=pool")
    before = titles(page, 1)
    page.ask(
        "document.querySelector('.edit').open = true; document.querySelector('#text').focus();"
        "document.querySelector('#text').select()"
    )
    write(page, "brown silk skirt")
    until(page, "document.querySelector('h2').textContent.includes('edited by hand')")
    settled(page)
    assert page.ask("document.activeElement.id") == "text"
    assert titles(page, 1) != before
    assert page.ask("document.querySelector('#text').value") == "brown silk skirt"
    # Another retriever keeps the edit, another request does not.
    for selector, value, kept in (("#retriever", "static", True), ("#request", "r00006", False)):
        page.ask(
            f"(() => {{ const e = document.querySelector('{selector}'); e.value = '{value}';"
            "e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )
        until(page, f"location.search.includes('{value}')")
        settled(page)
        assert page.ask("document.querySelector('h2').textContent.includes('edited')") == kept


def test_the_keyboard_reaches_everything_with_a_visible_focus(page: Page, address: str) -> None:
    page.visit(address + JUDGED)
    seen = []
    for _ in range(30):
        page.press("Tab", 9)
        what = page.ask(
            "(() => { const e = document.activeElement; return [e.id || e.className || e.tagName,"
            "getComputedStyle(e).outlineStyle, e.textContent.trim() !== '' || e.labels?.length > 0];"
            "})()"
        )
        seen.append(what[0])
        assert what[1] != "none", f"{what[0]}: the focus is not seen"
        assert what[2], f"{what[0]}: no name"
        if what[0] == "address":
            break
    assert seen[0] == "skip"
    assert {"q", "dataset", "request", "version", "other", "retriever", "scope"} <= set(seen)
    assert any(name.startswith("phrase") for name in seen)
    landmarks = page.ask(
        "['header', 'nav[aria-label]', 'main', 'footer', '[role=status][aria-live=polite]', 'h1']"
        ".map(s => document.querySelectorAll(s).length)"
    )
    assert landmarks == [1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "path", ["/", JUDGED, "/requests", "/champion", "/?request=r00006&other=v2"]
)
def test_a_phone_in_the_dark_scrolls_down_only(page: Page, address: str, path: str) -> None:
    page.visit(address + path, width=390, dark=True)
    assert page.ask("document.documentElement.scrollWidth") <= 390
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"


def test_hostile_titles_and_words_are_text(page: Page, address: str) -> None:
    page.visit(f"{address}/?request=r00006&version=rule-raw&scope=pool")
    assert any("<script>window.hacked=1</script>" in title for title in titles(page, 0))
    assert page.ask("document.images.length") == 0
    page.ask("document.querySelector('#q').focus()")
    write(page, "<img src=x onerror='window.hacked=1'> dress")
    until(page, "location.search.includes('img')")
    settled(page)
    assert page.ask("document.images.length") == 0


def test_from_the_evaluation_to_a_request_and_the_champion(page: Page, address: str) -> None:
    page.visit(f"{address}/requests")
    first = page.ask("document.querySelector('.requests .title').textContent")
    click(page, ".requests .title a")
    until(page, "document.querySelectorAll('.list').length === 2")
    assert page.ask("document.querySelector('#q').value") == " ".join(first.split())
    page.visit(f"{address}/champion")
    assert "is the champion" in page.ask("document.querySelector('h2').textContent")


def test_a_busy_server_shows_a_progress_sign_and_a_dead_one_says_so(
    page: Page, address: str
) -> None:
    page.visit(address)
    page.ask(
        "window.fetch = () => new Promise((_, no) => setTimeout(() => no(new Error('gone')), 1500));"
        "document.querySelector('#q').focus()"
    )
    write(page, "dress")
    until(page, "!document.querySelector('#progress').hidden", 5)
    until(page, "document.querySelector('#progress').hidden", 5)
    assert "No answer: gone" in page.ask("document.querySelector('#status').textContent")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/?dataset=amazon", "is not in params.yaml"),
        ("/?q=hat&version=rule-raw&retriever=mpnet", "retriever: 'mpnet' is not in params.yaml"),
    ],
)
def test_errors_are_said_on_the_page(browser: Page, address: str, path: str, says: str) -> None:
    browser.problems.clear()
    browser.visit(address + path)
    assert says in browser.ask("document.querySelector('[role=alert]').textContent")
    assert browser.ask("document.querySelector('#q') !== null")
    assert all("status of 400" in problem for problem in browser.problems)


def test_without_a_champion_or_a_script_the_page_still_works(
    browser: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    settings(tmp_path)
    write_data(tmp_path)
    browser.problems.clear()
    with served(tmp_path) as address:
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        try:
            browser.visit(f"{address}/?q=hat")
            said = browser.ask("document.querySelector('[role=alert]').textContent")
            assert "no champion yet" in said
            browser.ask("document.querySelector('#version').value = 'rule-raw'")
            click(browser, "#ask button")
            until(browser, "document.querySelectorAll('.list').length === 2")
            click(browser, "a.phrase")
            until(browser, "document.querySelectorAll('a.phrase.off').length === 1")
        finally:
            browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert not browser.problems


def test_a_taken_port_is_one_line(address: str, tmp_path: Path) -> None:
    port = urlsplit(address).port
    command = [sys.executable, "-m", "ospo.cli", "page", "--port", str(port)]
    command += ["--params", str(ROOT / "params.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"port {port} of 127.0.0.1 cannot be used" in line
    assert "ospo page --port" in line
    assert httpx.get(f"{address}/health").text == "ready\n"
