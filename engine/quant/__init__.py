"""Quantisation in NumPy: how codes and scales are laid out, and how weights become codes.

Knows nothing about files or networks; it sees tensors by name.
"""
