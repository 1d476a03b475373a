"""What a server counts, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.32, 0.5, 0.8, 1.2, 2.0, 5.0)
_STREAMS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


class Metrics:
    """The counters of one server; an `Observer` of its engine."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "speech_requests", "Requests and connections", ["kind", "outcome"], registry=self.registry
        )
        self.audio_seconds = Counter("speech_audio_seconds", "Audio transcribed, s", ["kind"], registry=self.registry)
        self.round_seconds = Histogram(
            "speech_round_seconds", "Time of a round of the engine, s", buckets=_SECONDS, registry=self.registry
        )
        self.round_streams = Histogram(
            "speech_round_streams", "Streams that share a round", buckets=_STREAMS, registry=self.registry
        )
        self.delay_seconds = Histogram(
            "speech_delay_seconds", "From samples coming in to their text, s", buckets=_SECONDS, registry=self.registry
        )
        self.streams = Gauge("speech_streams", "Live streams that are open", registry=self.registry)
        self.seconds_waiting = Gauge(
            "speech_seconds_waiting", "Audio of live streams that waits, s", registry=self.registry
        )

    def watch(self, streams: Callable[[], int], seconds_waiting: Callable[[], float]) -> None:
        """Name the functions that gauges ask."""
        self.streams.set_function(streams)
        self.seconds_waiting.set_function(seconds_waiting)

    def round(self, streams: int, seconds: float, audio_seconds: float) -> None:
        self.round_seconds.observe(seconds)
        self.round_streams.observe(streams)
        self.audio_seconds.labels("live").inc(audio_seconds)

    def delay(self, seconds: float) -> None:
        self.delay_seconds.observe(seconds)

    def page(self) -> bytes:
        """All of them as text."""
        return generate_latest(self.registry)
