"""Compiling loops with numba: kept on disk where that is possible, done again in memory where it is not.

Importing this module imports numba, which takes a third of a second: import it only where a kernel runs next.
Kernels let go of the interpreter lock and use the thread that calls them; whoever wants more threads brings them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])

_log = logging.getLogger(__name__)

_ORDER_IS_FREE = {"reassoc", "contract", "nsz", "arcp"}
"""What the compiler may assume: sums in any order. NaN and infinity keep their meaning."""


_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": _ORDER_IS_FREE, "error_model": "numpy"}


def kernel(function: _Kernel) -> _Kernel:
    """Compile at the first call, or take what an earlier process compiled.

    Compiled code lies beside the source (``__pycache__``), else in the user's cache folder, or where the environment's
    ``NUMBA_CACHE_DIR`` says; where none of them can be written, every process compiles for itself.
    """
    try:
        return cast("_Kernel", numba.njit(cache=True, **_OPTIONS)(function))
    except RuntimeError as error:
        _log.debug("compiled code of %s is not kept: %s", function.__name__, error)
        return cast("_Kernel", numba.njit(**_OPTIONS)(function))


def inlined(function: _Kernel) -> _Kernel:
    """A part of kernels that is put into each of them: handing arrays to a function counts references every time."""
    return cast("_Kernel", numba.njit(inline="always", **_OPTIONS)(function))
