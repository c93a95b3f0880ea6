"""The report's page in a browser: use by mouse and by keyboard, accessibility, and resistance to hostile texts."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from nst_tasks.images import codec
from nst_tasks.images.picture import Source
from nst_tasks.images.thumbnail import encode_strip
from nst_tasks.inputs.settings import Settings
from nst_tasks.outputs import loss_history
from nst_tasks.outputs.loss_history import LevelHistory
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.outputs.report import read_curves, read_thumbnails
from nst_tasks.outputs.report_page import render_page, select_shown
from nst_tasks.storage import files
from nst_tasks.storage.uri import join_uri
from tests.support.outcomes import make_outcome

WIDE, PHONE = (1280, 900), (360, 740)
RED, GREEN, BLUE = ([value] for value in np.eye(3, dtype=np.float32))
HEIGHT, WIDTH = 60, 80


def make_pair(id: str, row: int, **fields: Any) -> Outcome:
    total = fields.pop("total", 6.0)
    gap = fields.pop("gap", 0.5)
    usual = {
        "height": HEIGHT, "width": WIDTH, "steps": 8, "seconds": 1.0 * row, "key": "5e" * 32,
        "content": Source(f"/in/{id.partition('_')[0]}.png", "c", "1", HEIGHT, WIDTH),
        "styles": (Source("/in/oil.jpg", "o", "1", 5, 5),),
        "losses": {"total": total, "content": 1.0, "style": 2.0, "tv": 3.0},
        "quality": {"style_gap_held_out": gap, "content_cosine": 1 - gap, "luminance_ssim": 0.2},
        "backbone": "tiny", "weights_sha256": "45" * 32, "versions": {"nst": "1.2", "numpy": "3"},
    }  # fmt: skip
    return make_outcome(id, row, **usual | fields)


OUTCOMES = [
    make_pair("cat_oil", 2, total=5.0, gap=0.9),
    make_pair("cat_ink", 3, total=7.0, gap=0.1, styles=(Source("/in/ink.jpg", "i", "1", 50, 50),), flags=("blank",)),
    Outcome("elk_oil", 4, Status.FAILED, recipe={"name": "gatys-2016"}, error="/in/elk.png: does not exist; check the name"),
    Outcome("", 5, Status.REJECTED, error="row 5, column size: 9 is below the smallest size, 64; give 64 to 8192"),
    make_pair("dog_both", 6, total=6.0, gap=0.5, status=Status.SKIPPED, recipe={"name": "gatys-2016"},
         styles=(Source("/in/oil.jpg", "o", "1", 50, 50), Source("/in/ink.jpg", "i", "1", 50, 50))),
    make_pair("fox_oil", 7, losses={}, quality={}, thumbnail="", history=""),  # an outcome of an older version
]  # fmt: skip
ROW_IDS = ["elk_oil", "", "cat_oil", "cat_ink", "dog_both", "fox_oil"]


def make_flat(color: list[np.ndarray], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.broadcast_to(np.asarray(color), (height, width, 3)).astype(np.float32)


def write_page(out: Path, outcomes: list[Outcome], title: str = "Run 1") -> str:
    """Write a page of outcomes with red contents, green styles and blue results, and return its address."""
    strip = encode_strip([make_flat(RED), make_flat(GREEN, 50, 50), make_flat(BLUE)], HEIGHT, 4)
    terms = np.array([[9, 90, 0], [3, 30, 0.1], [1, 10, 0.5], [0.5, 5, 1.5], [0.4, 3, 1]], np.float32)
    levels = [
        LevelHistory(k, HEIGHT // 2 ** (1 - k), WIDTH // 2 ** (1 - k), terms, np.ones(5), np.arange(5.0)) for k in range(2)
    ]
    picture, losses = (
        codec.encode(make_flat(BLUE), None, "png", {}),
        loss_history.to_parquet(loss_history.build_table("a", "run-1", levels, 1)),
    )
    contents = {path: data for o in outcomes for path, data in ((o.image, picture), (o.thumbnail, strip), (o.history, losses))}
    for path in filter(None, contents):
        files.write(join_uri(str(out), path), contents[path])
    selection = select_shown(outcomes)
    inside = [read(str(out), selection, Settings(readers=4)) for read in (read_thumbnails, read_curves)]
    files.write(f"{out}/report.html", render_page(title, {"took": "3 s"}, outcomes, *inside, "").encode())
    return f"file://{out}/report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("out"), OUTCOMES)


@contextmanager
def open_page(
    browser: Browser, url: str, size: tuple[int, int] = WIDE, complaint: str = "", early: str = "", **options: Any
) -> Iterator[Page]:
    """Open pages; fail if one printed anything but `complaint` on its console or requested a file outside its folder."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    page = context.new_page()
    page.set_default_timeout(10_000)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    if early:  # runs whenever the document grows, so before the first paint
        observe = f"new MutationObserver(() => {{ {early} }}).observe(document, {{ childList: true, subtree: true }})"
        page.add_init_script(observe)
    folder = url.partition("#")[0].rpartition("/")[0]
    page.on("request", lambda request: None if request.url.startswith((folder, "data:")) else messages.append(request.url))
    page.goto(url)
    yield page
    context.close()
    assert [text for text in messages if not complaint or complaint not in text] == []
    assert bool(messages) is bool(complaint)


