"""Merging of diverged versions: strategies, the common ancestor, what a merged version is made of."""
