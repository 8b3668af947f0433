"""The node's configuration: one YAML file, checked before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aios_node.node.config.load import load_config
    from aios_node.node.config.model import NodeConfig

__all__ = ["NodeConfig", "load_config"]


def __getattr__(name: str) -> Any:
    """Load the checks only when they are asked for: a command to a running node does without."""
    if name == "load_config":
        from aios_node.node.config.load import load_config

        return load_config
    if name == "NodeConfig":
        from aios_node.node.config.model import NodeConfig

        return NodeConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
