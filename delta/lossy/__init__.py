"""Versions that lose something on purpose: updates of few bits, and what they left out kept for the next one."""
