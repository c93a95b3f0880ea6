"""Report of outcomes as one self-contained HTML page: embedded thumbnails, no network, readable without its script.

The functions are pure. The page's parts are in `page/`: `page.html` is the template; `style.css` and `script.js` are inserted
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
from nst_tasks.errors import redact, split_reason_and_remedy
from nst_tasks.outputs.outcome import Outcome, Status, count_by_status

MAX_IMAGES = 1000
"""Maximum number of images, and of failures, on the page: a browser filters and sorts so many at once."""

QUALITY_LABELS = {"style gap closed": "style_gap_held_out", "content kept": "content_cosine"}
"""Keys of `Outcome.quality` that a card shows, by their labels."""


def select_shown(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Select the outcomes whose images the page shows: at most `MAX_IMAGES`, preferring flagged ones, in the given order."""
    images = [o for o in outcomes if not o.is_broken]
    kept = sorted(range(len(images)), key=lambda k: not images[k].flags)[:MAX_IMAGES]
    return [images[k] for k in sorted(kept)]


def render_page(
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
        curves: Results of `outputs.loss_history.extract_curves`, by pair id.
        base: Relative URL from the page's folder to the output folder, such as `../../`.
    """
    style, script = _read_part("style.css"), _read_part("script.js")
    policy = {
        "default-src": "'none'",
        "img-src": "data: 'self'",  # the full-size images, in files beside the page
        "style-src": _hash_for_csp(style),
        "script-src": _hash_for_csp(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    pictures, kept = [o for o in outcomes if not o.is_broken], select_shown(outcomes)
    broken = [o for o in outcomes if o.is_broken]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "file_name": _file_name,
        "made": _describe_outcome,
        "measured": _format_quality,
        "reason_and_remedy": split_reason_and_remedy,
        "style_names": _style_names,
    }
    return environment.from_string(_read_part("page.html")).render(
        title=title,
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        style=style,
        script=script,
        facts={**facts, **_summarize_totals(outcomes)},
        outcomes=outcomes,
        counts=count_by_status(outcomes),
        choices=_count_filter_choices([*broken[:MAX_IMAGES], *kept]),
        broken=broken,
        pictures=pictures,
        kept=kept,
        most=MAX_IMAGES,
        flagged=sum(bool(o.flags) for o in pictures),
        by_flag={name: [o for o in kept if name in o.flags] for name in _unique_names(o.flags for o in kept)},
        flags=FLAGS,
        thumbnails=thumbnails,
        curves=_encode_script_json(curves),
        base=base,
    )


def _read_part(name: str) -> str:
    return resources.files("nst_tasks.outputs").joinpath("page", name).read_text("utf-8")


def _hash_for_csp(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _encode_script_json(value: object) -> str:
    """Encode a value as JSON that is safe inside a `<script>` element; as ASCII, so that U+2028 is escaped too."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _summarize_totals(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Sum up the compute of this run's images, and list backbones and versions of all images; omit what is unknown."""
    pictures = [o for o in outcomes if not o.is_broken]
    made = [o for o in pictures if o.status == Status.SUCCEEDED]
    totals = {}
    if made:
        megapixels = sum(o.height * o.width for o in made) / 1e6
        totals["made"] = f"{megapixels:.3g} megapixels in {sum(o.seconds for o in made):.0f} s of compute"
    if backbones := _unique_names([f"{o.backbone} (weights {o.weights_sha256[:12]})"] for o in pictures if o.weights_sha256):
        totals["backbone"] = ", ".join(backbones)
    for name in _unique_names(o.versions for o in pictures):
        totals[name] = ", ".join(_unique_names([str(o.versions[name])] for o in pictures if name in o.versions))
    return totals


def _unique_names(found: Iterable[Iterable[str]]) -> list[str]:
    """Return each name once, in the order of first appearance."""
    return list(dict.fromkeys(name for names in found for name in names))


def _count_filter_choices(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Count the rows that each choice of each filter leaves."""
    flags = Counter(name for o in outcomes for name in set(o.flags))
    none = {"none": bare} if 0 < (bare := sum(not o.flags for o in outcomes)) < len(outcomes) else {}
    return {
        "status": {status: count for status, count in count_by_status(outcomes).items() if count},
        "recipe": _sort_by_name(Counter(str(o.recipe["name"]) for o in outcomes if "name" in o.recipe)),
        "style": _sort_by_name(Counter(name for o in outcomes for name in set(_style_names(o)))),
        "flag": {**none, **_sort_by_name(flags)},
    }


def _sort_by_name(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (item[0].lower(), item[0])))


def _file_name(uri: str) -> str:
    return redact(uri).rstrip("/").rpartition("/")[2]


def _style_names(o: Outcome) -> list[str]:
    return [_file_name(style.uri) for style in o.styles]


def _format_quality(o: Outcome) -> str:
    """Format the quality of an outcome for its card; omit what was not measured."""
    return " \u00b7 ".join(f"{label} {o.quality[name]:.2f}" for label, name in QUALITY_LABELS.items() if name in o.quality)


def _describe_outcome(o: Outcome) -> dict[str, str]:
    """Describe an image's inputs, options and result by label; omit what is unknown."""
    weighted = zip(o.styles, o.style_weights or [1.0] * len(o.styles), strict=False)
    styles = [redact(style.uri) + (f" ({weight:.2g})" if len(o.styles) > 1 else "") for style, weight in weighted]
    descriptions = {
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
        **{label: f"{o.quality[name]:.3f}" for label, name in QUALITY_LABELS.items() if name in o.quality},
        "structural similarity": f"{o.quality['luminance_ssim']:.3f}" if "luminance_ssim" in o.quality else "",
        "backbone": o.backbone,
        "made in run": o.run_id,
        "key": o.key,
    }
    return {name: text for name, text in descriptions.items() if text}
