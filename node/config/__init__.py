"""The node's configuration: one YAML file, checked before anything starts."""

from __future__ import annotations

from aios_node.node.config.load import load_config
from aios_node.node.config.model import NodeConfig

__all__ = ["NodeConfig", "load_config"]
