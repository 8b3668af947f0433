"""Health, metrics and the examples, on a real node."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from aios_node.flight.client import Client
from aios_node.node.demo.processes import DemoNode

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoNode]:
    node = DemoNode("alpha", "cloud", tmp_path_factory.mktemp("monitoring") / "alpha")
    node.init("off")
    node.start()
    with Client(node.uri) as client:
        client.put("plain", pa.table({"id": ["a"], "text": ["one"]}))
    yield node
    node.stop()


def test_the_standard_health_service_answers(node: DemoNode) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    port = node.call("status")["ports"]["health"]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_prometheus_can_scrape(node: DemoNode) -> None:
    ports = node.call("status")["ports"]
    with urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert "# TYPE aios_requests_total counter" in text
    with Client(node.uri) as client:
        assert "aios_requests_total" in next(iter(client.call("metrics")))["text"]


def test_listing_and_schemas_with_plain_pyarrow(node: DemoNode) -> None:
    import pyarrow.flight as fl

    with fl.connect(node.uri) as plain:
        paths = {tuple(part.decode() for part in info.descriptor.path) for info in plain.list_flights()}
        assert any("plain" in "/".join(path) for path in paths)
        schema = plain.get_schema(fl.FlightDescriptor.for_path("memory/plain")).schema
        assert {"id", "created_at", "text", "embedding"} <= set(schema.names)


@pytest.mark.parametrize("example", ["list_flights.py", "actions.py"])
def test_examples_run_against_a_real_node(node: DemoNode, example: str) -> None:
    extra = ["health"] if example == "actions.py" else []
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), node.uri, *extra],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
