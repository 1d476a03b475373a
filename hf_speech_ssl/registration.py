"""Registers the families with the Auto classes of transformers, as late as possible.

The Auto classes import torch, which takes longer than the answer to `hf-speech-ssl --help` should. Importing the
package therefore registers at once only where the Auto classes are imported already. Elsewhere it registers as soon as
they are, so that whoever has an Auto class finds the families in it.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_AUTO_CLASSES = "transformers.models.auto.configuration_auto"  # every module of an Auto class imports this one
_WATCHED = ("transformers", "hf_speech_ssl")


def register_with_auto_classes() -> None:
    """Make `AutoModelForCTC.from_pretrained(...)`, `pipeline(...)` and the like know the families."""
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

    for config, base, pretraining, ctc in (
        (BiRQConfig, BiRQModel, BiRQForPreTraining, BiRQForCTC),
        (ChunkSSLConfig, ChunkSSLModel, ChunkSSLForPreTraining, ChunkSSLForCTC),
    ):
        AutoConfig.register(config.model_type, config)
        AutoModel.register(config, base)
        AutoModelForPreTraining.register(config, pretraining)
        AutoModelForCTC.register(config, ctc)
        AutoFeatureExtractor.register(config, SpeechSSLFeatureExtractor)
        AutoProcessor.register(config, Wav2Vec2Processor)

    # The tokenizer has one class for all: it is trained, and then used, by the same model.
    AutoConfig.register(FSQConfig.model_type, FSQConfig)
    AutoModel.register(FSQConfig, FSQModel)
    AutoFeatureExtractor.register(FSQConfig, SpeechSSLFeatureExtractor)


def register_when_needed() -> None:
    """Register now if the Auto classes are imported, else as soon as they are."""
    if _AUTO_CLASSES in sys.modules:
        register_with_auto_classes()
    else:
        sys.meta_path.insert(0, _RegistersAfterImport())


class _RegistersAfterImport:
    """A finder that registers at the end of the import that brought the Auto classes.

    It waits for the outermost module of transformers or of this package, because the modules in between are not
    complete before and registering imports them.
    """

    def __init__(self) -> None:
        self.unfinished: set[str] = set()  # modules whose import has begun and not ended

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in _WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                self.unfinished.add(name)
                try:
                    execute(module)
                finally:
                    self.unfinished.discard(name)
                if not self.unfinished and _AUTO_CLASSES in sys.modules and self in sys.meta_path:
                    sys.meta_path.remove(self)
                    register_with_auto_classes()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
