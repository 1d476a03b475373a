"""BiRQ and Chunk SSL: self-supervised speech pretraining for Hugging Face Transformers.

Importing the package registers its families with the Auto classes, so that `AutoModelForCTC.from_pretrained(...)`,
`pipeline(...)` and the like know them. The public names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .families import class_modules
from .registration import register_when_needed

if TYPE_CHECKING:
    from .modeling.configuration_birq import BiRQConfig
    from .modeling.configuration_chunkssl import ChunkSSLConfig
    from .modeling.configuration_fsq import FSQConfig
    from .modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
    from .modeling.modeling_birq import (
        BiRQForAudioFrameClassification,
        BiRQForCTC,
        BiRQForPreTraining,
        BiRQForRNNT,
        BiRQForSequenceClassification,
        BiRQModel,
    )
    from .modeling.modeling_chunkssl import (
        ChunkSSLForAudioFrameClassification,
        ChunkSSLForCTC,
        ChunkSSLForPreTraining,
        ChunkSSLForRNNT,
        ChunkSSLForSequenceClassification,
        ChunkSSLModel,
    )
    from .modeling.modeling_fsq import FSQModel

__version__ = "0.1.0"

_MODULES = {**class_modules(), "SpeechSSLFeatureExtractor": "feature_extraction_speech_ssl"}
__all__ = [
    "BiRQConfig",
    "BiRQForAudioFrameClassification",
    "BiRQForCTC",
    "BiRQForPreTraining",
    "BiRQForRNNT",
    "BiRQForSequenceClassification",
    "BiRQModel",
    "ChunkSSLConfig",
    "ChunkSSLForAudioFrameClassification",
    "ChunkSSLForCTC",
    "ChunkSSLForPreTraining",
    "ChunkSSLForRNNT",
    "ChunkSSLForSequenceClassification",
    "ChunkSSLModel",
    "FSQConfig",
    "FSQModel",
    "SpeechSSLFeatureExtractor",
]

if not TYPE_CHECKING:  # type checkers know the names from the imports above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".modeling.{_MODULES[name]}", __name__), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


register_when_needed()
