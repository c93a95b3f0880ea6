"""Report of outcomes as one self-contained HTML page: embedded thumbnails, no network, readable without its script.

The functions are pure. The page's parts are in `report/`: `page.html` is the template; `style.css` and `script.js` are inserted
unchanged, and the page's content security policy allows no other style or script, by their hashes.
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
"""Maximum number of images, and of failures, on the page: a browser filters and sorts so many at once."""

MEASURES = {"style gap closed": "style_gap_held_out", "content kept": "content_cosine"}
"""Keys of `Outcome.quality` that a card shows, by their labels."""


def shown(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Select the outcomes whose images the page shows: at most `MOST`, preferring flagged ones, in the given order."""
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
    """Render the page: a header of `facts`, the failures, the flagged images, then each image.

    The same input gives the same bytes, and all text is escaped.

    Args:
        title: Title of the page.
        facts: Values of the header, by their labels.
        outcomes: All outcomes of the run or output.
        thumbnails: Thumbnail strips as `data:` URIs, by pair id.
        curves: Results of `history.curves`, by pair id.
        base: Relative URL from the page's folder to the output folder, such as `../../`.
    """
    style, script = _part("style.css"), _part("script.js")
    policy = {
        "default-src": "'none'",
        "img-src": "data: 'self'",  # the full-size images, in files beside the page
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
    """Encode a value as JSON that is safe inside a `<script>` element; as ASCII, so that U+2028 is escaped too."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _totals(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Sum up the compute of this run's images, and list backbones and versions of all images; omit what is unknown."""
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
    """Return each name once, in the order of first appearance."""
    return list(dict.fromkeys(name for names in found for name in names))


def _choices(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Count the rows that each choice of each filter leaves."""
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
    """Format the quality of an outcome for its card; omit what was not measured."""
    return " \u00b7 ".join(f"{said} {o.quality[name]:.2f}" for said, name in MEASURES.items() if name in o.quality)


def _made(o: Outcome) -> dict[str, str]:
    """Describe an image's inputs, options and result by label; omit what is unknown."""
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
