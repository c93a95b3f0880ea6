"""Pictures of what people look at, taken in Chromium: `apt install chromium`, or `playwright install chromium`.

make demo && cp docs/report.csv demo-output/samples
.venv/bin/nst run demo-output/samples/report.csv --out demo-output/report
.venv/bin/python docs/screens.py report demo-output/report docs/report.jpg docs/report-pair.jpg

The report that is shown is of a second run, after row 8 had been changed: the other pairs were skipped.

set -a; . flows/prefect-server.env; set +a; .venv/bin/prefect server start &
PREFECT_API_URL=http://127.0.0.1:4200/api .venv/bin/nst demo --out demo-output/watched &     # and a minute and a half later:
.venv/bin/python docs/screens.py prefect http://127.0.0.1:4200 demo docs/prefect-run.jpg docs/prefect-pair.jpg
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright


@contextmanager
def chromium(width: int, height: int, scheme: str) -> Iterator[Page]:
    """Open an empty page of this size in pixels, in light or dark colors."""
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
    """Take screenshots of the newest run's report: its failures on top, and one pair in full view."""
    (newest, *_) = sorted((out / "runs").iterdir(), reverse=True)
    with chromium(1280, 1000, "light") as page:
        page.goto(f"file://{(newest / 'report.html').resolve()}")
        _wait_for_pictures(page)
        page.screenshot(path=to, type="jpeg", quality=80)
    with chromium(1280, 900, "dark") as page:
        page.goto(f"file://{(newest / 'report.html').resolve()}#pair={id}")
        _wait_for_pictures(page)
        page.get_by_role("dialog").screenshot(path=pair, type="jpeg", quality=80)


def prefect(server: str, name: str, to: Path, pair: Path) -> None:
    """Take screenshots of the Prefect UI: the newest flow run of this name, and the last finished pair's image artifact."""

    def newest(kind: str, question: dict[str, Any]) -> str:
        body = json.dumps({**question, "limit": 1}).encode()
        asked = urllib.request.Request(f"{server}/api/{kind}/filter", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return str(json.load(answer)[0]["id"])

    flow_run = newest("flow_runs", {"flow_runs": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC"})
    of_run = {"flow_run_id": {"any_": [flow_run]}, "type": {"any_": ["image"]}}
    image = newest("artifacts", {"artifacts": of_run, "sort": "CREATED_DESC"})
    for path, height, picture in ((f"runs/flow-run/{flow_run}", 900, to), (f"artifacts/artifact/{image}", 300, pair)):
        with chromium(1280, height, "dark") as page:
            page.goto(f"{server}/{path}")
            page.wait_for_load_state("load")
            page.wait_for_timeout(4000)  # the timeline is drawn step by step, and the page never falls silent
            page.screenshot(path=picture, type="jpeg", quality=85)


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
    of_prefect = screens.add_parser("prefect", help="a flow run in the Prefect UI, and an image artifact of it")
    of_prefect.add_argument("server", help="address of the UI")
    of_prefect.add_argument("name", help="the flow run's: its manifest's without folder and suffix")
    of_prefect.add_argument("to", type=Path, help="picture of the flow run")
    of_prefect.add_argument("pair", type=Path, help="picture of the artifact")
    of_prefect.set_defaults(take=prefect)
    arguments = vars(parser.parse_args())
    arguments.pop("take")(**arguments)


if __name__ == "__main__":
    main()
