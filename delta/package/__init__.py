"""Packages: a whole version as one stream of bytes, in full or as a delta."""
