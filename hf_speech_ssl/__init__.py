"""BiRQ and Chunk SSL: self-supervised speech pretraining for Hugging Face Transformers.

Importing the package registers its families with the Auto classes, so that `AutoModelForCTC.from_pretrained(...)`,
`pipeline(...)` and the like know them.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCTC,
    AutoModelForPreTraining,
    AutoProcessor,
    Wav2Vec2Processor,
)

from .modeling.configuration_birq import BiRQConfig
from .modeling.configuration_chunkssl import ChunkSSLConfig
from .modeling.configuration_fsq import FSQConfig
from .modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from .modeling.modeling_birq import BiRQForCTC, BiRQForPreTraining, BiRQModel
from .modeling.modeling_chunkssl import ChunkSSLForCTC, ChunkSSLForPreTraining, ChunkSSLModel
from .modeling.modeling_fsq import FSQModel

__version__ = "0.1.0"

__all__ = [
    "BiRQConfig",
    "BiRQForCTC",
    "BiRQForPreTraining",
    "BiRQModel",
    "ChunkSSLConfig",
    "ChunkSSLForCTC",
    "ChunkSSLForPreTraining",
    "ChunkSSLModel",
    "FSQConfig",
    "FSQModel",
    "SpeechSSLFeatureExtractor",
]

for _config, _base, _pretraining, _ctc in (
    (BiRQConfig, BiRQModel, BiRQForPreTraining, BiRQForCTC),
    (ChunkSSLConfig, ChunkSSLModel, ChunkSSLForPreTraining, ChunkSSLForCTC),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _base)
    AutoModelForPreTraining.register(_config, _pretraining)
    AutoModelForCTC.register(_config, _ctc)
    AutoFeatureExtractor.register(_config, SpeechSSLFeatureExtractor)
    AutoProcessor.register(_config, Wav2Vec2Processor)

# The tokenizer has one class for all: it is trained, and then read, by the same model.
AutoConfig.register("speech_fsq", FSQConfig)
AutoModel.register(FSQConfig, FSQModel)
AutoFeatureExtractor.register(FSQConfig, SpeechSSLFeatureExtractor)
