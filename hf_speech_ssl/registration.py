"""Registers the families with the Auto classes of transformers, as late as possible.

The Auto classes import torch, which takes longer than the answer to `hf-speech-ssl --help` should. Importing the
package therefore registers at once only where the Auto classes are imported already. Elsewhere it registers as soon as
they are, so that whoever has an Auto class finds the families in it.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from .families import FAMILIES

_AUTO_CLASSES = "transformers.models.auto.configuration_auto"  # every module of an Auto class imports this one
_WATCHED = ("transformers", "hf_speech_ssl")


def register_with_auto_classes() -> None:
    """Make `AutoModelForCTC.from_pretrained(...)`, `pipeline(...)` and the like know the families."""
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModel,
        AutoModelForAudioClassification,
        AutoModelForAudioFrameClassification,
        AutoModelForCTC,
        AutoModelForPreTraining,
        AutoModelForRNNT,
        AutoModelForTDT,
        AutoProcessor,
        Wav2Vec2Processor,
    )

    from .modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor

    for family in FAMILIES:
        config = family.config_class
        AutoConfig.register(family.model_type, config)
        AutoFeatureExtractor.register(config, SpeechSSLFeatureExtractor)
        AutoModel.register(config, family.model_class("base"))
        if not family.is_tokenizer:
            AutoModelForPreTraining.register(config, family.model_class("pretraining"))
        if "ctc" in family.models:
            AutoModelForCTC.register(config, family.model_class("ctc"))
            AutoModelForRNNT.register(config, family.model_class("rnnt"))
            AutoModelForTDT.register(config, family.model_class("rnnt"))  # what pipeline() asks for transducers
            AutoModelForAudioClassification.register(config, family.model_class("classification"))
            AutoModelForAudioFrameClassification.register(config, family.model_class("frame_classification"))
            AutoProcessor.register(config, Wav2Vec2Processor)


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
