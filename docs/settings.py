"""Write the settings of nst into docs/configuration.md and .env.example, from the fields of `Settings`.

.venv/bin/python -m docs.settings
"""

from __future__ import annotations

from pathlib import Path

from nst_tasks.inputs.settings import ENVIRONMENT_PREFIX, Settings, get_range

ROOT = Path(__file__).parents[1]


def format_default(field: str) -> str:
    """Return a field's default as its variable would be set to it; empty if it has none."""
    default = Settings.model_fields[field].default
    return f"{default:g}" if isinstance(default, (int, float)) else default or ""


def render_table() -> str:
    """Return the settings as rows of a table in Markdown."""
    rows = ["| variable | default | range | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default, meaning = format_default(name), str(field.description).replace("|", r"\|")
        shown = f"`{default}`" if default else "none"
        rows.append(f"| `{ENVIRONMENT_PREFIX}{name.upper()}` | {shown} | {get_range(name)} | {meaning} |")
    return "\n".join(rows)


def render_example() -> str:
    """Return the settings as lines of an environment file, each commented out at its default."""
    return "\n\n".join(
        f"# {field.description}\n# {ENVIRONMENT_PREFIX}{name.upper()}={format_default(name)}"
        for name, field in Settings.model_fields.items()
    )


def render_page(page: str) -> str:
    """Return the text of a page, by its path from the root, with its part between the two markers replaced."""
    start, end, render = PAGES[page]
    before, rest = (ROOT / page).read_text().split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n\n{render()}\n\n{end}{after}"


PAGES = {
    "docs/configuration.md": ("<!-- written by make docs -->", "<!-- end -->", render_table),
    ".env.example": ("# --- nst, written by make docs ---", "# --- Prefect ---", render_example),
}
"""Page -> the markers before and after its generated part, and the function that renders it."""


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(render_page(page))
