"""Photographs of the page over the project in the working directory, to be looked at.

python tests/screenshots.py DIR      or: make screenshots

Light and dark at 1,280 pixels, and 390 as a phone has; needs Chromium and prepared data.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from browser import Page, chromium

WIDTHS = (("light", 1280, False), ("dark", 1280, True), ("phone", 390, False))


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """The address of `ospo page` over the project in ``folder``, as its first line says."""
    command = [sys.executable, "-m", "ospo.cli", "page", "--port", "0", *options]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), address
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def settled(page: Page, seconds: float = 60) -> None:
    """Until nothing is being loaded."""
    deadline = time.monotonic() + seconds
    while page.ask("document.querySelector('[aria-busy]') !== null"):
        if time.monotonic() > deadline:
            raise RuntimeError("still busy")
        time.sleep(0.05)


def states(page: Page, address: str) -> dict[str, str]:
    """Name → address of the states to photograph, found as a visitor finds them."""
    found = {"empty": address, "wrong": f"{address}/?dataset=unknown"}
    datasets = page.ask("[...document.querySelector('#dataset').options].map(o => o.value)")
    for name in datasets:
        page.visit(f"{address}/?dataset={name}&q=summer+top")
        found[f"{name}-typed"] = f"{address}/?dataset={name}&q=summer+top"
        found[f"{name}-requests"] = f"{address}/requests?dataset={name}"
        found[f"{name}-champion"] = f"{address}/champion?dataset={name}"
        page.visit(found[f"{name}-requests"])
        first = page.ask("document.querySelector('.requests a')?.href ?? ''")
        if first:
            found[f"{name}-request"] = first
            page.visit(first)
            off = page.ask("document.querySelector('a.phrase')?.href ?? ''")
            found[f"{name}-off"] = off or first
            found[f"{name}-compare"] = f"{first}&other=rule-raw"
    return found


def main() -> None:
    """Command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "reports/screenshots")
    if chromium() is None:
        sys.exit("Chromium is not installed. Fix: apt-get install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with served(Path.cwd()) as address:
        page = Page()
        try:
            page.visit(address)
            for name, place in states(page, address).items():
                for kind, width, dark in WIDTHS:
                    page.visit(place, width=width, dark=dark)
                    settled(page)
                    page.photograph(folder / f"{name}-{kind}.png")
            print(f"{len(list(folder.glob('*.png')))} pictures in {folder}")
        finally:
            page.close()


if __name__ == "__main__":
    main()
