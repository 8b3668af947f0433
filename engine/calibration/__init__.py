"""Texts that quantisation listens to: from files, from the standard library of Python, or made of a vocabulary.

Knows nothing about networks, tokenisers or recipes; texts go in, a set of texts with its hash comes out.
"""