@pytest.fixture
def page(chromium: Browser, report: str) -> Iterator[Page]:
    with open_page(chromium, report) as page:
        yield page


def list_ids(page: Page) -> list[str]:
    """List the ids of the visible rows, from top to bottom."""
    visible: list[str] = page.locator(".outcome:visible").evaluate_all("all => all.map((one) => one.dataset.id)")
    return visible


def read_selection(page: Page) -> dict[str, str]:
    """Return the selection in the page's address."""
    return {name: value for name, (value,) in parse_qs(page.url.partition("#")[2]).items()}


def find_control(page: Page, name: str) -> Locator:
    return page.locator(f".controls [name={name}]")


# Filter and sort


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"status": "failed"}, ["elk_oil"]),
        ({"recipe": "gatys-2016"}, ["elk_oil", "dog_both"]),
        ({"style": "ink.jpg"}, ["cat_ink", "dog_both"]),
        ({"flag": "blank"}, ["cat_ink"]),
        ({"flag": "none", "recipe": "painterly", "search": " CAT"}, ["cat_oil"]),
        ({"search": "ink.J"}, ["cat_ink", "dog_both"]),
    ],
)
def test_filter_selects_counts_and_links(page: Page, choices: dict[str, str], expected: list[str]) -> None:
    assert list_ids(page) == ROW_IDS
    assert page.get_by_role("status").inner_text() == "6 of 6 rows shown"
    for name, value in choices.items():
        field = find_control(page, name)
        (field.fill if name == "search" else field.select_option)(value)
    assert list_ids(page) == expected
    assert page.get_by_role("status").inner_text() == f"{len(expected)} of 6 rows shown"
    assert page.get_by_role("heading", name="Failed and rejected").is_visible() is bool({*expected} & {"elk_oil", ""})
    assert read_selection(page) == choices
    page.reload()
    assert list_ids(page) == expected
    page.get_by_role("button", name="Clear").click()
    assert list_ids(page) == ROW_IDS
    assert read_selection(page) == {}


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("loss", ["cat_ink", "dog_both", "cat_oil", "fox_oil"]),
        ("gap", ["cat_ink", "dog_both", "cat_oil", "fox_oil"]),
        ("kept", ["cat_oil", "dog_both", "cat_ink", "fox_oil"]),
        ("seconds", ["fox_oil", "dog_both", "cat_ink", "cat_oil"]),
    ],
)
def test_images_are_sorted_with_unmeasured_last(page: Page, key: str, order: list[str]) -> None:
    find_control(page, "sort").select_option(key)
    assert list_ids(page)[2:] == order
    find_control(page, "reverse").check()
    sortable = order if key == "seconds" else order[:-1]
    assert list_ids(page)[2:] == [*sortable[::-1], *order[len(sortable) :]]
    assert read_selection(page) == {"sort": key, "reverse": "1"}
    find_control(page, "sort").select_option("")
    assert list_ids(page)[2:] == ["fox_oil", "dog_both", "cat_ink", "cat_oil"]


