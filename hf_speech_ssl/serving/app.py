"""The server's routes: realtime transcription, files, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException

from ..recognition.recognizer import Recognizer
from ..recognition.streaming import StreamingBatch, bounded_left_context
from ..recognition.voice import VoiceDetector, installed_detector
from .engine import Engine
from .files import FORMATS, FileRequest, FileTranscriber, as_json, as_text
from .limits import Access, Limits, Refused
from .metrics import Metrics
from .realtime import RealtimeSession, SessionOver

_KEY_PROTOCOL = "openai-insecure-api-key."  # by which browsers send a token, since they cannot set headers
_POLICY_VIOLATION, _GOING_AWAY, _TRY_AGAIN_LATER = 1008, 1001, 1013  # codes of closed connections


@dataclass
class Service:
    """What all requests share.

    Attributes:
        model: the name that clients know it by.
        engine: of a model that streams.
        files: of any model.
        stopping: set when the server is about to close: live streams end with what they have.
        sessions: that are open.
    """

    model: str
    engine: Engine | None
    files: FileTranscriber
    limits: Limits
    access: Access
    metrics: Metrics = field(default_factory=Metrics)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    sessions: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def healthy(self) -> bool:
        """Whether requests are served."""
        return not self.stopping.is_set() and (self.engine is None or self.engine.running)

    async def stop(self, seconds: float) -> None:
        """Take nothing new, and give what is open so many seconds to end."""
        self.stopping.set()
        if self.sessions:
            await asyncio.wait(self.sessions, timeout=seconds)


def build_service(
    recognizer: Recognizer,
    model: str,
    chunk_duration_ms: int = 320,
    left_context_chunks: int | None = None,
    limits: Limits | None = None,
    tokens: tuple[str, ...] = (),
    detector: VoiceDetector | None = None,
) -> Service:
    """Make what a server needs of a model.

    Args:
        model: the name that clients know it by.
        chunk_duration_ms, left_context_chunks: as in [`StreamingBatch`], but with a bound on what a stream remembers
            ([`bounded_left_context`]); for a model that streams.
        tokens: see [`Access`].
        detector: finds the turns of clients who ask for it; by default silero-vad, where it is installed.

    Raises:
        ValueError: the model has no such chunks.
    """
    limits, metrics = limits or Limits(), Metrics()
    engine = None
    if recognizer.works_in_chunks:
        past = bounded_left_context(recognizer.model.config, chunk_duration_ms, left_context_chunks)
        batch = StreamingBatch(
            recognizer.model,
            recognizer.processor,
            chunk_duration_ms,
            past,
            detector=detector or installed_detector(),
        )
        engine = live = Engine(batch, chunk_duration_ms, limits.max_streams, metrics)
        metrics.watch(lambda: len(live.streams), lambda: sum(one.seconds_waiting for one in list(live.streams)))
    access = Access(tokens, limits.requests_per_minute)
    return Service(model, engine, FileTranscriber(recognizer, limits), limits, access, metrics)


def build_app(service: Service) -> FastAPI:
    """The application that serves a service, and closes its threads at the end."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.stop(seconds=0.0)
        if service.engine is not None:
            await asyncio.to_thread(service.engine.close)
        await asyncio.to_thread(service.files.close)

    app = FastAPI(title="hf-speech-ssl", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_exception_handler(Refused, _refuse)

    @app.get("/health")
    async def health() -> JSONResponse:
        streams = 0 if service.engine is None else len(service.engine.streams)
        status = "ok" if service.healthy else "stopping" if service.stopping.is_set() else "failed"
        body = {"status": status, "model": service.model, "streams": streams}
        return JSONResponse(body | {"max_streams": service.limits.max_streams}, 200 if service.healthy else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        _check_access(service, request.headers, request.client)
        return {"object": "list", "data": [{"id": service.model, "object": "model", "owned_by": "hf-speech-ssl"}]}

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        outcome = "refused"
        try:
            response = await _transcribe_file(service, request)
            outcome = "completed"
            return response
        finally:
            service.metrics.requests.labels("file", outcome).inc()

    @app.websocket("/v1/realtime")
    async def realtime(websocket: WebSocket) -> None:
        outcome = "disconnected"
        try:
            outcome = await _serve_realtime(service, websocket)
        finally:
            service.metrics.requests.labels("realtime", outcome).inc()

    return app


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    body = {"error": {"type": kind, "code": error.code, "message": str(error), "param": None}}
    return JSONResponse(body, error.status)


def _check_access(service: Service, headers: Headers, client: Any) -> None:
    token = None
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        token = value.strip()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(_KEY_PROTOCOL):
            token = protocol.strip().removeprefix(_KEY_PROTOCOL)
    service.access.check(token, "" if client is None else client.host)
    if not service.healthy:
        raise Refused(503, "server_closing", "The server is closing; connect to another one.")


async def _transcribe_file(service: Service, request: Request) -> Response:
    _check_access(service, request.headers, request.client)
    most = service.limits.max_megabytes * 1e6
    size = request.headers.get("content-length", "")
    if not size.isdigit():
        raise Refused(411, "length_required", "Send the file with its Content-Length.")
    if int(size) > most:
        raise Refused(413, "too_large", f"{int(size) / 1e6:.1f} MB came; {service.limits.max_megabytes:g} are taken.")
    try:
        async with request.form(max_files=1) as form:  # its temporary files go with it
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise Refused(400, "missing_file", "The form has no file in its field 'file'.")
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            granularities = [str(one) for one in form.getlist("timestamp_granularities[]")]
            asked = FileRequest.of(fields, granularities, service.model)
            data = await upload.read()
    except HTTPException as error:  # starlette's for a form that cannot be parsed
        raise Refused(400, "invalid_form", f"The request is no multipart form ({error.detail}).") from error
    transcript = await service.files.transcribe(upload.filename or "file", data)
    service.metrics.audio_seconds.labels("file").inc(transcript.seconds)
    headers = {"x-ignored-fields": ", ".join(asked.ignored)} if asked.ignored else None
    if asked.format in FORMATS:
        return PlainTextResponse(as_text(transcript, FORMATS[asked.format]), headers=headers)
    return JSONResponse(as_json(transcript, asked), headers=headers)


async def _serve_realtime(service: Service, websocket: WebSocket) -> str:
    """A connection from beginning to end; returns how it ended."""
    protocols = [one.strip() for one in websocket.headers.get("sec-websocket-protocol", "").split(",")]
    await websocket.accept(subprotocol="realtime" if "realtime" in protocols else None)
    try:
        _check_access(service, websocket.headers, websocket.client)
        if service.engine is None:
            raise Refused(400, "unsupported", f"{service.model} does not stream; send files.")
        if len(service.sessions) >= service.limits.max_streams:
            raise Refused(503, "server_busy", f"{service.limits.max_streams} connections are open; try again later.")
    except Refused as error:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        body = {"type": kind, "code": error.code, "message": str(error), "param": None}
        await websocket.send_json({"type": "error", "error": body})
        code = _TRY_AGAIN_LATER if error.status in (429, 503) else _POLICY_VIOLATION
        await websocket.close(code, error.code)
        return "refused"
    task = asyncio.current_task()
    assert task is not None
    service.sessions.add(task)
    session = RealtimeSession(service.engine, service.model, service.limits, websocket.send_json)
    try:
        await session.start()
        return await _converse(service, websocket, session)
    except (WebSocketDisconnect, RuntimeError):  # starlette's for a message to a client that has gone
        return "disconnected"
    finally:
        session.abandon()
        service.sessions.discard(task)


async def _converse(service: Service, websocket: WebSocket, session: RealtimeSession) -> str:
    """Handle events until the client goes, the server closes, or a limit is reached."""
    try:
        while (message := await _next(websocket.receive_text, service)) is not None:
            await session.handle(message)
    except SessionOver as error:
        await websocket.close(_POLICY_VIOLATION, str(error)[:120])
        return "limit"
    except TimeoutError:
        await session.finish()
        await websocket.close(_POLICY_VIOLATION, f"Nothing came for {service.limits.idle_seconds:g} s.")
        return "idle"
    except WebSocketDisconnect as error:
        return "completed" if error.code in (1000, 1001) else "disconnected"
    await session.finish()
    await websocket.close(_GOING_AWAY, "The server is closing.")
    return "completed"


async def _next(receive: Callable[[], Awaitable[str]], service: Service) -> str | None:
    """The next event; `None` once the server is about to close.

    Raises:
        TimeoutError: none came for `idle_seconds`.
    """
    reading = asyncio.ensure_future(receive())
    stopping = asyncio.ensure_future(service.stopping.wait())
    try:
        done, _ = await asyncio.wait(
            {reading, stopping}, timeout=service.limits.idle_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if reading in done:
            return reading.result()
        if not done:
            raise TimeoutError
        return None
    finally:
        reading.cancel()
        stopping.cancel()
