"""What the page is opened with: a CTC model, or a pretrained encoder whose task alone can be shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..encoders import load_encoder
from ..recognizer import Recognizer, check_folder
from .masked_prediction import FAMILIES, PretrainingTask, pretraining_task_of


@dataclass(frozen=True)
class DemoModel:
    """A model as the page uses it; at least one of the two is there.

    Attributes:
        name: what the page calls it.
        recognizer: writes text.
        task: what it was pretrained on.
    """

    name: str
    recognizer: Recognizer | None
    task: PretrainingTask | None


def load_demo_model(
    model_name_or_path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
) -> DemoModel:
    """Load a model for the page. Arguments and errors as in [`Recognizer.from_pretrained`]."""
    check_folder(model_name_or_path)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    is_folder = Path(model_name_or_path).is_dir()
    name = Path(model_name_or_path).resolve().name if is_folder else model_name_or_path
    config = AutoConfig.from_pretrained(model_name_or_path, **options)
    has_head = any(one.endswith("ForCTC") for one in config.architectures or [])
    if config.model_type in FAMILIES and not has_head:
        encoder = load_encoder(model_name_or_path, device=device, **options)
        model = encoder.labeller if encoder.labeller is not None else encoder.model
        assert model is not None  # one of the two is there
        return DemoModel(name, None, PretrainingTask(model.config, encoder.extractor, encoder))
    recognizer = Recognizer.from_pretrained(model_name_or_path, device=device, **options)
    task = pretraining_task_of(recognizer.model, recognizer.processor.feature_extractor)
    return DemoModel(name, recognizer, task)
