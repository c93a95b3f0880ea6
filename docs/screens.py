"""Pictures of what people look at, taken in Chromium: `apt install chromium`, or `playwright install chromium`.

make demo
.venv/bin/nst run docs/report.csv --out demo-output/report
.venv/bin/python docs/screens.py report demo-output/report docs/report.jpg docs/report-pair.jpg
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright


@contextmanager
def chromium(width: int, height: int, scheme: str) -> Iterator[Page]:
    """An empty page of that size in pixels, light or dark."""
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, names)), None)  # else Playwright's own
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        yield page
        browser.close()


def report(out: Path, to: Path, pair: Path, id: str) -> None:
    """The newest run's report with its failures on top, and one of its pairs closely."""
    (newest, *_) = sorted((out / "runs").iterdir(), reverse=True)
    with chromium(1280, 1000, "light") as page:
        page.goto(f"file://{(newest / 'report.html').resolve()}")
        _wait_for_pictures(page)
        page.screenshot(path=to, type="jpeg", quality=80)
    with chromium(1280, 900, "dark") as page:
        page.goto(f"file://{(newest / 'report.html').resolve()}#pair={id}")
        _wait_for_pictures(page)
        page.get_by_role("dialog").screenshot(path=pair, type="jpeg", quality=80)


def _wait_for_pictures(page: Page) -> None:
    page.wait_for_load_state("networkidle")
    page.wait_for_function("[...document.images].every((image) => image.complete)")


def main() -> None:
    """Take the pictures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    screens = parser.add_subparsers(required=True)
    of_report = screens.add_parser("report", help="the newest run's report, and a pair of it")
    of_report.add_argument("out", type=Path, help="what was given to nst run as --out")
    of_report.add_argument("to", type=Path, help="picture of the page")
    of_report.add_argument("pair", type=Path, help="picture of one pair")
    of_report.add_argument("--id", default="chelsea_swirls", help="which pair")
    of_report.set_defaults(take=report)
    arguments = vars(parser.parse_args())
    arguments.pop("take")(**arguments)


if __name__ == "__main__":
    main()
