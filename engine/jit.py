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


_EXACT: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_OPTIONS: dict[str, Any] = {**_EXACT, "fastmath": _ORDER_IS_FREE}


def kernel(function: _Kernel) -> _Kernel:
    """Compile at the first call, or take what an earlier process compiled; sums are done in any order.

    Compiled code lies beside the source (``__pycache__``), else in the user's cache folder, or where the environment's
    ``NUMBA_CACHE_DIR`` says; where none of them can be written, every process compiles for itself.
    """
    return _compiled(function, _OPTIONS)


def exact_kernel(function: _Kernel) -> _Kernel:
    """As ``kernel``, but every operation is done as it is written: the same floats on every processor."""
    return _compiled(function, _EXACT)


def bare_kernel(function: _Kernel) -> _Kernel:
    """As ``exact_kernel``, and nothing is allocated in it: arrays come from outside.

    Small functions that hand arrays to each other then cost nothing: without this, every call counts the references
    of every array, which was measured to take ten times as long as a small loop.
    """
    return _compiled(function, {**_EXACT, "_nrt": False})


def _compiled(function: _Kernel, options: dict[str, Any]) -> _Kernel:
    try:
        return cast("_Kernel", numba.njit(cache=True, **options)(function))
    except RuntimeError as error:
        _log.debug("compiled code of %s is not kept: %s", function.__name__, error)
        return cast("_Kernel", numba.njit(**options)(function))


def inlined(function: _Kernel) -> _Kernel:
    """A part of kernels that is put into each of them: handing arrays to a function counts references every time."""
    return cast("_Kernel", numba.njit(inline="always", **_OPTIONS)(function))
