"""Pictures as the rooms speak of them: an input as it was found, and the formats a result may have."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nst_tasks.errors import redact

FORMATS = ("png", "jpg", "webp")
"""Formats of results, which are also their files' endings."""


@dataclass(frozen=True)
class Source:
    """A picture's URI, the SHA-256 of its bytes, its store's version mark, and its height and width in pixels, upright."""

    uri: str
    sha256: str
    version: str
    height: int
    width: int

    @property
    def name(self) -> str:
        """The file's name up to its first dot: what a person calls the picture."""
        file = redact(self.uri).rpartition("/")[2]
        return file.partition(".")[0] or file

    def redacted(self) -> Source:
        """The same source with a URI fit for markers and reports."""
        return replace(self, uri=redact(self.uri))
