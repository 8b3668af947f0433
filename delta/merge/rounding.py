"""Which dtypes are merged by arithmetic, and how results are rounded to them: once, the same on every processor."""

from __future__ import annotations

from typing import Final

from aios_node.engine.quant.rounding import rounded

__all__ = ["MERGED_DTYPES", "rounded"]

MERGED_DTYPES: Final = ("float32", "float16", "bfloat16", "float64")
"""The dtypes whose tensors are merged; all others must be the same in all heads."""
