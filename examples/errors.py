"""How a node says no: python examples/errors.py grpc://127.0.0.1:8815 [TOKEN]

A plain pyarrow client. Every error carries JSON in extra_info: a code to decide by, a message for people,
whether trying again can help, and an id to find it in the node's log. The script provokes some.
"""

from __future__ import annotations

import json
import sys
import time

import pyarrow.flight as fl


def details(error: fl.FlightError) -> dict:
    """What the node said; empty when it was not the node that spoke (no connection, for example)."""
    return json.loads(error.extra_info) if error.extra_info else {}


def ask(
    client: fl.FlightClient, descriptor: fl.FlightDescriptor, options: fl.FlightCallOptions
) -> fl.FlightInfo | None:
    """Ask up to three times, but only where that can help."""
    for _ in range(3):
        try:
            return client.get_flight_info(descriptor, options)
        except fl.FlightError as error:
            info = details(error)
            print(f"{type(error).__name__}  code {info.get('code', 'none')}: {info.get('message', error)}")
            if not info.get("retryable", False):
                return None
            time.sleep(info.get("retry_after_s", 1.0))
    return None


def main(uri: str, token: str = "") -> None:
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    options = fl.FlightCallOptions(headers=headers, timeout=10)
    questions = [
        fl.FlightDescriptor.for_path("weights", "no-such-model"),
        fl.FlightDescriptor.for_path("memory", "no-such-table"),
        fl.FlightDescriptor.for_path("elsewhere"),
        fl.FlightDescriptor.for_command(b'{"v": 1, "op": "serach"}'),
        fl.FlightDescriptor.for_command(b"not JSON"),
    ]
    with fl.connect(uri) as client:
        for question in questions:
            ask(client, question, options)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
