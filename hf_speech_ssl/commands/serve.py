"""hf-speech-ssl serve: live streams and files of many clients."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from ..options import LoadingOptions, argument, flag
from ..paths import check_file, check_model_folder


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What is served, where, and how much of it."""

    model_name_or_path: str = argument("folder or Hub id of a CTC model; a Chunk SSL one for live streams", "MODEL")
    host: str = flag("127.0.0.1", "address to listen at; 0.0.0.0 for all")
    port: int = flag(8000, "port to listen at")
    served_model_name: str | None = flag(None, "the name that clients give; the last part of MODEL by default")
    chunk_duration_ms: int = flag(320, "Chunk SSL: duration of a live chunk")
    left_context_chunks: int | None = flag(
        None, "chunks that a stream remembers; by default as many as the model was made for, or those of 5.12 s"
    )
    num_threads: int | None = flag(None, "threads of the model; as many as there are cores by default")
    tokens_file: str | None = flag(None, "tokens for access, one a line; anybody may use the server without")
    max_streams: int = flag(64, "live streams at the same time")
    max_seconds: float = flag(3600.0, "of audio in a connection or a file")
    max_seconds_waiting: float = flag(5.0, "of a stream's audio; the server reads no more of it until some is done")
    idle_seconds: float = flag(60.0, "after which a connection that sends nothing is closed")
    requests_per_minute: int | None = flag(None, "connections and files of one client; any number by default")
    max_megabytes: float = flag(100.0, "of an uploaded file")
    max_files: int = flag(8, "that are transcribed or wait for it")
    shutdown_seconds: float = flag(10.0, "that live streams get to end after SIGTERM or Ctrl-C")

    def __post_init__(self) -> None:
        if (self.num_threads is not None and self.num_threads < 1) or not self.shutdown_seconds > 0:
            raise ValueError(
                f"--num_threads and --shutdown_seconds must be above 0, got {self.num_threads} and "
                f"{self.shutdown_seconds}."
            )


def serve(options: ServeOptions, loading: LoadingOptions) -> None:
    """Serve until Ctrl-C or SIGTERM.

    WebSocket /v1/realtime speaks the events of OpenAI's and vLLM's realtime clients; POST /v1/audio/transcriptions
    takes files; /health and /metrics are for those who run it. Clients commit by hand, or ask for turn_detection of
    type server_vad: the server then finds the ends of turns, by silero-vad if it is installed (extra vad), else by
    what the model finds no words in.

    Raises:
        ImportError: the libraries of the server are not installed.
        OSError: there is no such model, or nothing can listen there.
        ValueError: the model cannot be used, or has no such chunks; a limit is not above 0; there is no token.
    """
    check_model_folder(options.model_name_or_path)
    check_file(options.tokens_file)
    try:
        from ..serving.app import build_service
        from ..serving.limits import Limits, read_tokens
        from ..serving.server import serve_until_signal
    except ImportError as error:
        raise ImportError(f"The server needs more: pip install 'hf-speech-ssl[serve]' ({error}).") from error
    from ..serving.address import check_address

    limits = Limits(**{name: getattr(options, name) for name in Limits.__dataclass_fields__})
    tokens = read_tokens(options.tokens_file)
    check_address(options.host, options.port)  # before a model is loaded for it
    import torch

    from ..recognition.packing import can_pack, pack_layers
    from ..recognition.recognizer import Recognizer

    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    recognizer = Recognizer.from_pretrained(options.model_name_or_path, **asdict(loading))
    if can_pack(recognizer.model):
        pack_layers(recognizer.model)
    name = options.served_model_name or Path(options.model_name_or_path).name
    service = build_service(recognizer, name, options.chunk_duration_ms, options.left_context_chunks, limits, tokens)
    print(f"Serving {name} at http://{options.host}:{options.port} (Ctrl-C ends it).", file=sys.stderr, flush=True)
    serve_until_signal(service, options.host, options.port, options.shutdown_seconds)