def test_invalid_address_is_ignored(chromium: Browser, report: str) -> None:
    with open_page(chromium, f"{report}#status=eaten&sort=%00&pair=constructor&__proto__=1&search") as page:
        assert list_ids(page) == ROW_IDS
        page.evaluate("location.hash = '#flag=blank&pair=cat_ink'")
        page.get_by_role("dialog").wait_for()
        assert list_ids(page) == ["cat_ink"]
        page.evaluate("location.hash = ''")
        page.get_by_role("dialog").wait_for(state="hidden")
        assert list_ids(page) == ROW_IDS


# One pair


def open_dialog(page: Page, id: str) -> Locator:
    page.locator("a.name", has_text=id).click()
    dialog = page.get_by_role("dialog", name=id)
    dialog.wait_for()
    return dialog


def read_colors(page: Page) -> list[tuple[int, ...]]:
    """Read the colors at 1/8, 3/8, 5/8 and 7/8 of the width of the picture under the slider."""
    page.locator(".stage img").evaluate_all("images => Promise.all(images.map((image) => image.decode().catch(() => {})))")
    picture = Image.open(io.BytesIO(page.locator(".stage").screenshot())).convert("RGB")
    places = [(picture.width * k // 8, picture.height // 2) for k in (1, 3, 5, 7)]
    return [tuple(round(value / 255) for value in picture.getpixel(place)) for place in places]  # type: ignore[union-attr]


C, R = (1, 0, 0), (0, 0, 1)


def test_slider_works_by_keyboard_and_mouse(page: Page) -> None:
    dialog = open_dialog(page, "cat_oil")
    slider = dialog.get_by_role("slider", name="content shown beside the result")
    assert slider.input_value() == "50"
    dialog.locator(".before img[src$='thumbnails/cat_oil.jpg']").wait_for()  # the file has more pixels than the embedded one
    assert read_colors(page) == [C, C, R, R]
    page.keyboard.press("End")  # it has the focus
    assert read_colors(page) == [C, C, C, C]
    page.keyboard.press("Home")
    assert read_colors(page) == [R, R, R, R]
    box = page.locator(".stage").bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(WIDTH / HEIGHT, rel=0.01)
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
    page.mouse.down()
    assert read_colors(page) == [C, R, R, R]
    page.mouse.move(box["x"] + box["width"] * 3 / 4, box["y"] + 30)
    page.mouse.up()
    assert read_colors(page) == [C, C, C, R]
    assert slider.input_value() == "75"


def test_moved_page_shows_its_thumbnails(chromium: Browser, report: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_bytes(Path(report.removeprefix("file://")).read_bytes())
    with open_page(chromium, f"file://{tmp_path}/report.html", complaint="ERR_FILE_NOT_FOUND") as page:
        open_dialog(page, "cat_oil")
        page.locator(".moved").wait_for()
        assert read_colors(page) == [C, C, R, R]


def test_the_dialog_is_used_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    page.keyboard.type("cat")
    link = page.locator("a.name", has_text="cat_oil")
    for _ in range(20):
        page.keyboard.press("Tab")
        if link.evaluate("link => link === document.activeElement"):
            break
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="cat_oil").wait_for()
    assert read_selection(page) == {"search": "cat", "pair": "cat_oil"}
    page.keyboard.press("Shift+Tab")  # from the slider, which has the focus, to the button before it
    assert page.evaluate("document.activeElement.name") == "close"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    page.get_by_role("dialog", name="cat_ink").wait_for()
    assert page.get_by_role("button", name="Next").is_disabled()  # among the results of the search
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    expect(page.locator("a.name", has_text="cat_ink")).to_be_focused()  # the event of its end comes after it is hidden
    assert read_selection(page) == {"search": "cat"}


def test_early_focus_does_not_break_the_dialog(chromium: Browser, report: str) -> None:
    with open_page(chromium, report, early="document.querySelector('a.name')?.focus()") as page:  # before the script runs
        page.evaluate("() => new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)))")
        assert page.evaluate("document.activeElement.className") == "name"
        open_dialog(page, "cat_oil")
        assert page.evaluate("document.activeElement.type") == "range"


def test_dialog_shows_settings_and_flag_meanings(page: Page) -> None:
    dialog_text = open_dialog(page, "cat_ink").inner_text()
    for text in ("cat.png, 80 x 60", "/in/ink.jpg", "painterly", "5e5e5e", "almost no variation", "lower tv_weight", "0.100"):
        assert text in dialog_text
    page.keyboard.press("Escape")
    page.get_by_role("row", name="blank").get_by_role("link", name="cat_ink").click()
    page.get_by_role("dialog", name="cat_ink").wait_for()


def test_losses_are_drawn_by_term_and_level(page: Page) -> None:
    dialog = open_dialog(page, "cat_oil")
    paths: list[list[str]] = dialog.locator("svg path:not(.grid)").evaluate_all(
        "all => all.map((p) => [p.className.baseVal, p.getAttribute('d')])"
    )
    assert [term for term, _ in paths] == ["total", "content", "style", "tv"] * 2
    points = {term: [tuple(map(float, at.split(","))) for at in path[1:].split("L")] for term, path in paths[4:]}
    assert [len(points[term]) for term in ("total", "content", "style", "tv")] == [5, 5, 5, 4]  # tv begins at 0
    x, y = zip(*points["style"], strict=True)
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], atol=0.11)
    # 90, 30, 10, 5, 3 in powers of ten, downwards
    np.testing.assert_allclose(
        np.diff(y) / (y[2] - y[0]), [0.5, 0.5, np.log10(2) / np.log10(9), np.log10(5 / 3) / np.log10(9)], atol=0.01
    )
    assert dialog.locator("svg").get_attribute("aria-label") == (
        "losses over 8 steps on 2 levels; on the last the total goes from 99 to 4.4"
    )
    labels = dialog.locator("svg text").evaluate_all("all => all.map((text) => text.textContent)")
    assert {"40 x 30", "80 x 60", "4", "8", "1", "10", "0.1", "step"} <= {*labels}
    dialog.get_by_text("losses by level").click()
    assert dialog.get_by_role("row").nth(2).inner_text().split("\t") == [
        "1", "80 x 60", "4", "99 to 4.4", "9 to 0.4", "90 to 3", "0 to 1",
    ]  # fmt: skip


