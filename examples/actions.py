"""Run an action: python examples/actions.py grpc://127.0.0.1:8815 [name ['{"json": "arguments"}']]

A plain pyarrow client. Without a name it lists what there is. Long actions send progress as they go.
"""

from __future__ import annotations

import json
import sys

import pyarrow.flight as fl


def main(uri: str, name: str = "", arguments: str = "{}") -> None:
    with fl.connect(uri) as client:
        if not name:
            for action in client.list_actions():
                print(f"{action.type}  {action.description}")
            return
        for result in client.do_action(fl.Action(name, arguments.encode())):
            print(json.dumps(json.loads(result.body.to_pybytes()), indent=2))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
