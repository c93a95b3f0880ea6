"""The report's page, read back by a parser as a browser would."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from nst_tasks.core.flags import FLAGS
from nst_tasks.images.picture import Source
from nst_tasks.outputs.outcome import Outcome, Status
from nst_tasks.outputs.report_page import MAX_IMAGES, render_page, resources, select_shown

QUALITY = {"style_gap_held_out": 0.652, "style_gap_used": 0.9, "content_cosine": 0.591, "luminance_ssim": 0.26}
LOSSES = {"total": 6.0, "content": 1.0, "style": 2.0, "tv": 3.0}
DONE = Outcome(
    id="cat_oil", row=2, status=Status.SUCCEEDED, recipe={"name": "painterly"}, height=30, width=40, steps=9,
    seconds=1.25, losses=LOSSES, image="images/cat_oil.png",
)  # fmt: skip
SKIPPED = replace(DONE, id="dog_oil", row=3, status=Status.SKIPPED, image="images/dog_oil.png")
FAILED = Outcome(id="elk", row=4, status=Status.FAILED, error="elk.png: does not exist; check the name")
REJECTED = Outcome(id="", row=5, status=Status.REJECTED, error="row 5, column size: 9 is below the smallest size, 64")


def page(
    title: str,
    facts: Mapping[str, str],
    outcomes: Sequence[Outcome],
    thumbnails: Mapping[str, str],
    base: str,
    curves: Mapping[str, Any] | None = None,
) -> str:
    return render_page(title, facts, outcomes, thumbnails, curves or {}, base)


class Read(HTMLParser):
    """Tags with their attributes, and the visible text; void tags need no end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)
        if tag in ("dt", "dd", "td", "th", "option", "li"):
            self.text += " "

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts.append(data)
        elif "style" not in self.open:
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
    told = ("4 elk failed elk.png: does not exist check the name", "5 rejected " + REJECTED.error + " see the run's log")
    places = [words.index(text) for text in (*told, "cat_oil \u00b7", "dog_oil \u00b7")]
    assert places == sorted(places)
    assert "painterly · 40 x 30 · 9 steps · 1.2 s" in words
    assert "loss 6 = content 1 + style 2 + tv 3" in words


def test_links_lead_from_the_page_to_the_output() -> None:
    thumbnails = {"cat_oil": "data:image/jpeg;base64,AAAA"}
    read = Read(page("Run 1", {}, [replace(DONE, thumbnail="thumbnails/cat_oil.jpg"), SKIPPED], thumbnails, "../../"))
    assert read.links() == [
        "../../images/cat_oil.png",
        "data:image/jpeg;base64,AAAA",
        "../../images/cat_oil.png",
        "../../images/dog_oil.png",
    ]
    (strip,) = [attrs for _, attrs in read.tags if "data-strip" in attrs]
    assert strip["data-strip"] == "../../thumbnails/cat_oil.jpg"
    (picture,) = [attrs for tag, attrs in read.tags if tag == "img" and "src" in attrs]
    assert picture["alt"] == "cat_oil: content, style and result side by side"
    assert Read(page("All", {}, [DONE], {}, "")).links() == ["images/cat_oil.png"]


def test_the_page_asks_nobody_for_anything() -> None:
    text = page("Run 1", {"manifest": "https://host/m.csv"}, [DONE, FAILED], {"cat_oil": "data:image/jpeg;base64,AAAA"}, "")
    read = Read(text)
    assert not [link for link in read.links() if not link.startswith(("data:", "images/"))]
    assert not {tag for tag, _ in read.tags} & {"link", "iframe", "object", "embed", "base", "form"}
    assert not [attrs for tag, attrs in read.tags if tag == "script" and "src" in attrs]
    assert "url(" not in text
    assert "@import" not in text
    assert "https://host/m.csv" in read.words()  # as text only


