"""Differential privacy of an update: clip it, add noise, account for what was spent."""
