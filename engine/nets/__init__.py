"""Networks in torch, built from mappings of tensors. They know shapes, not files, versions or nodes."""

from __future__ import annotations
