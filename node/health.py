"""The standard gRPC health service, on a port of its own (Kubernetes and grpc_health_probe speak it)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from aios_node.engine.errors import Unavailable


class HealthService:
    """Serves ``grpc.health.v1.Health`` for the whole node (``""``) and for Flight."""

    def __init__(self, host: str, port: int) -> None:
        import grpc
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc

        self._status = health_pb2.HealthCheckResponse
        self._servicer = health.HealthServicer()
        self._server = grpc.server(ThreadPoolExecutor(2, "health"), options=(("grpc.so_reuseport", 0),))
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        try:
            self.port: int = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise Unavailable(f"health port {host}:{port} cannot be used: choose another listen.health_port") from None
        self._server.start()

    def serving(self, yes: bool) -> None:
        """Say whether the node takes requests."""
        status = self._status.SERVING if yes else self._status.NOT_SERVING
        for service in ("", "arrow.flight.protocol.FlightService"):
            self._servicer.set(service, status)

    def close(self) -> None:
        """Tell watchers and stop."""
        self._servicer.enter_graceful_shutdown()
        self._server.stop(1).wait()
