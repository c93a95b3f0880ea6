"""Sample images of all measurements: nst's own, written to files."""

from __future__ import annotations

from pathlib import Path

from manifests import samples

CONTENTS, STYLES = ("astronaut", "chelsea", "coffee"), ("swirls", "dunes", "stipple", "ink")


def write_samples(folder: Path) -> dict[str, Path]:
    """Write nst's sample images to a folder and return their paths by name, such as `chelsea` and `swirls`."""
    paths = {}
    for name, data in samples.samples().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        paths[path.stem] = path
    return paths


def write_grid(folder: Path, contents: int, styles: int) -> tuple[Path, list[tuple[Path, Path]]]:
    """Write a manifest of this many contents by this many styles; return its path, and content and style of each pair."""
    paths = write_samples(folder)
    pairs = [(paths[content], paths[style]) for content in CONTENTS[:contents] for style in STYLES[:styles]]
    manifest = folder / "m.csv"
    manifest.write_text("\n".join(["content,style", *(f"{content},{style}" for content, style in pairs)]) + "\n")
    return manifest, pairs
