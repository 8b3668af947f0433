"""``aios-node demo``: three nodes, one story, nothing simulated.

A cloud node brings in MiniLM and makes smaller versions of it; a workstation and an edge node take what
suits them. Each keeps documents of its own; one search reaches them all. The workstation adapts the
encoder to its documents, and the others receive that as a small verified delta while they keep answering.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from aios_node.engine.errors import AiosError
from aios_node.node.demo.documents import MOST_PER_NODE, Document, standard_library
from aios_node.node.demo.load import SteadyLoad, summarise
from aios_node.node.demo.minilm import fetch
from aios_node.node.demo.processes import DemoFailed, DemoNode, wait_until
from aios_node.node.demo.report import show

SYNC_S = 180.0
TABLE = "notes"
QUESTIONS = (
    "copy a whole directory tree to another place",
    "run a coroutine and wait for its result",
    "compute the median of numbers",
)
SWAP_WINDOW_S = 1.0


@dataclass
class Story:
    """The nodes and what happened."""

    cloud: DemoNode
    workstation: DemoNode
    edge: DemoNode
    tokens: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def nodes(self) -> tuple[DemoNode, DemoNode, DemoNode]:
        """All three."""
        return self.cloud, self.workstation, self.edge


def run_demo(*, keep: Path | None, steps: int | None, as_json: bool) -> int:
    """Run the story to its end; returns the exit code. What fails is told on stderr."""
    try:
        result = _tell(keep, steps, quiet=as_json)
    except (DemoFailed, AiosError) as error:
        print(f"aios-node: the demo failed: {error}", file=sys.stderr)
        return 1
    show(result, as_json=as_json)
    return 0


def _tell(keep: Path | None, steps: int | None, *, quiet: bool) -> dict[str, Any]:
    say = _Teller(quiet=quiet)
    started = time.monotonic()
    with _folder(keep) as folder, ExitStack() as stack:
        story = Story(
            cloud=DemoNode("cloud", "cloud", folder / "cloud"),
            workstation=DemoNode("workstation", "local", folder / "workstation"),
            edge=DemoNode("edge", "edge", folder / "edge"),
        )
        stack.callback(_stop_all, story)
        model = fetch(_cache())
        with say("three nodes start, with identities of their own, and trust each other"):
            _start(story)
        with say("the cloud node imports MiniLM and makes INT8 and INT4 of it"):
            _publish(story, model)
        with say("the peers take what suits them: a first, full sync"):
            _first_sync(story)
        with say("each node remembers documents of its own"):
            _remember(story, standard_library())
        with say("one question from outside is answered by all three"):
            _search(story)
        with say("the workstation learns from its documents; the delta travels while everyone keeps answering"):
            _learn_and_share(story, steps)
        with say("all three stop cleanly"):
            _stop(story)
        story.result["seconds"] = round(time.monotonic() - started, 1)
    return story.result


def _start(story: Story) -> None:
    for node in story.nodes:
        node.init()
    for node in story.nodes:
        node.start()
    for node in story.nodes:
        for other in story.nodes:
            if other is not node:
                node.call("peers", "add", other.peer_uri, "--fingerprint", other.node_id)
        token = node.call("token", "create", "demo", "--allow", f"memory/{TABLE}:read", "--allow",
                          f"memory/{TABLE}:write", "--allow", "encode/*:read")  # fmt: skip
        story.tokens[node.name] = token["token"]


def _publish(story: Story, model: Path) -> None:
    story.cloud.call("model", "import", str(model), "--name", "minilm")
    sizes = {}
    for quant in ("int8", "int4"):
        made = story.cloud.call("model", "quantize", "minilm", "--name", f"minilm.{quant}", "--quant", quant)
        compared = story.cloud.call("model", "validate", f"minilm.{quant}")
        sizes[f"minilm.{quant}"] = {
            "bytes": made["bytes"],
            "source_bytes": made["source_bytes"],
            "cosine": compared["embedding"]["mean"],
        }
    story.result["models"] = sizes


def _first_sync(story: Story) -> None:
    wanted = {story.workstation: ["minilm", "minilm.int8"], story.edge: ["minilm.int4"]}
    for node, models in wanted.items():
        wait_until(
            f"{node.name} receiving {', '.join(models)}",
            lambda node=node, models=models: set(models) <= set(_active(node)),  # type: ignore[misc]
            SYNC_S,
        )
    story.result["first_sync"] = _transfers(story)


def _remember(story: Story, documents: list[Document]) -> None:
    counts = {}
    for node in story.nodes:
        own = [document for document in documents if document.keeper == node.name]
        if node is not story.workstation:
            own = own[:: max(1, len(own) // MOST_PER_NODE)]
        rows = pa.table(
            {
                "id": [document.name for document in own],
                "text": [f"{document.signature}\n{document.text}" for document in own],
                "source": [document.name for document in own],
                "tags": pa.array([["python", node.name]] * len(own), pa.list_(pa.string())),
            }
        )
        with node.client(story.tokens[node.name]) as client:
            counts[node.name] = client.put(TABLE, rows)["rows"]
    story.result["memories"] = counts


def _search(story: Story) -> None:
    answers = []
    with story.workstation.client(story.tokens["workstation"]) as client:
        for question in QUESTIONS:
            hits = client.search(TABLE, text=question, k=3, scope="network")
            rows = hits.select(["source", "score", "node"]).to_pylist()
            answers.append({"question": question, "hits": rows, "complete": _complete(hits)})
        everyone = client.search(TABLE, text="python", k=200, scope="network")
    reached = sorted(set(everyone.column("node").to_pylist()))
    if reached != sorted(node.name for node in story.nodes):
        raise DemoFailed(f"the search reached only {', '.join(reached)}")
    story.result["search"] = {"answers": answers, "nodes": reached}


def _learn_and_share(story: Story, steps: int | None) -> None:
    before = len(story.result["first_sync"])
    loads = {
        node: SteadyLoad(node.client(story.tokens[node.name]), model)
        for node, model in ((story.cloud, "minilm"), (story.edge, "minilm.int4"))
    }
    old = {node: _active(node) for node in story.nodes}
    extra = ["--steps", str(steps)] if steps else []
    report = story.workstation.call("train", "encoder", "minilm", "--table", TABLE, *extra)
    story.result["training"] = report
    if not report["published"]:
        raise DemoFailed(f"the adapted model was not published: {report['reason']}")
    swapped: dict[DemoNode, float] = {}
    for node, model in ((story.cloud, "minilm"), (story.edge, "minilm.int4")):
        wait_until(
            f"{node.name} receiving the new {model}",
            lambda node=node, model=model: _active(node).get(model) != old[node][model],  # type: ignore[misc]
            SYNC_S,
        )
        swapped[node] = time.monotonic()
    wait_until("the workstation receiving the rebuilt minilm.int8",
               lambda: _active(story.workstation).get("minilm.int8") != old[story.workstation]["minilm.int8"],
               SYNC_S)  # fmt: skip
    time.sleep(SWAP_WINDOW_S)  # load after the swap, for the comparison
    story.result["swap"] = {
        node.name: summarise(load.stop(), swapped[node], SWAP_WINDOW_S) for node, load in loads.items()
    }
    failed = {name: swap for name, swap in story.result["swap"].items() if swap["failed"]}
    if failed:
        raise DemoFailed(f"requests failed during the swap: {failed}")
    story.result["delta_sync"] = _transfers(story)[before:]


def _stop(story: Story) -> None:
    codes = {node.name: node.stop() for node in story.nodes}
    if any(codes.values()):
        raise DemoFailed(f"nodes ended with exit codes {codes}")


def _stop_all(story: Story) -> None:
    for node in story.nodes:
        node.stop()


def _active(node: DemoNode) -> dict[str, str]:
    return {model["name"]: model["active"] for model in node.call("status")["models"]}


def _transfers(story: Story) -> list[dict[str, Any]]:
    """Everything that any node received, in order of time."""
    received = []
    for node in story.nodes:
        with node.owner() as client:
            found = next(iter(client.call("transfers")))["transfers"]
        received += [{"node": node.name, **one} for one in found if one["direction"] == "received"]
    bad = [one for one in received if not one["hash_ok"] and one["error"] not in {"busy", "aborted"}]
    if bad:
        raise DemoFailed(f"a transfer failed: {bad[0]}")
    return sorted(_joined(one for one in received if one["hash_ok"]), key=lambda one: str(one["at"]))


def _joined(received: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """One row for each version that a node received: its chunks may have come over several links."""
    versions: dict[tuple[str, ...], dict[str, Any]] = {}
    for one in received:
        known = versions.setdefault((one["node"], one["model"], one["to"]), {**one, "bytes": 0})
        peers = dict.fromkeys([*known["peer"].split(", "), one["peer"]])
        known |= {"bytes": known["bytes"] + one["bytes"], "peer": ", ".join(peers)}
        known |= {key: max(known[key], one[key]) for key in ("seconds", "at")}
    return versions.values()


def _complete(hits: pa.Table) -> bool:
    return (hits.schema.metadata or {}).get(b"aios.complete") == b"true"


def _cache() -> Path:
    """Where the public model files are kept between runs: in the checkout, or in the user's cache."""
    import os

    root = Path(__file__).resolve().parent.parent.parent
    if (root / "pyproject.toml").is_file():
        return root / ".cache" / "minilm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aios-node" / "minilm"


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="aios-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Teller:
    """Says what happens, and how long it took."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._step = 0

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self._step += 1
        started = time.monotonic()
        stream = sys.stderr if self._quiet else sys.stdout
        print(f"[{self._step}/7] {what} ...", file=stream, flush=True)
        yield
        print(f"      done in {time.monotonic() - started:.1f} s", file=stream, flush=True)
