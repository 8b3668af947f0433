"""What a node has: python examples/list_flights.py grpc://127.0.0.1:8815 [prefix]

A plain pyarrow client. A prefix such as weights/ or memory/ narrows the list.
"""

from __future__ import annotations

import json
import sys

import pyarrow.flight as fl


def main(uri: str, prefix: str = "") -> None:
    with fl.connect(uri) as client:
        for info in client.list_flights(prefix.encode()):
            path = b"/".join(info.descriptor.path).decode()
            version = json.loads(info.app_metadata)["version"]
            print(f"{path}  version {str(version)[:12]}  {info.total_records} records  {info.total_bytes} bytes")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
