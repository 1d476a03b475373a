"""Recognition: any CTC model of the Hub on utterances and long files, and Chunk SSL models live.

    from hf_speech_ssl.recognition import LongFormRecognizer, Recognizer, StreamingBatch, StreamingTranscriber

The names are imported when they are first used, because torch and transformers take seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .events import EndpointEvent, Event, FinalEvent, PartialEvent, SpeechEvent, Word, WordEvent, event_json
    from .long_form import LongFormRecognizer, Transcript
    from .packing import can_pack, pack_layers
    from .recognizer import Recognizer
    from .stream import Stream
    from .streaming import StreamingBatch, StreamingTranscriber

_MODULES = {
    "EndpointEvent": "events",
    "Event": "events",
    "FinalEvent": "events",
    "PartialEvent": "events",
    "SpeechEvent": "events",
    "Word": "events",
    "WordEvent": "events",
    "event_json": "events",
    "LongFormRecognizer": "long_form",
    "Recognizer": "recognizer",
    "Stream": "stream",
    "StreamingBatch": "streaming",
    "StreamingTranscriber": "streaming",
    "Transcript": "long_form",
    "can_pack": "packing",
    "pack_layers": "packing",
}
__all__ = [
    "EndpointEvent",
    "Event",
    "FinalEvent",
    "LongFormRecognizer",
    "PartialEvent",
    "Recognizer",
    "SpeechEvent",
    "Stream",
    "StreamingBatch",
    "StreamingTranscriber",
    "Transcript",
    "Word",
    "WordEvent",
    "can_pack",
    "event_json",
    "pack_layers",
]

if not TYPE_CHECKING:  # type checkers know the names from the imports above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
