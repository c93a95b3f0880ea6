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
SUCCEEDED = Outcome(
    id="cat_oil", row=2, status=Status.SUCCEEDED, recipe={"name": "painterly"}, height=30, width=40, steps=9,
    seconds=1.25, losses=LOSSES, image="images/cat_oil.png",
)  # fmt: skip
SKIPPED = replace(SUCCEEDED, id="dog_oil", row=3, status=Status.SKIPPED, image="images/dog_oil.png")
FAILED = Outcome(id="elk", row=4, status=Status.FAILED, error="elk.png: does not exist; check the name")
REJECTED = Outcome(id="", row=5, status=Status.REJECTED, error="row 5, column size: 9 is below the smallest size, 64")


def render(
    title: str,
    facts: Mapping[str, str],
    outcomes: Sequence[Outcome],
    thumbnails: Mapping[str, str],
    base: str,
    curves: Mapping[str, Any] | None = None,
) -> str:
    return render_page(title, facts, outcomes, thumbnails, curves or {}, base)


class PageParser(HTMLParser):
    """Parser that collects tags, attributes, scripts and the visible text; void tags need no end."""

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

    def list_links(self) -> list[str]:
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in ("href", "src")]

    def join_words(self) -> str:
        return " ".join(self.text.split())


def test_failures_come_first_and_no_outcome_is_missing() -> None:
    parser = PageParser(render("Run 1", {"took": "3 s"}, [SUCCEEDED, SKIPPED, FAILED, REJECTED], {}, "../../"))
    assert not parser.open
    words = parser.join_words()
    assert "1 succeeded, 1 failed, 1 rejected, 1 skipped of 4 rows" in words
    assert "took 3 s" in words
    lines = ("4 elk failed elk.png: does not exist check the name", "5 rejected " + REJECTED.error + " see the run's log")
    places = [words.index(text) for text in (*lines, "cat_oil \u00b7", "dog_oil \u00b7")]
    assert places == sorted(places)
    assert "painterly · 40 x 30 · 9 steps · 1.2 s" in words
    assert "loss 6 = content 1 + style 2 + tv 3" in words


def test_links_lead_from_the_page_to_the_output() -> None:
    thumbnails = {"cat_oil": "data:image/jpeg;base64,AAAA"}
    parser = PageParser(
        render("Run 1", {}, [replace(SUCCEEDED, thumbnail="thumbnails/cat_oil.jpg"), SKIPPED], thumbnails, "../../")
    )
    assert parser.list_links() == [
        "../../images/cat_oil.png",
        "data:image/jpeg;base64,AAAA",
        "../../images/cat_oil.png",
        "../../images/dog_oil.png",
    ]
    (strip,) = [attrs for _, attrs in parser.tags if "data-strip" in attrs]
    assert strip["data-strip"] == "../../thumbnails/cat_oil.jpg"
    (picture,) = [attrs for tag, attrs in parser.tags if tag == "img" and "src" in attrs]
    assert picture["alt"] == "cat_oil: content, style and result side by side"
    assert PageParser(render("All", {}, [SUCCEEDED], {}, "")).list_links() == ["images/cat_oil.png"]


def test_page_makes_no_requests() -> None:
    text = render(
        "Run 1", {"manifest": "https://host/m.csv"}, [SUCCEEDED, FAILED], {"cat_oil": "data:image/jpeg;base64,AAAA"}, ""
    )
    parser = PageParser(text)
    assert not [link for link in parser.list_links() if not link.startswith(("data:", "images/"))]
    assert not {tag for tag, _ in parser.tags} & {"link", "iframe", "object", "embed", "base", "form"}
    assert not [attrs for tag, attrs in parser.tags if tag == "script" and "src" in attrs]
    assert "url(" not in text
    assert "@import" not in text
    assert "https://host/m.csv" in parser.join_words()  # as text only


