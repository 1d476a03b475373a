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
from .modeling.configuration_fsq import FSQConfig
from .modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from .modeling.modeling_birq import BiRQForCTC, BiRQForPreTraining, BiRQModel
from .modeling.modeling_fsq import FSQModel

__version__ = "0.1.0"

__all__ = [
    "BiRQConfig",
    "BiRQForCTC",
    "BiRQForPreTraining",
    "BiRQModel",
    "FSQConfig",
    "FSQModel",
    "SpeechSSLFeatureExtractor",
]

AutoConfig.register("birq", BiRQConfig)
AutoModel.register(BiRQConfig, BiRQModel)
AutoModelForPreTraining.register(BiRQConfig, BiRQForPreTraining)
AutoModelForCTC.register(BiRQConfig, BiRQForCTC)
AutoFeatureExtractor.register(BiRQConfig, SpeechSSLFeatureExtractor)
AutoProcessor.register(BiRQConfig, Wav2Vec2Processor)

AutoConfig.register("speech_fsq", FSQConfig)
AutoModel.register(FSQConfig, FSQModel)
AutoFeatureExtractor.register(FSQConfig, SpeechSSLFeatureExtractor)
