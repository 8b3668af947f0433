"""The node: the only place where configuration, identity, sync loop, jobs and command line are wired together."""

from __future__ import annotations

if __name__ == "node":
    raise ImportError("import this package as aios_node.node, not as node")
