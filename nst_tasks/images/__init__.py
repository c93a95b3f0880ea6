"""Image files and pixels: decode, encode, resize, match colors."""
