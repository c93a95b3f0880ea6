"""The report's page, read back by a parser as a browser would."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from nst_tasks.core.flags import FLAGS
from nst_tasks.gallery import page
from nst_tasks.outcome import Outcome, Status

QUALITY = {"style_gap_held_out": 0.652, "style_gap_used": 0.9, "content_cosine": 0.591, "luminance_ssim": 0.26}
LOSSES = {"total": 6.0, "content": 1.0, "style": 2.0, "tv": 3.0}
DONE = Outcome(
    id="cat_oil", row=2, status=Status.SUCCEEDED, recipe={"name": "painterly"}, height=30, width=40, steps=9,
    seconds=1.25, losses=LOSSES, image="images/cat_oil.png",
)  # fmt: skip
SKIPPED = replace(DONE, id="dog_oil", row=3, status=Status.SKIPPED, image="images/dog_oil.png")
FAILED = Outcome(id="elk", row=4, status=Status.FAILED, error="elk.png: does not exist; check the name")
REJECTED = Outcome(id="", row=5, status=Status.REJECTED, error="row 5, column size: 9 is below the smallest size, 64")


class Read(HTMLParser):
    """Tags with their attributes, and the visible text; void tags need no end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag in ("dd", "td", "th"):
            self.text += " "

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def links(self) -> list[str]:
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in ("href", "src")]

    def words(self) -> str:
        return " ".join(self.text.split())


def test_failures_come_first_and_every_outcome_is_there() -> None:
    read = Read(page("Run 1", {"took": "3 s"}, [DONE, SKIPPED, FAILED, REJECTED], {}, "../../"))
    assert not read.open
    words = read.words()
    assert "1 succeeded, 1 failed, 1 rejected, 1 skipped of 4 rows" in words
    assert "took 3 s" in words
    places = [words.index(text) for text in (FAILED.error, REJECTED.error, "cat_oil", "dog_oil")]
    assert places == sorted(places)
    assert "painterly · 40 x 30 · 9 steps · 1.2 s" in words
    assert "loss 6 = content 1 + style 2 + tv 3" in words


def test_links_lead_from_the_page_to_the_output() -> None:
    thumbnails = {"cat_oil": "data:image/webp;base64,AAAA"}
    read = Read(page("Run 1", {}, [DONE, SKIPPED], thumbnails, "../../"))
    assert read.links() == [
        "../../images/cat_oil.png",
        "data:image/webp;base64,AAAA",
        "../../images/cat_oil.png",
        "../../images/dog_oil.png",
    ]
    (picture,) = [attrs for tag, attrs in read.tags if tag == "img"]
    assert picture["alt"] == "cat_oil: content, style and result side by side"
    assert Read(page("All", {}, [DONE], {}, "")).links() == ["images/cat_oil.png"]


