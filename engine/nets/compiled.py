"""Encoders that torch.compile has made into one program, for those who ask for it.

Compiling takes from seconds to a minute per process and needs a C++ compiler on the CPU, so nothing does it by itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch

from aios_node.engine.errors import BadConfig
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.nets.modes import Mode
from aios_node.engine.nets.transformer import Block

_COMPILERS = ("g++", "clang++", "c++")


def check_compiler(mode: Mode, *, on_cpu: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Raises BadConfig where ``compile_blocks`` cannot work: low-bit modes, or no C++ compiler for the CPU."""
    if mode in {"int8", "packed"}:
        raise BadConfig(f"compiling is for float modes; mode {mode} has its own compiled loops")
    wanted = (environment["CXX"],) if environment.get("CXX") else _COMPILERS
    if on_cpu and not any(shutil.which(name, path=environment.get("PATH")) for name in wanted):
        raise BadConfig(f"compiling needs a C++ compiler ({' or '.join(wanted)}): install one, or do without")


def compile_blocks(net: Encoder) -> Encoder:
    """The encoder with all blocks as one compiled function; compiling happens when it first runs."""
    blocks = net.blocks

    def run(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        for block in blocks:
            x = block(x, mask)
        return x

    return replace(net, blocks=(cast("Block", torch.compile(run, dynamic=True)),))
