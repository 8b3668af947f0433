"""Arrow Flight: turns calls into method calls on the Protocols of ports.py. Holds no policy."""

from __future__ import annotations

if __name__ == "flight":
    raise ImportError("import this package as aios_node.flight, not as flight")
