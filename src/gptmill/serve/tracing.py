"""Spans for OpenTelemetry, where its packages are installed and its environment variables ask.

`OTEL_TRACES_EXPORTER` names an exporter, or `OTEL_EXPORTER_OTLP_ENDPOINT` a collector; the other
variables of the specification (service name, sampler, batches, headers) are read by the packages
themselves. Without either nothing is imported.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import Any

from gptmill.errors import UserError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"

_span: ContextVar[Any] = ContextVar("span", default=None)


class Tracing:
    """Makes a span of each request."""

    def __init__(self, provider: Any) -> None:
        self._provider, self._tracer = provider, provider.get_tracer("gptmill")

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[None]:
        """A server's span, below the one that the client's `traceparent` names."""
        from opentelemetry import propagate, trace

        with self._tracer.start_as_current_span(
            method,
            context=propagate.extract(dict(headers)),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": path},
        ) as span:
            _span.set(span)
            yield

    def answered(self, method: str, route: str, status: int, request_id: str) -> None:
        """Note how the request of this span was answered."""
        from opentelemetry.trace import Status, StatusCode

        span = _span.get()
        span.update_name(f"{method} {route}")
        about = {"http.route": route, "http.response.status_code": status}
        span.set_attributes({**about, "gptmill.request_id": request_id})
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()


def note(**attributes: str | float) -> None:
    """Add to the span of the request that is answered here; `a__b` is the attribute `a.b`."""
    span = _span.get()
    if span is not None:
        span.set_attributes({name.replace("__", "."): value for name, value in attributes.items()})


def open_tracing() -> Tracing | None:
    """What the environment asks for; None for nothing.

    Raises:
        UserError: it asks for what is not installed.
    """
    names = os.environ.get("OTEL_TRACES_EXPORTER", "")
    if not names and any(os.environ.get(name) for name in ENDPOINTS):
        names = "otlp"
    if names in ("", "none"):
        return None
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise UserError(
            "OpenTelemetry's variables are set, and opentelemetry-sdk is missing: install it, or "
            "set OTEL_TRACES_EXPORTER=none"
        ) from None
    provider = TracerProvider()
    for name in names.split(","):
        provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip())))
    return Tracing(provider)


def _exporter(name: str) -> Any:
    if name == "otlp":
        protocol = os.environ.get(PROTOCOL, "http/protobuf")
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    for entry in entry_points(group="opentelemetry_traces_exporter", name=name):
        return entry.load()()
    raise UserError(
        f"no exporter {name} of OpenTelemetry is installed: pip install opentelemetry-exporter-otlp"
    )
