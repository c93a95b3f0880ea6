"""Outcomes as one self-contained HTML page: no network, thumbnails inside, readable without its script. Pure.

Its parts lie in `report/`: `page.html` is the template, `style.css` and `script.js` go into the page as they are, and the
page's policy lets a browser take nothing but them, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment

from nst_tasks.core.flags import FLAGS
from nst_tasks.errors import reason_and_remedy, redact
from nst_tasks.outcome import Outcome, Status, counts

MOST = 1000
"""Pictures on the page, and failures: so many a browser filters and sorts at once. The output has the others."""

MEASURES = {"style gap closed": "style_gap_held_out", "content kept": "content_cosine"}
"""Qualities that a card tells, by the words for them."""


def shown(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those whose pictures the page shows: the first `MOST` of them in their order, and the flagged before the others."""
    pictures = [o for o in outcomes if not o.is_broken]
    kept = sorted(range(len(pictures)), key=lambda k: not pictures[k].flags)[:MOST]
    return [pictures[k] for k in sorted(kept)]


def page(
    title: str,
    facts: Mapping[str, str],
    outcomes: Sequence[Outcome],
    thumbnails: Mapping[str, str],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    base: str,
) -> str:
    """The page: a header of `facts`, what failed, what is flagged, then each picture. The same input gives the same bytes.

    By pair id, `thumbnails` holds strips as `data:` URIs, and `curves` what `history.curves` finds. `base` leads from where
    the page will lie to the output folder. Every text is escaped.
    """
    style, script = _part("style.css"), _part("script.js")
    policy = {
        "default-src": "'none'",
        "img-src": "data: 'self'",  # the pictures at full size, beside the page
        "style-src": _hashed(style),
        "script-src": _hashed(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    pictures, kept = [o for o in outcomes if not o.is_broken], shown(outcomes)
    broken = [o for o in outcomes if o.is_broken]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "file_name": _file_name,
        "made": _made,
        "measured": _measured,
        "reason_and_remedy": reason_and_remedy,
        "style_names": _style_names,
    }
    return environment.from_string(_part("page.html")).render(
        title=title,
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        style=style,
        script=script,
        facts={**facts, **_totals(outcomes)},
        outcomes=outcomes,
        counts=counts(outcomes),
        choices=_choices([*broken[:MOST], *kept]),
        broken=broken,
        pictures=pictures,
        kept=kept,
        most=MOST,
        flagged=sum(bool(o.flags) for o in pictures),
        by_flag={name: [o for o in kept if name in o.flags] for name in _names(o.flags for o in kept)},
        flags=FLAGS,
        thumbnails=thumbnails,
        curves=_embedded(curves),
        base=base,
    )


def _part(name: str) -> str:
    return resources.files("nst_tasks").joinpath("report", name).read_text("utf-8")


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embedded(value: object) -> str:
    """JSON that no HTML parser finds an end or a comment in; in ASCII, so that U+2028 is escaped too."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _totals(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """What the pictures of this run took, and what all of them were made with; nothing where there are none."""
    pictures = [o for o in outcomes if not o.is_broken]
    made = [o for o in pictures if o.status == Status.SUCCEEDED]
    totals = {}
    if made:
        megapixels = sum(o.height * o.width for o in made) / 1e6
        totals["made"] = f"{megapixels:.3g} megapixels in {sum(o.seconds for o in made):.0f} s of compute"
    if backbones := _names([f"{o.backbone} (weights {o.weights_sha256[:12]})"] for o in pictures if o.weights_sha256):
        totals["backbone"] = ", ".join(backbones)
    for name in _names(o.versions for o in pictures):
        totals[name] = ", ".join(_names([str(o.versions[name])] for o in pictures if name in o.versions))
    return totals


def _names(found: Iterable[Iterable[str]]) -> list[str]:
    """Each name once, in the order of its first appearance."""
    return list(dict.fromkeys(name for names in found for name in names))


def _choices(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """What a reader may filter by, with how many rows each leaves."""
    flags = Counter(name for o in outcomes for name in set(o.flags))
    none = {"none": bare} if 0 < (bare := sum(not o.flags for o in outcomes)) < len(outcomes) else {}
    return {
        "status": {status: count for status, count in counts(outcomes).items() if count},
        "recipe": _sorted(Counter(str(o.recipe["name"]) for o in outcomes if "name" in o.recipe)),
        "style": _sorted(Counter(name for o in outcomes for name in set(_style_names(o)))),
        "flag": {**none, **_sorted(flags)},
    }


def _sorted(found: Counter[str]) -> dict[str, int]:
    return dict(sorted(found.items(), key=lambda item: (item[0].lower(), item[0])))


def _file_name(uri: str) -> str:
    return redact(uri).rstrip("/").rpartition("/")[2]


def _style_names(o: Outcome) -> list[str]:
    return [_file_name(style.uri) for style in o.styles]


def _measured(o: Outcome) -> str:
    """An outcome's quality in few words; none for what was not measured."""
    return " \u00b7 ".join(f"{said} {o.quality[name]:.2f}" for said, name in MEASURES.items() if name in o.quality)


def _made(o: Outcome) -> dict[str, str]:
    """What it takes to make a picture again, and what came of it, in words; nothing that is not known."""
    weighted = zip(o.styles, o.style_weights or [1.0] * len(o.styles), strict=False)
    styles = [redact(style.uri) + (f" ({weight:.2g})" if len(o.styles) > 1 else "") for style, weight in weighted]
    told = {
        "row": str(o.row),
        "status": str(o.status),
        "content": f"{redact(o.content.uri)}, {o.content.width} x {o.content.height}" if o.content else "",
        "style": ", ".join(styles),
        "starts from": redact(o.init.uri) if o.init else "",
        "colors kept": o.keep_color,
        "mask": redact(o.mask.uri) if o.mask else "",
        "recipe": str(o.recipe.get("name", "")),
        "size": f"{o.width} x {o.height}",
        "steps": f"{o.steps_done} of {o.steps}" if 0 < o.steps_done < o.steps else str(o.steps),
        "precision": o.precision,
        "seed": str(o.seed),
        "compute": f"{o.seconds:.1f} s",
        "loss": " + ".join(f"{term} {o.losses[term]:.4g}" for term in ("content", "style", "tv") if term in o.losses),
        **{said: f"{o.quality[name]:.3f}" for said, name in MEASURES.items() if name in o.quality},
        "structural similarity": f"{o.quality['luminance_ssim']:.3f}" if "luminance_ssim" in o.quality else "",
        "backbone": o.backbone,
        "made in run": o.run_id,
        "key": o.key,
    }
    return {name: text for name, text in told.items() if text}
