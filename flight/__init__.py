"""Arrow Flight: turns calls into method calls on the Protocols of ports.py. Holds no policy."""

from __future__ import annotations

import os

if __name__ == "flight":
    raise ImportError("import this package as aios_node.flight, not as flight")

# gRPC prints C++ log lines to stderr; it reads this once, when pyarrow.flight is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
