"""Store texts as memories: python examples/put_memories.py grpc://127.0.0.1:8815 notes "one text" "another"

A plain pyarrow client. The node fills in ids, times and embeddings, and answers when the rows are durable.
"""

from __future__ import annotations

import json
import sys

import pyarrow as pa
import pyarrow.flight as fl


def main(uri: str, table: str, *texts: str) -> None:
    rows = pa.table({"text": list(texts), "source": ["examples"] * len(texts), "tags": [["example"]] * len(texts)})
    with fl.connect(uri) as client:
        writer, answers = client.do_put(fl.FlightDescriptor.for_path("memory", table), rows.schema)
        with writer:  # leaving it raises what the node refused
            writer.write_table(rows)
            writer.done_writing()
            answer = answers.read()
            if answer is not None:
                print(json.loads(answer.to_pybytes()))  # {"rows": 2, "version": 7}


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
