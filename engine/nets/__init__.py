"""Networks in torch, built from mappings of tensors. They know shapes, not files, texts or devices' names."""

from __future__ import annotations
