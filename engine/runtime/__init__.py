"""Running models: opened versions, the engine that swaps them, and the thread that computes for all."""

from __future__ import annotations
