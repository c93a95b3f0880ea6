"""Outcomes as one self-contained HTML page: no script, no network, thumbnails inside. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import Environment

from nst_tasks.core.flags import FLAGS
from nst_tasks.outcome import Outcome, counts

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} - nst</title>
<style>
:root { color-scheme: light dark; --line: #8884; --quiet: light-dark(#5a5a5a, #a8a8a8); --bad: light-dark(#a4001d, #ff8f9f); --look: light-dark(#8a4b00, #ffc266); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
dl { display: flex; flex-wrap: wrap; gap: .2rem 2rem; margin: 0; color: var(--quiet); }
dl div { display: flex; gap: .5rem; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .8rem .3rem 0; vertical-align: top;
border-bottom: 1px solid var(--line); overflow-wrap: anywhere; } th { white-space: nowrap; } td:nth-child(2) { min-width: 8rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: 1.2rem; padding: 0; }
.pairs li { list-style: none; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; min-width: 0; }
.pairs img { max-width: 100%; height: auto; display: block; border-radius: .2rem; background: white; }
.pairs p { margin: .4rem 0 0; color: var(--quiet); overflow-wrap: anywhere; }
.name { font-weight: 600; } .failed, .rejected { color: var(--bad); }
.flagged { color: var(--look); }
.flag { color: var(--look); border: 1px solid; border-radius: .3rem; padding: 0 .4rem; font-weight: 600; white-space: nowrap; }
</style>
</head>
{% macro badges(o) %}{% for name in o.flags %} <span class="flag"{% if name in flags %} title="{{ flags[name].meaning }}"{% endif %}>
{{- name -}}</span>{% endfor %}{% endmacro %}
<body>
<h1>{{ title }}</h1>
<dl>{% for name, value in facts.items() %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
<p>{% for status, count in counts.items() %}<span class="{{ status if count }}">{{ count }} {{ status }}</span>{{ ", " if not loop.last }}{% endfor +%}
of {{ outcomes | length }} rows{% if flagged %}, <span class="flagged">{{ flagged | length }} picture{{ "s" if flagged | length > 1 }} with a flag</span>{% endif %}</p>
{% if broken %}
<h2>Failed and rejected</h2>
<table>
<thead><tr><th scope="col">row</th><th scope="col">pair</th><th scope="col">status</th><th scope="col">reason and remedy</th></tr></thead>
<tbody>
{% for o in broken %}<tr><td>{{ o.row }}</td><td>{{ o.id }}</td><td class="{{ o.status }}">{{ o.status }}{{ badges(o) }}</td><td>{{ o.error }}</td></tr>
{% endfor %}</tbody>
</table>
{% endif %}
{% if flagged %}
<h2>Flagged</h2>
<table>
<thead><tr><th scope="col">row</th><th scope="col">pair</th><th scope="col">flag</th><th scope="col">meaning and remedy</th></tr></thead>
<tbody>
{% for o in flagged %}{% for name in o.flags %}<tr><td>{{ o.row }}</td><td><a href="{{ base + o.image }}">{{ o.id }}</a></td>
<td><span class="flag">{{ name }}</span></td><td>{% if name in flags %}{{ flags[name].meaning }}; {{ flags[name].remedy }}{% endif %}</td></tr>
{% endfor %}{% endfor %}</tbody>
</table>
{% endif %}
{% if pictures %}
<h2>Pictures</h2>
<ul class="pairs">
{% for o in pictures %}<li>
{% if o.id in thumbnails %}<a href="{{ base + o.image }}"><img loading="lazy" src="{{ thumbnails[o.id] }}"
alt="{{ o.id }}: content, style and result side by side"></a>{% endif %}
<p><a class="name" href="{{ base + o.image }}">{{ o.id }}</a> &middot; {{ o.status }} &middot; {{ o.recipe.name }} &middot;
{{ o.width }} x {{ o.height }} &middot; {{ o.steps }} steps &middot; {{ "%.1f" | format(o.seconds) }} s{{ badges(o) }}</p>
{% if measured(o) %}<p title="style gap closed: 0 as the content, 1 as the style; content kept: 1 as the content">{{ measured(o) }}</p>
{% endif %}
{% if o.losses %}<p>loss {{ "%.4g" | format(o.losses.total) }} = content {{ "%.4g" | format(o.losses.content) }} + style
{{ "%.4g" | format(o.losses.style) }} + tv {{ "%.4g" | format(o.losses.tv) }}</p>{% endif %}
</li>
{% endfor %}</ul>
{% endif %}
</body>
</html>
"""


def page(title: str, facts: Mapping[str, str], outcomes: Sequence[Outcome], thumbnails: Mapping[str, str], base: str) -> str:
    """The page: a header of `facts`, the failures, what is flagged, then each picture with its strip (a `data:` URI by id).

    `base` leads from where the page will lie to the output folder. Every text is escaped.
    """
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_TEMPLATE)
    return template.render(
        title=title,
        facts=facts,
        outcomes=outcomes,
        counts=counts(outcomes),
        broken=[o for o in outcomes if o.is_broken],
        flagged=[o for o in outcomes if o.flags and not o.is_broken],
        flags=FLAGS,
        pictures=[o for o in outcomes if not o.is_broken],
        measured=_measured,
        thumbnails=thumbnails,
        base=base,
    )


def _measured(o: Outcome) -> str:
    """An outcome's quality in few words; none for what was not measured."""
    words = {"style gap closed": "style_gap_held_out", "content kept": "content_cosine"}
    return " \u00b7 ".join(f"{said} {o.quality[name]:.2f}" for said, name in words.items() if name in o.quality)
