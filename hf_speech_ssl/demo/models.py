"""What the page is opened with: a CTC model, or a pretrained encoder whose task alone can be shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..loading import find_checkpoint
from ..probing.encoders import SpeechEncoder, encoder_of, load_encoder
from ..recognition.recognizer import Recognizer
from .masked_prediction import PretrainingTask, pretraining_task_of


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
    labels_from: str | None = None,
) -> DemoModel:
    """Load a model for the page. Arguments and errors as in [`Recognizer.from_pretrained`].

    Args:
        labels_from: folder or Hub id of the pretraining checkpoint or tokenizer that makes the labels of a CTC model.

    Raises:
        ValueError: also where that makes no labels, or not for the frames of this model.
    """
    is_folder = Path(model_name_or_path).is_dir()
    name = Path(model_name_or_path).resolve().name if is_folder else model_name_or_path
    checkpoint = find_checkpoint(model_name_or_path, revision, trust_remote_code)
    recognizer: Recognizer | None = None
    task: PretrainingTask | None
    if checkpoint.family is not None and not checkpoint.writes_text:
        encoder = encoder_of(checkpoint, device)
        model = encoder.labeler if encoder.labeler is not None else encoder.model
        assert model is not None  # one of the two is there
        task = PretrainingTask(model.config, encoder.extractor, encoder)
    else:
        recognizer = Recognizer.from_checkpoint(checkpoint, device)
        task = pretraining_task_of(recognizer.model, recognizer.processor.feature_extractor)
    if labels_from is not None:
        task = _with_labels(name, task, load_encoder(labels_from, device=device), labels_from)
    return DemoModel(name, recognizer, task)


def _with_labels(name: str, task: PretrainingTask | None, encoder: SpeechEncoder, labels_from: str) -> PretrainingTask:
    """The task with the labels of another checkpoint."""
    if task is None:
        raise ValueError(
            f"{name} was not pretrained by this package: there is no picture of its labels; leave out --labels_from."
        )
    if encoder.labeler is None:
        raise ValueError(f"{labels_from} makes no labels; name a pretraining checkpoint or an FSQ tokenizer.")
    stacking, needed = encoder.labeler.config.frame_stacking, task.config.frame_stacking
    if stacking != needed:
        raise ValueError(
            f"{labels_from} labels frames of {stacking * 10} ms, and those of {name} have {needed * 10} ms; name the "
            "checkpoint that it was fine-tuned from."
        )
    return PretrainingTask(task.config, task.extractor, encoder)
