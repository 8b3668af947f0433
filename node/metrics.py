"""Prometheus metrics of one node, in a registry of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from aios_node.engine.errors import Unavailable

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class Metrics:
    """Counters that the rooms report into through plain methods."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry: CollectorRegistry = CollectorRegistry()
        self.requests = Counter("aios_requests_total", "Calls answered", ["call", "outcome"], registry=self.registry)
        self.encode_seconds = Histogram("aios_encode_seconds", "Time from request to embedding", registry=self.registry)
        self.encoded = Counter("aios_encoded_texts_total", "Texts embedded", registry=self.registry)
        self.sync_bytes = Counter(
            "aios_sync_bytes_total", "Payload bytes of transfers", ["direction", "mode"], registry=self.registry
        )
        self.transfers = Counter(
            "aios_sync_transfers_total", "Transfers by outcome", ["direction", "outcome"], registry=self.registry
        )
        self.peers_up = Gauge("aios_peers_up", "Peers that answered at the last try", registry=self.registry)
        self.swaps = Counter("aios_swaps_total", "Model versions activated while serving", registry=self.registry)

    def text(self) -> str:
        """All metrics in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()


class MetricsServer:
    """``/metrics`` over HTTP for Prometheus."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        from prometheus_client import start_http_server

        try:
            self._server, self._thread = start_http_server(port, host, metrics.registry)
        except OSError as error:
            raise Unavailable(
                f"metrics port {host}:{port} cannot be used ({error.strerror}): choose another listen.metrics_port"
            ) from None
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop serving."""
        closer = threading.Thread(target=self._server.shutdown)
        closer.start()
        closer.join(5)
        self._server.server_close()
        self._thread.join(5)
