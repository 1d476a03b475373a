"""Runs the application until a signal ends it."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any

import uvicorn

from .app import Service, build_app

_LARGEST_EVENT = 4 * 2**20  # bytes of a message: 65 s of samples at 24 kHz in base64


class _Server(uvicorn.Server):
    """A server that lets its streams end before it closes their connections."""

    def __init__(self, config: uvicorn.Config, service: Service, shutdown_seconds: float):
        super().__init__(config)
        self.service, self.shutdown_seconds = service, shutdown_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal does not wait."""
        if self._loop is None or self.service.stopping.is_set():
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_to_stop)

    async def startup(self, *arguments: object, **options: object) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(*arguments, **options)  # type: ignore[arg-type]  # whatever uvicorn's are

    def _begin_to_stop(self) -> None:
        self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        await self.service.stop(self.shutdown_seconds)
        self.should_exit = True


def make_server(service: Service, shutdown_seconds: float, **settings: Any) -> _Server:
    """A server for a service; `settings` are uvicorn's."""
    config = uvicorn.Config(
        build_app(service),
        ws_max_size=_LARGEST_EVENT,
        ws_ping_timeout=None,  # while samples wait, no answer to a ping is read; `idle_seconds` ends the rest
        timeout_graceful_shutdown=max(1, round(shutdown_seconds)),
        **settings,
    )
    return _Server(config, service, shutdown_seconds)


def serve_until_signal(service: Service, host: str, port: int, shutdown_seconds: float = 10.0) -> None:
    """Serve until SIGINT or SIGTERM. Live streams are then transcribed to their end, for at most so many seconds."""
    make_server(service, shutdown_seconds, host=host, port=port, log_level="warning").run()