def test_pair_without_thumbnail_and_history_shows_its_image(page: Page) -> None:
    dialog = open_dialog(page, "fox_oil")
    assert not dialog.get_by_role("slider").is_visible()
    assert not dialog.locator("figure.curves").is_visible()
    assert read_colors(page) == [R, R, R, R]


# Screens, printers and browsers without a script


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_page_is_accessible_and_fits_the_screen(chromium: Browser, report: str, scheme: str, size: tuple[int, int]) -> None:
    with open_page(chromium, report, size, color_scheme=scheme) as page:
        for action in (lambda: None, lambda: open_dialog(page, "cat_ink").get_by_text("losses by level").click()):
            action()
            assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")
            results = Axe().run(page)
            assert results.violations_count == 0, results.generate_report()
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.get_by_role("dialog").evaluate("d => d.scrollWidth <= d.clientWidth")


def test_page_is_readable_without_its_script(chromium: Browser, report: str) -> None:
    with open_page(chromium, report, java_script_enabled=False) as page:
        assert not page.get_by_role("search").is_visible()
        assert page.get_by_role("cell", name="check the name").is_visible()
        picture = page.get_by_alt_text("cat_oil: content, style and result side by side")
        picture.scroll_into_view_if_needed()
        assert picture.is_visible()
        key = page.locator(".made dd").get_by_text("5e5e5e").first
        assert not key.is_visible()
        page.locator(".made summary").first.click()
        assert key.is_visible()
        page.locator("a.name").first.click()
        page.wait_for_url("**/images/cat_oil.png")


