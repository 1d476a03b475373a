"""The transcript of one recording, with the times of words and characters."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import Wav2Vec2CTCTokenizer

from ..decoding import TimedText, character_times, greedy_ctc_spans, is_transducer
from ..recognition.recognizer import Recognizer


@dataclass(frozen=True)
class TimedTranscript:
    """The transcript of a recording.

    Attributes:
        text: the transcript.
        words, characters: the same with times, without the spaces; empty where the tokenizer does not say where words
            end; a transducer has no times of characters.
    """

    text: str
    words: list[TimedText]
    characters: list[TimedText]


def transcribe_with_times(
    recognizer: Recognizer, waveform: NDArray[np.float32], chunk_duration_ms: int = 0
) -> TimedTranscript:
    """Transcribe a recording, (samples,) at 16 kHz, whole or in chunks.

    Raises:
        ValueError: the recording is shorter than a frame of the model, or the model cannot work in such chunks.
    """
    frames, lengths = recognizer.decoder_frames([waveform], chunk_duration_ms)
    best = recognizer.greedy()(frames, lengths)[0][0]
    tokenizer = recognizer.tokenizer
    if not isinstance(tokenizer, Wav2Vec2CTCTokenizer) or is_transducer(recognizer.model):
        return TimedTranscript(best.text, best.words or [], [])
    assert tokenizer.pad_token_id is not None  # the recognizer has seen to it
    spans = greedy_ctc_spans(frames, lengths, tokenizer.pad_token_id)[0]
    characters = character_times(spans, tokenizer, recognizer.seconds_per_frame)
    return TimedTranscript(best.text, best.words or [], [one for one in characters if one.text.strip()])
