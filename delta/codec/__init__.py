"""Exact deltas of tensors: codecs, the plan of what changes, the byte stream of a body."""
