"""Logs, traces and metrics of a process. A trace runs through HTTP, outbox, NATS, handler and agent:
its context travels as a W3C `traceparent` in the outbox row and in the message's headers."""

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO, cast

import orjson
import structlog
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

NO_TRACE = "{}"

_RECENT = 1000
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Telemetry:
    """Made once per process and given to whatever measures something."""

    def __init__(self, exporter: SpanExporter | None = None, ratio: float = 1.0) -> None:
        sampler = ParentBased(ALWAYS_OFF if exporter is None else TraceIdRatioBased(ratio))
        self._provider = TracerProvider(
            sampler=sampler, resource=Resource.create({"service.name": "berth"}), shutdown_on_exit=False
        )
        if exporter is not None:
            self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
        self._tracer = self._provider.get_tracer("berth")
        self._propagator = TraceContextTextMapPropagator()
        self.registry = CollectorRegistry()
        self.handled = Counter(
            "berth_events_handled",
            "Events by outcome",
            ["service", "event", "outcome"],
            registry=self.registry,
        )
        self.handling = Histogram(
            "berth_event_seconds", "Time in a handler", ["service"], buckets=_FAST, registry=self.registry
        )
        self.relayed = Counter(
            "berth_events_relayed", "Events sent from the outbox", ["service"], registry=self.registry
        )
        self.waiting = Gauge(
            "berth_outbox_waiting", "Events not yet sent", ["service"], registry=self.registry
        )
        self.parked = Gauge("berth_messages_parked", "Parked messages", ["service"], registry=self.registry)
        self.loop_failures = Counter(
            "berth_loop_failures", "Failures of a loop", ["service", "loop"], registry=self.registry
        )
        self.requests = Histogram(
            "berth_http_seconds",
            "Time of a request",
            ["method", "route", "status"],
            buckets=_FAST,
            registry=self.registry,
        )
        self.connected = Gauge(
            "berth_connected", "1 while connected", ["service", "to"], registry=self.registry
        )

    @contextmanager
    def span(
        self, name: str, *, carrier: Mapping[str, str] | str | None = None, **attributes: str | int | float
    ) -> Iterator[trace.Span]:
        """`carrier`: the trace this goes on with, as headers or as `carrier()` wrote it."""
        if isinstance(carrier, str):
            carrier = orjson.loads(carrier)
        context = self._propagator.extract(carrier) if carrier else None
        with self._tracer.start_as_current_span(name, context=context, attributes=attributes) as span:
            yield span

    def carrier(self) -> str:
        """The current trace context as JSON, for a header or an outbox row."""
        if not trace.get_current_span().get_span_context().is_valid:
            return NO_TRACE
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return orjson.dumps(carrier).decode()

    def flush(self) -> None:
        self._provider.force_flush(5000)

    def close(self) -> None:
        self._provider.shutdown()


def exporter_for(endpoint: str | None) -> SpanExporter | None:
    if endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace"] = trace.format_trace_id(context.trace_id)
    return event


class Recent:
    """The newest lines of this process's log, with their moments, for whoever hands them on."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=_RECENT)

    def write(self, text: str) -> None:
        # It may be a file on a disk that is full: who says what went wrong must not go wrong by it.
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        if text != "\n":
            self._lines.append((time.time_ns(), text))

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def after(self, at: int) -> list[tuple[int, str]]:
        return [line for line in tuple(self._lines) if line[0] > at]


recent = Recent()


class _Libraries(logging.Handler):
    """What the libraries say, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        words = structlog.get_logger().bind(logger=record.name)
        words.log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def configure_logging(level: str) -> None:
    """JSON lines on standard error, the newest also at `recent`. Called by the composition root, once."""
    threshold = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(
                serializer=lambda event, **_: orjson.dumps(event, default=str).decode()
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, recent)),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Libraries()])


class Stopwatch:
    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started