def test_the_page_asks_nobody_for_anything() -> None:
    text = page("Run 1", {"manifest": "https://host/m.csv"}, [DONE, FAILED], {"cat_oil": "data:image/webp;base64,AAAA"}, "")
    read = Read(text)
    assert not [link for link in read.links() if not link.startswith(("data:", "images/"))]
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert "url(" not in text
    assert "@import" not in text
    assert "https://host/m.csv" in read.words()  # as text only
    (policy,) = [attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # should a text ever get out of its quotes


FLAGGED = replace(DONE, id="fox_oil", row=1, flags=("blank", "no_progress"), image="images/fox_oil.png")


def test_flagged_rows_come_after_the_failed_with_their_remedies() -> None:
    read = Read(page("Run 1", {}, [FLAGGED, DONE, FAILED], {}, "../../"))
    assert not read.open
    words = read.words()
    assert "2 succeeded, 1 failed, 0 rejected, 0 skipped of 3 rows, 1 picture with a flag" in words
    lines = [f"{FLAGS[name].meaning}; {FLAGS[name].remedy}" for name in FLAGGED.flags]
    places = [words.index(text) for text in (FAILED.error, *lines, "Pictures", "cat_oil")]
    assert places == sorted(places)
    assert f"1 fox_oil blank {lines[0]}" in words
    assert f"1 fox_oil no_progress {lines[1]}" in words
    assert read.links().count("../../images/fox_oil.png") == 3  # two rows and the picture's own


def test_every_flag_is_a_badge_on_the_pictures_card() -> None:
    read = Read(page("Run 1", {}, [FLAGGED, DONE], {}, ""))
    titles = [attrs.get("title", "") for tag, attrs in read.tags if tag == "span" and attrs.get("class") == "flag"]
    assert [title for title in titles if title] == [FLAGS[name].meaning for name in FLAGGED.flags]
    assert "1.2 s blank no_progress" in read.words()
    assert "1.2 s style" not in Read(page("Run 1", {}, [DONE], {}, "")).words()


def test_skipped_pictures_keep_their_flags_and_a_flag_that_nobody_knows_is_named() -> None:
    again = [replace(FLAGGED, status=Status.SKIPPED), replace(DONE, flags=("unheard_of",))]
    words = Read(page("Run 1", {}, again, {}, "")).words()
    assert "2 pictures with a flag" in words
    assert "1.2 s unheard_of" in words
    assert "2 cat_oil unheard_of" in words


def test_a_failed_rows_flag_is_beside_its_status_and_counts_as_failed_only() -> None:
    words = Read(page("Run 1", {}, [replace(FAILED, flags=("not_finite",))], {}, "")).words()
    assert "failed not_finite" in words
    assert "with a flag" not in words
    assert "Flagged" not in words


def test_a_card_says_the_quality_in_few_words_and_nothing_of_what_was_not_measured() -> None:
    for quality, said in (
        (QUALITY, "style gap closed 0.65 · content kept 0.59 loss"),
        ({"style_gap_held_out": -1.5}, "style gap closed -1.50 loss"),
        ({"content_cosine": 1}, "content kept 1.00 loss"),
        ({"luminance_ssim": 0.5, "style_gap": {}}, "1.2 s loss"),
        ({}, "1.2 s loss"),
    ):
        text = page("Run 1", {}, [replace(DONE, quality=quality)], {}, "")
        assert said in Read(text).words()
        assert "nan" not in Read(text).words()
        assert "None" not in text
        assert ("1 as the style" in text) is ("1.2 s loss" not in said)  # no empty line with a title


HOSTILE = "<script>alert(1)</script>\"' onmouseover='x' & {{ 7 * 7 }} {% raw %}"


def test_hostile_texts_stay_texts() -> None:
    done = replace(DONE, id=HOSTILE, recipe={"name": f"r{HOSTILE}"}, image=f"images/{HOSTILE}", thumbnail="thumbnails/x.webp")
    done = replace(done, flags=(f"g{HOSTILE}",))
    failed = replace(FAILED, id=f"f{HOSTILE}", error=f"e{HOSTILE}")
    text = page(f"t{HOSTILE}", {f"n{HOSTILE}": f"v{HOSTILE}"}, [done, failed], {HOSTILE: "data:image/webp;base64,AA"}, "")
    plain = Read(page("t", {"n": "v"}, [replace(DONE, flags=("g",)), FAILED], {"cat_oil": "data:image/webp;base64,AA"}, ""))
    read = Read(text)
    assert [tag for tag, _ in read.tags] == [tag for tag, _ in plain.tags]
    assert [list(attrs) for _, attrs in read.tags] == [list(attrs) for _, attrs in plain.tags]
    for mark in "rfetnvg":
        assert f"{mark}{HOSTILE}" in read.text
    assert f"images/{HOSTILE}" in read.links()


def test_a_page_of_nothing() -> None:
    read = Read(page("Run 1", {}, [], {}, ""))
    assert not read.open
    assert "0 succeeded, 0 failed, 0 rejected, 0 skipped of 0 rows" in read.words()
    assert not {"table", "ul"} & {tag for tag, _ in read.tags}


def test_an_outcome_without_losses_is_shown_all_the_same() -> None:
    words = Read(page("Run 1", {}, [replace(DONE, losses={})], {}, "")).words()
    assert "cat_oil" in words
    assert "loss" not in words


def test_the_page_is_a_whole_document_in_one_encoding() -> None:
    text = page("Run 1", {}, [replace(DONE, id="schön")], {}, "")
    assert text.startswith("<!doctype html>")
    assert re.search(r'<meta charset="utf-8">', text)
    assert "schön" in text
