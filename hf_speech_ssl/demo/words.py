"""What the page says, in words: what the model is, what the pictures show, why a recording cannot be used."""

from __future__ import annotations

from ..data.audio import AudioError
from .masked_prediction import MaskedPrediction
from .models import DemoModel

MAX_SECONDS = 120.0  # of an uploaded recording


def introduction(model: DemoModel, chunk_duration_ms: int) -> str:
    """What the model is and what to do here, in Markdown."""
    recognizer = model.recognizer
    if recognizer is None and model.task is not None and not model.task.masks:
        words = (
            "A tokenizer: it gives every frame of a recording a label, and those are what a Chunk SSL model is "
            "pretrained to name. It writes no text. Give it a recording to see its labels."
        )
    elif recognizer is None:
        words = (
            "A pretrained encoder: it writes no text before it is fine-tuned. Give it a recording to see what its "
            "pretraining asks: which frames are masked, and which labels the model has to name there."
        )
    elif recognizer.works_in_chunks:
        longest, _ = recognizer.latency_ms(chunk_duration_ms)
        words = (
            f"Speech recognition while you speak, in chunks of {chunk_duration_ms} ms: a word is written at most "
            f"{longest:g} ms after it was spoken, plus the time to compute. The other tab takes recordings."
        )
    else:
        words = "Speech recognition of recordings: speak or choose a file, and the text comes when you stop."
    return f"# {model.name}\n\n{words}"


def recording_caption(model: DemoModel, how: str) -> str:
    """What the picture of a recording shows; `how` says in which way it was transcribed."""
    if model.recognizer is None:
        return "Amplitude and log-mel spectrogram, which is what the model gets."
    how = f" (transcribed {how})" if how else ""
    return f"Amplitude, and the log-mel spectrogram with each word where the model begins to write it{how}."


def task_caption(task: MaskedPrediction) -> str:
    """What the picture of a task shows, in words."""
    sentences = []
    frame_ms = f"{1000 * task.seconds_per_frame:g} ms"
    if task.masked is not None and task.chunk_seconds:
        sentences.append(f"The recording in chunks of {1000 * task.chunk_seconds:g} ms (dashed).")
    if task.masked is not None:
        sentences.append(
            f"Covered: the {task.masked.mean():.0%} of the frames of {frame_ms} that this draw masks, "
            "by the masking of its pretraining."
        )
    for row in task.rows:
        frames = f"{len(row.labels)} frames" + (f" of {frame_ms}" if task.masked is None else "")
        different = f"{len(set(row.labels.tolist()))} different ones in {frames}"
        kind = "each column is one, dark a channel's lowest level and yellow its highest"
        if row.levels is None:
            kind = "equal colors are equal labels"
        sentences.append(f"{row.name[0].upper()}{row.name[1:]} labels: {kind}; {different}.")
    if task.rows and task.masked is not None:
        sentences.append("Bright labels are the ones to name; pale ones are of frames that the model sees.")
    if task.why_no_labels:
        sentences.append(f"No labels are shown: {task.why_no_labels}.")
    return " ".join(sentences)


def in_words(error: Exception) -> str:
    """An error as a visitor should read it."""
    if not isinstance(error, AudioError):
        return str(error)
    if error.reason == "too long":
        return (
            f"it is longer than {in_minutes(MAX_SECONDS)}. Cut it up, or use hf-speech-ssl transcribe, which takes "
            "recordings of any length."
        )
    if error.reason == "silent":
        return "there is no sound in it. Is the microphone switched off?"
    return error.detail


def in_minutes(seconds: float) -> str:
    """A limit as a visitor should read it."""
    return f"{seconds / 60:g} minutes"
