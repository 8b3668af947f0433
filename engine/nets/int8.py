"""Transformer blocks whose linear maps multiply 8-bit numbers (W8A8), for encoding many texts on a CPU.

Weights are requantised when a model is opened: symmetric, one scale per output channel. Activations are quantised as
they come, with scale and offset per token: a token's result does not depend on its company. (Symmetric activations, or
one scale per batch, are what loses most in other 8-bit encoders: measured on MiniLM.) Between two products everything
is float32, in one pass (see int8_kernels). The product itself is oneDNN's, which uses the dot-product instructions of
the processor (VNNI and its kin). Knows nothing of files.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray

from aios_node.engine.nets.config import Activation
from aios_node.engine.nets.kernels import ACTIVATIONS
from aios_node.engine.nets.linear import LayerNorm

Floats = NDArray[np.float32]

SHORT = 12
"""Texts of at most so many tokens, none of them padding, take a way of their own through attention."""

_log = logging.getLogger(__name__)
_own = threading.local()


@dataclass(frozen=True, eq=False)
class Rows:
    """Quantised rows of activations: ``x = scale * code + offset``, scale and offset per row."""

    codes: NDArray[np.int8]  # [m, k]
    scales: Floats  # [m]
    offsets: Floats  # [m]

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Rows:
        """To be filled."""
        return cls(np.empty(shape, np.int8), np.empty(shape[0], np.float32), np.empty(shape[0], np.float32))

    @classmethod
    def of(cls, x: Floats) -> Rows:
        """Floats [m, k], quantised between the least and the largest value of each row."""
        rows = cls.empty(x.shape)
        _kernels().quantise(x, rows.codes, rows.scales, rows.offsets)
        return rows


_NOBODY = Rows.empty((0, 0))


@dataclass(frozen=True, eq=False)
class Int8Linear:
    """A linear map [out, in]: codes int8, one scale per output channel, bias."""

    codes: torch.Tensor  # int8 [in, out], the layout that the product is fastest with
    scales: Floats  # [out]
    sums: Floats  # [out], of each channel's weights
    bias: Floats  # [out]

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor) -> Int8Linear:
        """Quantise a weight [out, in]: symmetric, its largest magnitude in every channel becomes 127."""
        scales = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
        codes = (weight / scales[:, None]).round_().to(torch.int8)
        sums = codes.sum(dim=1) * scales
        return cls(codes.t().contiguous(), scales.numpy(), sums.numpy(), bias.numpy())

    @classmethod
    def joined(cls, parts: Sequence[Int8Linear]) -> Int8Linear:
        """Several maps of the same input as one, outputs one after the other."""
        scales, sums, bias = (np.concatenate([getattr(p, f) for p in parts]) for f in ("scales", "sums", "bias"))
        return cls(torch.cat([part.codes for part in parts], dim=1), scales, sums, bias)

    def products(self, rows: Rows) -> NDArray[np.int32]:
        """Codes of rows [m, in] times the codes of the weight: int32 [m, out], exact.

        The result is the calling thread's until its next product: memory that is taken and given back for every
        product costs more than the product.
        """
        out = _room(len(rows.codes), self.codes.shape[1])
        torch._int_mm(torch.from_numpy(rows.codes), self.codes, out=out)  # noqa: SLF001  # as torch's packages use it
        result: NDArray[np.int32] = out.numpy()
        return result

    def floats(self, rows: Rows) -> Floats:
        """The map of rows [m, in]: float32 [m, out]."""
        products = self.products(rows)
        out = np.empty(products.shape, np.float32)
        _kernels().rescale(products, rows.scales, rows.offsets, self.scales, self.sums, self.bias, out)
        return out


@dataclass(frozen=True, eq=False)
class Int8Block:
    """Attention, then a two-layer perceptron, as in transformer.Block; its linear maps are 8-bit."""

    joined: Int8Linear  # query, key and value: [3 d, d]
    output: Int8Linear
    attention_norm: LayerNorm
    up: Int8Linear
    activation: Activation | None
    down: Int8Linear
    output_norm: LayerNorm
    heads: int

    def __call__(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``x`` float32 [b, t, d] -> [b, t, d]; ``mask`` bool [b, 1, 1, t], True where to look, or None."""
        batch, length, width = x.shape
        rows = x.reshape(batch * length, width).numpy()
        attended = self._attention(Rows.of(rows), batch, mask)
        middle = Rows.empty(rows.shape)
        rows = _add_norm(self.output, attended, rows, self.attention_norm, middle)
        rows = _add_norm(self.down, self._inner(middle), rows, self.output_norm, _NOBODY)
        return torch.from_numpy(rows).view(batch, length, width)

    def _attention(self, rows: Rows, batch: int, mask: torch.Tensor | None) -> Rows:
        if mask is None and len(rows.codes) <= SHORT * batch:
            return self._short_attention(rows, batch)
        mixed = torch.from_numpy(self.joined.floats(rows))
        width = mixed.shape[1] // 3
        query, key, value = mixed.view(batch, -1, 3, self.heads, width // self.heads).transpose(1, 3).unbind(2)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return Rows.of(attended.transpose(1, 2).reshape(-1, width).numpy())

    def _short_attention(self, rows: Rows, batch: int) -> Rows:
        """The same in one compiled loop, for texts of a few tokens, where calling torch costs more than computing."""
        joined, products = self.joined, self.joined.products(rows)
        out = Rows.empty((len(products), products.shape[1] // 3))
        parts = (rows.scales, rows.offsets, joined.scales, joined.sums, joined.bias)
        length = len(products) // max(1, batch)
        _kernels().attend(products, *parts, self.heads, length, out.codes, out.scales, out.offsets)
        return out

    def _inner(self, rows: Rows) -> Rows:
        """The perceptron's hidden layer after its activation."""
        if self.activation != "gelu":
            return Rows.of(ACTIVATIONS[self.activation](torch.from_numpy(self.up.floats(rows))).numpy())
        up, products = self.up, self.up.products(rows)
        out = Rows.empty(products.shape)
        parts = (rows.scales, rows.offsets, up.scales, up.sums, up.bias)
        _kernels().gelu_quantise(products, *parts, out.codes, out.scales, out.offsets)
        return out


def _add_norm(linear: Int8Linear, rows: Rows, x: Floats, norm: LayerNorm, quantised: Rows) -> Floats:
    """Layer norm of ``x`` [m, n] plus the map of rows; the result goes into ``quantised`` as well, if that has rows."""
    out = np.empty_like(x)
    products = linear.products(rows)
    _kernels().add_norm(
        products,
        rows.scales,
        rows.offsets,
        linear.scales,
        linear.sums,
        linear.bias,
        x,
        norm.weight.numpy(),
        norm.bias.numpy(),
        np.float32(norm.eps),
        out,
        quantised.codes,
        quantised.scales,
        quantised.offsets,
    )
    return out


def _room(rows: int, columns: int) -> torch.Tensor:
    """This thread's memory for products, as int32 [rows, columns]; it grows to the largest that was asked for."""
    memory: NDArray[np.int32] | None = getattr(_own, "products", None)
    if memory is None or memory.size < rows * columns:
        memory = _own.products = np.empty(rows * columns, np.int32)
    return torch.from_numpy(memory[: rows * columns].reshape(rows, columns))


@cache
def int8_works() -> bool:
    """Whether 8-bit products and the loops around them run here and are exact, also at the ends of the range."""
    left, right = np.full((5, 256), -127, np.int8), torch.full((256, 32), -127, dtype=torch.int8)
    right[:, 1::2] = 127
    left[:, 1::3] = 126
    nothing = np.zeros(32, np.float32)
    try:
        products = Int8Linear(right, nothing, nothing, nothing).products(Rows(left, nothing[:5], nothing[:5]))
        rows = Rows.of(np.array([[-1, 0, 1, 2] * 4], np.float32))
        exact = (products == left.astype(np.int32) @ right.int().numpy()).all()
        return bool(exact and rows.codes.min() == -128 and rows.codes.max() == 127)
    except Exception as error:  # a compiler that is broken may raise anything
        _log.warning("8-bit products do not run here: %s", error)
        return False


@cache
def _kernels() -> Any:
    """The compiled loops; numba is imported by the first use."""
    from aios_node.engine.nets import int8_kernels

    return int8_kernels
