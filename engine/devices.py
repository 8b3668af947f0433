"""Devices: which processor the engine computes on."""

from __future__ import annotations