def test_page_has_a_content_security_policy() -> None:
    text = render("Run 1", {}, [SUCCEEDED, FAILED], {}, "")
    style, script = (re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("style", "script"))
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for (part,) in (style, script)]
    (policy,) = [attrs["content"] for _, attrs in PageParser(text).tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == (  # in case a text gets out of its quotes
        f"default-src 'none'; img-src data: 'self'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert render("Run 1", {}, [SUCCEEDED, FAILED], {}, "") == text


CURVES = [{"height": 3, "width": 4, "step": [0, 9], "content": [5.0, 1.0], "style": [2.0, None], "tv": [3.0, 3.0]}]


def test_curves_cannot_end_their_script_element() -> None:
    for id in ("cat_oil", "</script><script>alert(1)//", "<!--<script>", "a\u2028b&amp;"):
        parser = PageParser(render("Run 1", {}, [SUCCEEDED], {}, "", {id: CURVES}))
        assert not parser.open
        assert [attrs.get("type") for tag, attrs in parser.tags if tag == "script"] == ["application/json", None]
        data, script = parser.scripts
        assert json.loads(data) == {id: CURVES}
        assert not re.search("[<>&\u2028]", data)
        assert script == (resources.files("nst_tasks.outputs") / "page" / "script.js").read_text()


DETAILED_OUTCOME = replace(
    SUCCEEDED, backbone="vgg16-hed", weights_sha256="45" * 32, versions={"nst": "1.2", "numpy": "3"}, height=1000, width=2000,
    content=Source("/in/cat.png", "c", "1", 60, 80), seed=7, keep_color="match", key="k" * 64, run_id="run-1",
    styles=(Source("/in/a/oil.jpg", "o", "1", 5, 5), Source("s3://u:hunter2@b/ink.jpg?x=hunter2", "i", "1", 5, 5)),
    style_weights=(0.75, 0.25), quality=QUALITY,
)  # fmt: skip


def test_header_shows_versions_and_totals() -> None:
    newer = replace(DETAILED_OUTCOME, id="dog_oil", versions={"nst": "1.3", "numpy": "3"}, seconds=2.5)
    skip = replace(DETAILED_OUTCOME, id="fox_oil", status=Status.SKIPPED, seconds=100.0)
    header = PageParser(
        render("Run 1", {"backbone": "vgg16-hed"}, [DETAILED_OUTCOME, newer, skip, FAILED], {}, "").partition("<main>")[0]
    ).join_words()
    assert "made 4 megapixels in 4 s of compute" in header  # pictures of earlier runs do not count
    assert "backbone vgg16-hed (weights 454545454545)" in header
    assert header.count("vgg16-hed") == 1
    assert "nst 1.2, 1.3 numpy 3" in header
    assert "made" not in PageParser(render("Run 1", {}, [FAILED, SKIPPED], {}, "").partition("<main>")[0]).join_words()


def test_card_shows_all_settings_and_no_secret() -> None:
    text = render("Run 1", {}, [DETAILED_OUTCOME], {}, "")
    assert "hunter2" not in text
    words = PageParser(text).join_words()
    assert (
        "row 2 status succeeded content /in/cat.png, 80 x 60 style /in/a/oil.jpg (0.75), s3://b/ink.jpg (0.25) "
        "colors kept match recipe painterly size 2000 x 1000 steps 9 seed 7 compute 1.2 s loss content 1 + style 2 + tv 3 "
        "style gap closed 0.652 content kept 0.591 structural similarity 0.260 backbone vgg16-hed made in run run-1 "
        f"key {'k' * 64}"
    ) in words


def test_card_shows_precision_and_steps_done() -> None:
    recipe = {"name": "painterly", "method": {"precision": "mixed"}}
    for steps, expected in ((4, "4 of 9"), (9, "9"), (0, "9")):  # outcomes of older runs lack steps_done
        words = PageParser(
            render("Run 1", {}, [replace(DETAILED_OUTCOME, recipe=recipe, steps_done=steps)], {}, "")
        ).join_words()
        assert f"size 2000 x 1000 steps {expected} precision mixed seed 7" in words


def test_filters_have_the_existing_choices_with_counts() -> None:
    outcomes = [DETAILED_OUTCOME, replace(FLAGGED, recipe={"name": "gatys-2016"}), FAILED, REJECTED]
    text = render("Run 1", {}, outcomes, {}, "")
    choices = [
        "all succeeded (2) failed (1) rejected (1) recipe",
        "all gatys-2016 (1) painterly (1) style",
        "all ink.jpg (1) oil.jpg (1) flag",
        "with and without none (3) blank (1) no_progress (1)",
    ]
    words = PageParser(text).join_words()
    for choice in choices:
        assert choice in words
    assert re.search(r'<div role="search"[^>]* hidden>', text)  # until the script has run
    rows = [attrs for _, attrs in PageParser(text).tags if attrs.get("class") == "outcome"]
    assert [row["data-id"] for row in rows] == ["elk", "", "cat_oil", "fox_oil"]
    cat = {name.removeprefix("data-"): value for name, value in rows[2].items()}
    assert cat == {
        "class": "outcome", "id": "cat_oil", "row": "2", "status": "succeeded", "recipe": "painterly", "content": "cat.png",
        "styles": "oil.jpg\nink.jpg", "flags": "", "loss": "6.0", "gap": "0.652", "kept": "0.591", "seconds": "1.25",
        "aspect": "2.0",
    }  # fmt: skip


def test_choices_that_differ_by_case_alone_have_one_order() -> None:
    names = ["b.jpg", "B.jpg", "a.jpg"]
    for order in (names, names[::-1]):
        outcomes = [replace(SUCCEEDED, styles=(replace(DETAILED_OUTCOME.styles[0], uri=f"/in/{name}"),)) for name in order]
        assert "all a.jpg (1) B.jpg (1) b.jpg (1) flag" in PageParser(render("Run 1", {}, outcomes, {}, "")).join_words()


FLAGGED = replace(SUCCEEDED, id="fox_oil", row=1, flags=("blank", "no_progress"), image="images/fox_oil.png")


def test_flagged_rows_come_after_the_failed_with_their_remedies() -> None:
    parser = PageParser(render("Run 1", {}, [FLAGGED, SUCCEEDED, FAILED], {}, "../../"))
    assert not parser.open
    words = parser.join_words()
    assert "2 succeeded, 1 failed, 0 rejected, 0 skipped of 3 rows, 1 picture with a flag" in words
    lines = [f"{name} {FLAGS[name].meaning} {FLAGS[name].remedy} fox_oil" for name in FLAGGED.flags]
    places = [words.index(text) for text in ("check the name", *lines, "Pictures", "cat_oil \u00b7")]
    assert places == sorted(places)
    assert parser.list_links().count("../../images/fox_oil.png") == 3  # two flags and the picture's own


def test_a_flag_of_many_pairs_names_the_first_ten() -> None:
    outcomes = [replace(FLAGGED, id=f"fox-{k}", flags=("blank",)) for k in range(12)]
    words = PageParser(render("Run 1", {}, outcomes, {}, "")).join_words()
    assert "fox-9 and 2 more Pictures" in words
    assert "fox-9 Pictures" in PageParser(render("Run 1", {}, outcomes[:10], {}, "")).join_words()


def test_every_flag_is_a_badge_on_the_pictures_card() -> None:
    parser = PageParser(render("Run 1", {}, [FLAGGED, SUCCEEDED], {}, ""))
    titles = [attrs.get("title", "") for tag, attrs in parser.tags if tag == "span" and attrs.get("class") == "flag"]
    assert [title for title in titles if title] == [FLAGS[name].meaning for name in FLAGGED.flags]
    assert "1.2 s blank no_progress" in parser.join_words()
    assert "1.2 s style" not in PageParser(render("Run 1", {}, [SUCCEEDED], {}, "")).join_words()


def test_skipped_images_keep_flags_and_unknown_flags_show() -> None:
    outcomes = [replace(FLAGGED, status=Status.SKIPPED), replace(SUCCEEDED, flags=("unheard_of",))]
    words = PageParser(render("Run 1", {}, outcomes, {}, "")).join_words()
    assert "2 pictures with a flag" in words
    assert "1.2 s unheard_of" in words
    assert "unheard_of cat_oil Pictures" in words
    assert "unheard_of a flag of another version" in words


def test_flag_of_a_failed_row_counts_as_failed() -> None:
    words = PageParser(render("Run 1", {}, [replace(FAILED, flags=("not_finite",))], {}, "")).join_words()
    assert "failed not_finite" in words
    assert "with a flag" not in words
    assert "Flagged" not in words
    assert "none (" not in words  # selecting it would leave no row


def test_large_page_shows_flagged_and_first_images() -> None:
    successes = [replace(SUCCEEDED, id=f"cat-{k}", row=k) for k in range(MAX_IMAGES + 5)]
    successes[-2] = replace(successes[-2], flags=("blank",))
    ids = [o.id for o in select_shown([FAILED, *successes])]
    assert ids == [f"cat-{k}" for k in (*range(MAX_IMAGES - 1), MAX_IMAGES + 3)]
    failures = [replace(FAILED, id=f"elk-{k}") for k in range(MAX_IMAGES + 1)]
    parser = PageParser(render("Run 1", {}, [*successes, *failures], {}, ""))
    rows = [attrs["data-id"] for _, attrs in parser.tags if attrs.get("class") == "outcome"]
    assert rows == [f"elk-{k}" for k in range(MAX_IMAGES)] + ids
    words = parser.join_words()
    assert "1005 succeeded, 1001 failed, 0 rejected, 0 skipped of 2006 rows, 1 picture with a flag" in words
    assert "Failed and rejected 1000 of 1001 are here; the output has them all." in words
    assert "Pictures 1000 of 1005 are here; the output has them all." in words
    assert "are here" not in PageParser(render("Run 1", {}, [*successes[:MAX_IMAGES], *failures[:-1]], {}, "")).join_words()


def test_card_shows_only_measured_quality() -> None:
    for quality, expected in (
        (QUALITY, "style gap closed 0.65 · content kept 0.59 loss"),
        ({"style_gap_held_out": -1.5}, "style gap closed -1.50 loss"),
        ({"content_cosine": 1}, "content kept 1.00 loss"),
        ({"luminance_ssim": 0.5, "style_gap": {}}, "1.2 s loss"),
        ({}, "1.2 s loss"),
    ):
        text = render("Run 1", {}, [replace(SUCCEEDED, quality=quality)], {}, "")
        assert expected in PageParser(text).join_words()
        assert "nan" not in PageParser(text).join_words()
        assert "None" not in text
        assert ("1 as the style" in text) is ("1.2 s loss" not in expected)  # no empty line with a title


HOSTILE = "<script>alert(1)</script>\"' onmouseover='x' & {{ 7 * 7 }} {% raw %}"


def test_hostile_texts_stay_texts() -> None:
    success = replace(
        SUCCEEDED, id=HOSTILE, recipe={"name": f"r{HOSTILE}"}, image=f"images/{HOSTILE}", thumbnail="thumbnails/x.jpg"
    )
    success = replace(success, flags=(f"g{HOSTILE}",))
    failure = replace(FAILED, id=f"f{HOSTILE}", error=f"e{HOSTILE}")
    text = render(f"t{HOSTILE}", {f"n{HOSTILE}": f"v{HOSTILE}"}, [success, failure], {HOSTILE: "data:image/jpeg;base64,AA"}, "")
    plain = PageParser(
        render("t", {"n": "v"}, [replace(SUCCEEDED, flags=("g",)), FAILED], {"cat_oil": "data:image/jpeg;base64,AA"}, "")
    )
    parser = PageParser(text)
    assert [tag for tag, _ in parser.tags] == [tag for tag, _ in plain.tags]
    assert [list(attrs) for _, attrs in parser.tags] == [list(attrs) for _, attrs in plain.tags]
    for mark in "rfetnvg":
        assert f"{mark}{HOSTILE}" in parser.text
    assert f"images/{HOSTILE}" in parser.list_links()


def test_page_without_outcomes() -> None:
    parser = PageParser(render("Run 1", {}, [], {}, ""))
    assert not parser.open
    assert "0 succeeded, 0 failed, 0 rejected, 0 skipped of 0 rows" in parser.join_words()
    assert not {"table", "ul"} & {tag for tag, _ in parser.tags}


def test_outcome_without_losses_is_shown() -> None:
    words = PageParser(render("Run 1", {}, [replace(SUCCEEDED, losses={})], {}, "")).join_words()
    assert "cat_oil" in words
    assert "1.2 s how it was made" in words
    assert "compute 1.2 s Previous" in words


def test_page_is_a_complete_utf8_document() -> None:
    text = render("Run 1", {}, [replace(SUCCEEDED, id="schön")], {}, "")
    assert text.startswith("<!doctype html>")
    assert re.search(r'<meta charset="utf-8">', text)
    assert "schön" in text
