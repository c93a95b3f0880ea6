"""Identity of an input image, and the file formats of results."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nst_tasks.errors import redact

FORMATS = ("png", "jpg", "webp")
"""File formats of results, which are also their file extensions."""


@dataclass(frozen=True)
class Source:
    """Identity of an input image: URI, SHA-256, store version, and displayed height and width in pixels."""

    uri: str
    sha256: str
    version: str
    height: int
    width: int

    @property
    def name(self) -> str:
        """File name up to its first dot, for display."""
        file = redact(self.uri).rpartition("/")[2]
        return file.partition(".")[0] or file

    def redacted(self) -> Source:
        """Return the same source with its URI redacted for markers and reports."""
        return replace(self, uri=redact(self.uri))
