"""Search memories by text: python examples/search.py grpc://127.0.0.1:8815 notes "a question" [local|network]

A plain pyarrow client. The node embeds the question; with scope network its peers are asked as well.
"""

from __future__ import annotations

import json
import sys

import pyarrow.flight as fl


def main(uri: str, table: str, text: str, scope: str = "local") -> None:
    command = {"v": 1, "op": "search", "table": table, "text": text, "k": 5, "scope": scope}
    with fl.connect(uri) as client:
        info = client.get_flight_info(fl.FlightDescriptor.for_command(json.dumps(command).encode()))
        end = {}
        for chunk in client.do_get(info.endpoints[0].ticket):  # best first
            for hit in chunk.data.to_pylist():
                print(f"{hit['score']:.3f}  {hit['node']}  {hit['text']!r:.70}")
            if chunk.app_metadata is not None:
                end = json.loads(chunk.app_metadata.to_pybytes())  # with the last message
        if not end.get("complete", False):
            print(f"some nodes did not answer: {', '.join(end.get('missing', []))}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