def test_print_has_every_picture(page: Page) -> None:
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".strip img").count() == 3
    assert not page.get_by_role("search").is_visible()


def test_large_page_loads_only_visible_thumbnails(chromium: Browser, tmp_path: Path) -> None:
    outcomes = [
        make_pair(f"cat_{k}", k, thumbnail="thumbnails/cat.jpg", image="images/cat.png", history="") for k in range(1000)
    ]
    with open_page(chromium, write_page(tmp_path, outcomes)) as page:
        assert page.get_by_role("status").inner_text() == "1000 of 1000 rows shown"
        assert 0 < page.locator(".strip img").count() < 50
        find_control(page, "sort").select_option("seconds")
        assert list_ids(page)[0] == "cat_999"
        find_control(page, "search").fill("cat_77")
        assert list_ids(page) == ["cat_779", *(f"cat_{k}" for k in range(778, 769, -1)), "cat_77"]


HOSTILE = (
    "<script>alert(1)</script>\"' onmouseover=alert(2) autofocus onfocus=alert(3) x='</script><img src=x onerror=alert(4)>"
)


def test_hostile_texts_do_nothing(chromium: Browser, tmp_path: Path) -> None:
    def make_hostile(o: Outcome, change: Callable[[str], str]) -> Outcome:
        source = replace(o.styles[0], uri=f"/in/{HOSTILE}") if o.styles else None
        return replace(
            o, id=change(o.id), recipe={"name": HOSTILE}, flags=(HOSTILE, "blank"), error=o.error and f"{HOSTILE}; {HOSTILE}",
            content=source, styles=(source,) if source else (), backbone=HOSTILE, versions={HOSTILE: HOSTILE}, key=HOSTILE,
        )  # fmt: skip

    selection = select_shown(OUTCOMES)[:1]
    url = write_page(tmp_path, selection)
    inside = [read(str(tmp_path), selection, Settings(readers=4)) for read in (read_thumbnails, read_curves)]
    name = f"cat{HOSTILE}"
    outcomes = [make_hostile(selection[0], lambda id: name), make_hostile(OUTCOMES[2], lambda id: HOSTILE)]
    outcomes.append(replace(make_hostile(selection[0], lambda id: f"js{HOSTILE}"), image="javascript:alert(5)"))
    embedded_data = [{name: values["cat_oil"]} for values in inside]
    (tmp_path / "report.html").write_text(render_page(HOSTILE, {HOSTILE: HOSTILE}, outcomes, *embedded_data, ""))
    with open_page(chromium, url) as page:
        assert list_ids(page) == [HOSTILE, name, f"js{HOSTILE}"]
        for field in ("recipe", "style", "flag"):
            find_control(page, field).select_option(index=1)
        assert list_ids(page) == [name, f"js{HOSTILE}"]
        assert HOSTILE in (read_selection(page)["recipe"], read_selection(page)["flag"])
        page.reload()
        page.locator("a.name").first.hover()
        page.locator("a.name").first.click()
        page.get_by_role("dialog").wait_for()
        assert page.locator("dialog h2").inner_text() == name
        assert page.locator("svg path:not(.grid)").count() == 8
        assert read_colors(page) == [C, C, R, R]
        assert page.locator("[onmouseover], [onfocus], [onerror], script:not(:nth-last-of-type(-n+2))").count() == 0
    with open_page(chromium, url, java_script_enabled=False) as page:
        page.locator("a.name").first.hover()
        assert page.locator("[onmouseover], [onfocus], [onerror]").count() == 0
    with open_page(chromium, url, complaint="Content Security Policy") as page:
        page.evaluate("location.href = document.querySelectorAll('a.name')[1].href")  # follows the link without the dialog
        page.get_by_text("no such text").wait_for(state="hidden")
