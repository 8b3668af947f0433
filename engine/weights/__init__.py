"""Weights as files: Parquet V2, manifests, version folders, lazy loading and importers.

Knows nothing about networks' forward passes, nodes or peers.
"""
