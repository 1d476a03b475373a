"""hf-speech-ssl picture: what pretraining masks of a recording, which labels it asks for, and how they are used."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..options import LoadingOptions, argument, flag, required_flag
from ..paths import check_file, check_model_folder, check_output_file

if TYPE_CHECKING:
    from ..decoding import TimedText


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What is drawn."""

    model_name_or_path: str = argument("folder or Hub id of a pretrained encoder, tokenizer or CTC model", "MODEL")
    source: str = argument("an audio file", "FILE")
    output_file: str = required_flag("the PNG to write")
    labels_from: str | None = flag(
        None, "pretraining checkpoint or tokenizer whose labels a CTC model's picture shows"
    )
    phones_file: str | None = flag(
        None, 'JSON with the phones, if they are known: a list of {"phone", "start", "end"}, times in seconds'
    )
    seed: int = flag(0, "of the mask")


def picture(options: PictureOptions, loading: LoadingOptions) -> None:
    """Draw spectrogram, mask, labels and phones as strips over time, and a histogram of each kind of label.

    A CTC model's picture shows its transcript above them.

    Raises:
        OSError: a file or the model is not there.
        ValueError: the model is none of this package, the audio cannot be used, or the phones cannot be read.
    """
    check_model_folder(options.model_name_or_path)
    check_file(options.source)
    check_file(options.phones_file)
    check_output_file(options.output_file)
    import numpy as np
    from matplotlib.image import imsave

    from ..data.audio import load_audio
    from ..demo.models import load_demo_model
    from ..demo.pictures import draw_pretraining, draw_recording
    from ..demo.timed_transcript import transcribe_with_times
    from ..demo.words import task_caption

    waveform = load_audio(options.source)
    phones = [] if options.phones_file is None else _read_phones(options.phones_file)
    model = load_demo_model(options.model_name_or_path, **asdict(loading), labels_from=options.labels_from)
    if model.task is None:
        raise ValueError(f"{model.name} was not pretrained by this package: there is no picture of its pretraining.")
    task = model.task(waveform, options.seed)
    parts = []
    if model.recognizer is not None:
        parts.append(draw_recording(waveform, transcribe_with_times(model.recognizer, waveform)))
    parts.append(draw_pretraining(waveform, task, phones))
    imsave(options.output_file, np.concatenate(parts))
    print(f"{task_caption(task)}\nWrote {options.output_file}.")


def _read_phones(path: str) -> list[TimedText]:
    from ..decoding import TimedText

    try:
        phones = json.loads(Path(path).read_text(encoding="utf-8"))
        return [TimedText(one["phone"], float(one["start"]), float(one["end"])) for one in phones]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} is no list of {{"phone", "start", "end"}}; write it as JSON, with times in seconds. ({error!r})'
        ) from error
