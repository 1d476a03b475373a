"""Opens checkpoints: finds out what a folder or a Hub repository holds, and loads it with all of its weights.

checkpoint = find_checkpoint("outputs/ctc")
if checkpoint.kind is CheckpointKind.CTC:
    model, processor = checkpoint.load_model(AutoModelForCTC), checkpoint.load_processor()
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import cached_file, logging

from .families import Family, family_of
from .modeling.configuration_conformer import SAMPLING_RATE
from .paths import check_model_folder

_TRAINING_ONLY = "masked_spec_embed"  # masks frames in training; many checkpoints of wav2vec 2.0 lack it
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_CTC_HEADS = {"ctc_head", "lm_head"}  # ours, and that of wav2vec 2.0 and its kin
_CLASS_HEADS = {"classifier", "score"}


class CheckpointKind(Enum):
    """What a checkpoint was trained to do, by the class that its configuration names."""

    PRETRAINING = "pretraining model"
    CTC = "CTC model"
    TRANSDUCER = "transducer"
    LABEL_TOKENIZER = "label tokenizer"
    ENCODER_DECODER = "encoder with a decoder"
    ENCODER = "encoder"


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter: a small difference to a model that lies elsewhere.

    Attributes:
        base: folder or Hub id of the model that it changes.
        base_revision: revision of that model on the Hub.
        whole_modules: modules of which the adapter holds all weights, such as the head.
    """

    base: str
    base_revision: str | None
    whole_modules: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A folder or Hub repository with a model, known by its configuration; weights load when they are asked for.

    Attributes:
        name_or_path: folder or Hub id.
        config: of the model; of the base model, if the checkpoint is an adapter.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: whether the model code that a repository of another family brings may run.
        adapter: the adapter, if the checkpoint is one.
    """

    name_or_path: str
    config: Any
    revision: str | None = None
    trust_remote_code: bool = False
    adapter: Adapter | None = None

    @property
    def family(self) -> Family | None:
        """The family of this package that the model belongs to; `None` of other models."""
        return family_of(self.config.model_type)

    @property
    def writes_text(self) -> bool:
        """Whether the model transcribes."""
        return self.kind in (CheckpointKind.CTC, CheckpointKind.TRANSDUCER)

    @cached_property
    def kind(self) -> CheckpointKind:
        """What the model was trained to do.

        An adapter does what the head does that it brings, or its base model's. One of an encoder without any is a CTC
        model whose head is missing, which `load_model` says.
        """
        names = self.config.architectures or []
        brought = set() if self.adapter is None else set(self.adapter.whole_modules)
        if brought & _CTC_HEADS or any(name.endswith("ForCTC") for name in names):
            return CheckpointKind.CTC
        if any(name.endswith("ForRNNT") for name in names):
            return CheckpointKind.TRANSDUCER
        if self.adapter is not None:
            return CheckpointKind.ENCODER if brought & _CLASS_HEADS else CheckpointKind.CTC
        if getattr(self.config, "is_encoder_decoder", False):
            return CheckpointKind.ENCODER_DECODER
        if any(name.endswith("ForPreTraining") for name in names):
            return CheckpointKind.PRETRAINING
        is_tokenizer = self.family is not None and self.family.is_tokenizer
        return CheckpointKind.LABEL_TOKENIZER if is_tokenizer else CheckpointKind.ENCODER

    def load_model(self, auto_class: Any, device: torch.device, if_missing: str) -> PreTrainedModel:
        """Load the model in float32, for inference.

        Args:
            auto_class: the Auto class that knows the wanted head. The weights of other heads are left out.
            device: where the model goes.
            if_missing: what to do about missing weights, as a sentence that ends the error message.

        Raises:
            OSError: there are no weights. ImportError: the checkpoint is an adapter, and PEFT is not installed.
            ValueError: the weights cannot be read, or some are missing; transformers would draw those at random.
        """
        adapter, name, revision = self.adapter, self.name_or_path, self.revision
        if adapter is not None:
            name, revision = adapter.base, adapter.base_revision
        try:
            with _quiet():  # a table of weights would stand above the one line that says what to do
                model, info = auto_class.from_pretrained(
                    name,
                    config=self.config if adapter is None else self._config_with_adapter(),
                    dtype=torch.float32,
                    output_loading_info=True,
                    revision=revision,
                    trust_remote_code=self.trust_remote_code,
                    ignore_mismatched_sizes=adapter is not None,  # the head may be the adapter's own
                )
                loaded: PreTrainedModel = model if adapter is None else self._with_adapter(model)
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"The weights of {self.name_or_path} cannot be loaded; save or download it anew: {error}"
            ) from error
        brought = set() if adapter is None else set(adapter.whole_modules)
        absent = [key for key in info["missing_keys"] if not key.endswith(_TRAINING_ONLY)]
        absent += [key for key, *_ in info["mismatched_keys"]]
        if missing := sorted(key for key in absent if brought.isdisjoint(key.split("."))):
            raise ValueError(
                f"{self.name_or_path} lacks weights of {type(loaded).__name__}: {', '.join(missing[:4])}"
                f"{', ...' if len(missing) > 4 else ''}. {if_missing}"
            )
        loaded.to(device)  # type: ignore[arg-type]  # torch's `to` is decorated
        return loaded.eval()

    def load_feature_extractor(self) -> Any:
        """Load the feature extractor.

        Raises:
            OSError: there is none. ValueError: it is not for audio at 16 kHz.
        """
        extractor = self._load_beside(AutoFeatureExtractor)
        rate = getattr(extractor, "sampling_rate", None)
        if rate != SAMPLING_RATE:
            raise ValueError(
                f"{self.name_or_path} needs audio at {rate} Hz; a model for {SAMPLING_RATE} Hz is needed."
            )
        return extractor

    def load_processor(self) -> ProcessorMixin:
        """Load feature extractor and tokenizer.

        Raises:
            ValueError: there is no processor, or it cannot be loaded.
        """
        try:
            processor: ProcessorMixin = self._load_beside(AutoProcessor)
            return processor
        except (OSError, ValueError) as error:
            if self._has_file("preprocessor_config.json") and not self._has_file("tokenizer_config.json"):
                raise ValueError(
                    f"{self.name_or_path} has a feature extractor and no tokenizer, so AutoProcessor cannot make a "
                    "processor of it: encoders transcribe nothing. Load its feature extractor with "
                    "AutoFeatureExtractor, or, for text, name a fine-tuned model or save its tokenizer beside it."
                ) from error
            raise ValueError(
                f"{self.name_or_path} has no processor that can be loaded: save the feature extractor and the "
                f"tokenizer that it was fine-tuned with beside it. ({error})"
            ) from error

    def _load_beside(self, auto_class: Any) -> Any:
        """A part that is saved beside the weights; beside those of the base model where the adapter has none."""
        options = {"trust_remote_code": self.trust_remote_code}
        try:
            return auto_class.from_pretrained(self.name_or_path, revision=self.revision, **options)
        except (OSError, ValueError):
            if self.adapter is None:
                raise
            return auto_class.from_pretrained(self.adapter.base, revision=self.adapter.base_revision, **options)

    def _has_file(self, name: str) -> bool:
        return _find_file(self.name_or_path, name, self.revision) is not None

    def _config_with_adapter(self) -> Any:
        """The base model's config with the vocabulary size of the head that the adapter brings, if it brings one."""
        config = copy.deepcopy(self.config)
        if path := _find_file(self.name_or_path, _ADAPTER_WEIGHTS, self.revision):
            with safe_open(path, framework="pt") as weights:
                heads = [key for key in weights.keys() if key.endswith("_head.weight")]  # noqa: SIM118  # no mapping
                if heads:
                    config.vocab_size = weights.get_slice(heads[0]).get_shape()[0]
        return config

    def _with_adapter(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with the adapter's difference added to its weights, so that it is a plain model again."""
        try:
            from peft import PeftModel
        except ImportError as error:
            raise ImportError(
                f"{self.name_or_path} is a PEFT adapter: pip install peft to load it, or name a folder with the "
                f"merged model. ({error})"
            ) from error
        adapted = PeftModel.from_pretrained(model, self.name_or_path, revision=self.revision)
        if not hasattr(adapted, "merge_and_unload"):
            kind = type(adapted.active_peft_config).__name__
            raise ValueError(f"{self.name_or_path} is an adapter that cannot be merged ({kind}); LoRA can.")
        merged: PreTrainedModel = adapted.merge_and_unload()
        return merged


def find_checkpoint(name_or_path: str, revision: str | None = None, trust_remote_code: bool = False) -> Checkpoint:
    """Look up what a folder or Hub repository holds; no weights are loaded.

    Args:
        name_or_path: folder or Hub id of a model, or of a PEFT adapter.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run the model code that a repository of another family brings along.

    Raises:
        FileNotFoundError: there is no such folder, or none of a model.
        OSError: the Hub has no such model or cannot be asked. ValueError: the kind of model is not known.
    """
    folder = Path(name_or_path)
    check_model_folder(name_or_path)  # the Hub would be asked for it otherwise
    try:
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"The folder {name_or_path!r} holds no model: it has no config.json. Name the folder that a model was "
                "saved to."
            )
        config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    except OSError as error:
        if adapter := _find_adapter(name_or_path, revision):
            base = _find_base(name_or_path, adapter, trust_remote_code)
            return Checkpoint(name_or_path, base.config, revision, trust_remote_code, adapter)
        if folder.is_dir():
            raise
        reason = " ".join(str(error).split())
        raise OSError(
            f"There is no folder {name_or_path!r} here (looked from {Path.cwd()}), and the Hub does not give such a "
            f"model: {reason}"
        ) from error
    return Checkpoint(name_or_path, config, revision, trust_remote_code)


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for; a GPU if there is one, by default.

    Raises:
        ValueError: there is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"There is no device {str(device)!r} here; use cpu, cuda or cuda:1. ({reason})") from error


def _find_adapter(name_or_path: str, revision: str | None) -> Adapter | None:
    """The PEFT adapter in a folder or repository, if there is one."""
    path = _find_file(name_or_path, _ADAPTER_CONFIG, revision)
    if path is None:
        return None
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{name_or_path} is a PEFT adapter that names no base model: write the folder or Hub id of the model that "
            f"it was trained on as base_model_name_or_path in its {_ADAPTER_CONFIG}."
        )
    return Adapter(base, config.get("revision"), tuple(config.get("modules_to_save") or ()))


def _find_base(name_or_path: str, adapter: Adapter, trust_remote_code: bool) -> Checkpoint:
    try:
        return find_checkpoint(adapter.base, adapter.base_revision, trust_remote_code)
    except OSError as error:
        raise FileNotFoundError(
            f"{name_or_path} is a PEFT adapter of {adapter.base}, which cannot be opened: put that model there, or "
            f"write where it is as base_model_name_or_path in {_ADAPTER_CONFIG}. ({error})"
        ) from error


def _find_file(name_or_path: str, name: str, revision: str | None) -> str | None:
    """Where a file of a folder or Hub repository lies here; None if it has none, or the Hub cannot be asked."""
    found: str | None = cached_file(
        name_or_path,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