def test_a_browser_takes_only_what_the_page_was_made_with() -> None:
    text = page("Run 1", {}, [DONE, FAILED], {}, "")
    style, script = (re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("style", "script"))
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for (part,) in (style, script)]
    (policy,) = [attrs["content"] for _, attrs in Read(text).tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == (  # should a text ever get out of its quotes
        f"default-src 'none'; img-src data: 'self'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert page("Run 1", {}, [DONE, FAILED], {}, "") == text


CURVES = [{"height": 3, "width": 4, "step": [0, 9], "content": [5.0, 1.0], "style": [2.0, None], "tv": [3.0, 3.0]}]


def test_the_curves_are_data_that_no_text_in_them_ends() -> None:
    for id in ("cat_oil", "</script><script>alert(1)//", "<!--<script>", "a\u2028b&amp;"):
        read = Read(page("Run 1", {}, [DONE], {}, "", {id: CURVES}))
        assert not read.open
        assert [attrs.get("type") for tag, attrs in read.tags if tag == "script"] == ["application/json", None]
        data, script = read.scripts
        assert json.loads(data) == {id: CURVES}
        assert not re.search("[<>&\u2028]", data)
        assert script == (resources.files("nst_tasks.outputs") / "page" / "script.js").read_text()


MADE = replace(
    DONE, backbone="vgg16-hed", weights_sha256="45" * 32, versions={"nst": "1.2", "numpy": "3"}, height=1000, width=2000,
    content=Source("/in/cat.png", "c", "1", 60, 80), seed=7, keep_color="match", key="k" * 64, run_id="run-1",
    styles=(Source("/in/a/oil.jpg", "o", "1", 5, 5), Source("s3://u:hunter2@b/ink.jpg?x=hunter2", "i", "1", 5, 5)),
    style_weights=(0.75, 0.25), quality=QUALITY,
)  # fmt: skip


def test_the_header_tells_versions_and_totals() -> None:
    again = replace(MADE, id="dog_oil", versions={"nst": "1.3", "numpy": "3"}, seconds=2.5)
    before = replace(MADE, id="fox_oil", status=Status.SKIPPED, seconds=100.0)
    header = Read(
        page("Run 1", {"backbone": "vgg16-hed"}, [MADE, again, before, FAILED], {}, "").partition("<main>")[0]
    ).words()
    assert "made 4 megapixels in 4 s of compute" in header  # what was there already was not made by this run
    assert "backbone vgg16-hed (weights 454545454545)" in header
    assert header.count("vgg16-hed") == 1
    assert "nst 1.2, 1.3 numpy 3" in header
    assert "made" not in Read(page("Run 1", {}, [FAILED, SKIPPED], {}, "").partition("<main>")[0]).words()


def test_a_picture_tells_all_that_made_it_and_no_secret() -> None:
    text = page("Run 1", {}, [MADE], {}, "")
    assert "hunter2" not in text
    words = Read(text).words()
    assert (
        "row 2 status succeeded content /in/cat.png, 80 x 60 style /in/a/oil.jpg (0.75), s3://b/ink.jpg (0.25) "
        "colors kept match recipe painterly size 2000 x 1000 steps 9 seed 7 compute 1.2 s loss content 1 + style 2 + tv 3 "
        "style gap closed 0.652 content kept 0.591 structural similarity 0.260 backbone vgg16-hed made in run run-1 "
        f"key {'k' * 64}"
    ) in words


def test_card_shows_precision_and_steps_done() -> None:
    recipe = {"name": "painterly", "method": {"precision": "mixed"}}
    for steps, told in ((4, "4 of 9"), (9, "9"), (0, "9")):  # what older runs left does not say how many were taken
        words = Read(page("Run 1", {}, [replace(MADE, recipe=recipe, steps_done=steps)], {}, "")).words()
        assert f"size 2000 x 1000 steps {told} precision mixed seed 7" in words


def test_a_reader_may_filter_by_what_is_there_with_its_counts() -> None:
    outcomes = [MADE, replace(FLAGGED, recipe={"name": "gatys-2016"}), FAILED, REJECTED]
    text = page("Run 1", {}, outcomes, {}, "")
    choices = [
        "all succeeded (2) failed (1) rejected (1) recipe",
        "all gatys-2016 (1) painterly (1) style",
        "all ink.jpg (1) oil.jpg (1) flag",
        "with and without none (3) blank (1) no_progress (1)",
    ]
    words = Read(text).words()
    for choice in choices:
        assert choice in words
    assert re.search(r'<div role="search"[^>]* hidden>', text)  # until the script is there
    rows = [attrs for _, attrs in Read(text).tags if attrs.get("class") == "outcome"]
    assert [row["data-id"] for row in rows] == ["elk", "", "cat_oil", "fox_oil"]
    cat = {name.removeprefix("data-"): value for name, value in rows[2].items()}
    assert cat == {
        "class": "outcome", "id": "cat_oil", "row": "2", "status": "succeeded", "recipe": "painterly", "content": "cat.png",
        "styles": "oil.jpg\nink.jpg", "flags": "", "loss": "6.0", "gap": "0.652", "kept": "0.591", "seconds": "1.25",
        "aspect": "2.0",
    }  # fmt: skip


def test_choices_that_differ_by_case_alone_have_one_order() -> None:
    names = ["b.jpg", "B.jpg", "a.jpg"]
    for given in (names, names[::-1]):
        made = [replace(DONE, styles=(replace(MADE.styles[0], uri=f"/in/{name}"),)) for name in given]
        assert "all a.jpg (1) B.jpg (1) b.jpg (1) flag" in Read(page("Run 1", {}, made, {}, "")).words()


FLAGGED = replace(DONE, id="fox_oil", row=1, flags=("blank", "no_progress"), image="images/fox_oil.png")


def test_flagged_rows_come_after_the_failed_with_their_remedies() -> None:
    read = Read(page("Run 1", {}, [FLAGGED, DONE, FAILED], {}, "../../"))
    assert not read.open
    words = read.words()
    assert "2 succeeded, 1 failed, 0 rejected, 0 skipped of 3 rows, 1 picture with a flag" in words
    lines = [f"{name} {FLAGS[name].meaning} {FLAGS[name].remedy} fox_oil" for name in FLAGGED.flags]
    places = [words.index(text) for text in ("check the name", *lines, "Pictures", "cat_oil \u00b7")]
    assert places == sorted(places)
    assert read.links().count("../../images/fox_oil.png") == 3  # two flags and the picture's own


def test_a_flag_of_many_pairs_names_the_first_ten() -> None:
    flagged = [replace(FLAGGED, id=f"fox-{k}", flags=("blank",)) for k in range(12)]
    words = Read(page("Run 1", {}, flagged, {}, "")).words()
    assert "fox-9 and 2 more Pictures" in words
    assert "fox-9 Pictures" in Read(page("Run 1", {}, flagged[:10], {}, "")).words()


def test_every_flag_is_a_badge_on_the_pictures_card() -> None:
    read = Read(page("Run 1", {}, [FLAGGED, DONE], {}, ""))
    titles = [attrs.get("title", "") for tag, attrs in read.tags if tag == "span" and attrs.get("class") == "flag"]
    assert [title for title in titles if title] == [FLAGS[name].meaning for name in FLAGGED.flags]
    assert "1.2 s blank no_progress" in read.words()
    assert "1.2 s style" not in Read(page("Run 1", {}, [DONE], {}, "")).words()


def test_skipped_images_keep_flags_and_unknown_flags_show() -> None:
    again = [replace(FLAGGED, status=Status.SKIPPED), replace(DONE, flags=("unheard_of",))]
    words = Read(page("Run 1", {}, again, {}, "")).words()
    assert "2 pictures with a flag" in words
    assert "1.2 s unheard_of" in words
    assert "unheard_of cat_oil Pictures" in words
    assert "unheard_of a flag of another version" in words


def test_flag_of_a_failed_row_counts_as_failed() -> None:
    words = Read(page("Run 1", {}, [replace(FAILED, flags=("not_finite",))], {}, "")).words()
    assert "failed not_finite" in words
    assert "with a flag" not in words
    assert "Flagged" not in words
    assert "none (" not in words  # which would leave nothing


def test_large_page_shows_flagged_and_first_images() -> None:
    many = [replace(DONE, id=f"cat-{k}", row=k) for k in range(MAX_IMAGES + 5)]
    many[-2] = replace(many[-2], flags=("blank",))
    kept = [o.id for o in select_shown([FAILED, *many])]
    assert kept == [f"cat-{k}" for k in (*range(MAX_IMAGES - 1), MAX_IMAGES + 3)]
    broken = [replace(FAILED, id=f"elk-{k}") for k in range(MAX_IMAGES + 1)]
    read = Read(page("Run 1", {}, [*many, *broken], {}, ""))
    rows = [attrs["data-id"] for _, attrs in read.tags if attrs.get("class") == "outcome"]
    assert rows == [f"elk-{k}" for k in range(MAX_IMAGES)] + kept
    words = read.words()
    assert "1005 succeeded, 1001 failed, 0 rejected, 0 skipped of 2006 rows, 1 picture with a flag" in words
    assert "Failed and rejected 1000 of 1001 are here; the output has them all." in words
    assert "Pictures 1000 of 1005 are here; the output has them all." in words
    assert "are here" not in Read(page("Run 1", {}, [*many[:MAX_IMAGES], *broken[:-1]], {}, "")).words()


def test_card_shows_only_measured_quality() -> None:
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
    done = replace(DONE, id=HOSTILE, recipe={"name": f"r{HOSTILE}"}, image=f"images/{HOSTILE}", thumbnail="thumbnails/x.jpg")
    done = replace(done, flags=(f"g{HOSTILE}",))
    failed = replace(FAILED, id=f"f{HOSTILE}", error=f"e{HOSTILE}")
    text = page(f"t{HOSTILE}", {f"n{HOSTILE}": f"v{HOSTILE}"}, [done, failed], {HOSTILE: "data:image/jpeg;base64,AA"}, "")
    plain = Read(page("t", {"n": "v"}, [replace(DONE, flags=("g",)), FAILED], {"cat_oil": "data:image/jpeg;base64,AA"}, ""))
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
    assert "1.2 s how it was made" in words
    assert "compute 1.2 s Previous" in words


def test_the_page_is_a_whole_document_in_one_encoding() -> None:
    text = page("Run 1", {}, [replace(DONE, id="schön")], {}, "")
    assert text.startswith("<!doctype html>")
    assert re.search(r'<meta charset="utf-8">', text)
    assert "schön" in text
