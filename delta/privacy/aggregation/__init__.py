"""Secure aggregation: peers learn the sum of their updates, and nobody learns one of them."""
