"""`pipeline("automatic-speech-recognition")` over all families: the text and the times of the greedy path, however the
audio comes and however it is cut.

The models are random but sure of themselves: nearly every frame says another letter, so that a single frame too many,
too few or shifted shows in the text.
"""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from families import Family, every_family
from helpers import speech_like
from transformers import pipeline

from hf_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.decoding import build_ctc_processor

WAVES = [speech_like(seconds, seed) for seed, seconds in enumerate((2.0, 3.13, 0.71))]


def save_recognizer(family: Family, folder: Path, reach: str = "global"):
    """A CTC model and its processor, saved; with `reach="local"` a frame sees its nearest neighbors only."""
    extractor = SpeechSSLFeatureExtractor()
    extractor.fit_normalization((torch.from_numpy(wave)[None], torch.tensor([len(wave)])) for wave in WAVES)
    processor = build_ctc_processor(["abcdefghijklmnopqrstuvwxyz"], extractor)
    tokenizer = processor.tokenizer
    model = family.build("ctc", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, conv_kernel_size=3)
    with torch.no_grad():
        model.ctc_head.weight.mul_(100)
        model.ctc_head.bias[tokenizer.word_delimiter_token_id] = 15.0  # more than one word
        if reach == "local":
            for layer in model.encoder.layers:
                layer.attention.out_proj.weight.zero_()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def best_ids(model, processor, wave: np.ndarray) -> list[int]:
    """The greedy path of one utterance."""
    inputs = processor(wave, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits[0].argmax(-1).tolist()


@every_family
@pytest.mark.parametrize("form", ["array", "raw", "generate"])
def test_text_of_one_utterance(family: Family, form: str, tmp_path):
    model, processor = save_recognizer(family, tmp_path)
    transcribe = pipeline("automatic-speech-recognition", str(tmp_path))
    wanted = processor.batch_decode([best_ids(model, processor, WAVES[0])])[0]
    assert len(wanted) > 20
    assert " " in wanted
    if form == "generate":
        inputs = processor(WAVES[0], sampling_rate=16_000, return_tensors="pt")
        assert processor.batch_decode(model.generate(**inputs)) == [wanted]
    else:
        audio = WAVES[0] if form == "array" else {"raw": WAVES[0], "sampling_rate": 16_000}
        assert transcribe(audio)["text"] == wanted


@every_family
def test_batches_give_what_single_utterances_give(family: Family, tmp_path):
    """Padding must not add letters: the pipeline decodes the frames of the padding too."""
    save_recognizer(family, tmp_path)
    transcribe = pipeline("automatic-speech-recognition", str(tmp_path))
    single = [transcribe(wave.copy())["text"] for wave in WAVES]
    assert [one["text"] for one in transcribe([wave.copy() for wave in WAVES], batch_size=2)] == single
    assert [one["text"] for one in transcribe([wave.copy() for wave in WAVES], batch_size=3)] == single


@every_family
@pytest.mark.parametrize(("chunk", "stride"), [(1.0, None), (1.0, (0.3, 0.2)), (0.77, 0.2), (5.0, None)])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_chunks_give_the_unchunked_text(family: Family, chunk: float, stride, batch_size: int, tmp_path):
    """Exactly, where no frame looks beyond the stride; with a wrong ratio of samples to frames the cuts shift."""
    save_recognizer(family, tmp_path, reach="local")
    transcribe = pipeline("automatic-speech-recognition", str(tmp_path))
    options = {"chunk_length_s": chunk, "stride_length_s": stride, "batch_size": batch_size}
    for wave in WAVES:
        whole = transcribe(wave.copy(), return_timestamps="word")
        assert transcribe(wave.copy(), return_timestamps="word", **options) == whole


@every_family
def test_times(family: Family, tmp_path):
    """Characters end where the runs of their token end; words begin and end with their characters."""
    model, processor = save_recognizer(family, tmp_path)
    transcribe = pipeline("automatic-speech-recognition", str(tmp_path))
    seconds = model.config.inputs_to_logits_ratio / 16_000
    characters, at = [], 0
    for token, run in itertools.groupby(best_ids(model, processor, WAVES[1])):
        begin, at = at, at + len(list(run))
        if token != processor.tokenizer.pad_token_id:
            characters.append((processor.tokenizer.convert_ids_to_tokens(token).replace("|", " "), begin, at))
    got = transcribe(WAVES[1].copy(), return_timestamps="char")["chunks"]
    assert [one["text"] for one in got] == [text for text, _, _ in characters]
    wanted = [(begin * seconds, end * seconds) for _, begin, end in characters]
    np.testing.assert_allclose([one["timestamp"] for one in got], wanted)
    assert wanted[-1][1] <= len(WAVES[1]) / 16_000

    output = transcribe(WAVES[1].copy(), return_timestamps="word")
    words = [one["text"] for one in output["chunks"]]
    assert words == output["text"].split()
    assert len(words) > 2
    for spaced, members in itertools.groupby(zip(characters, wanted, strict=True), lambda pair: pair[0][0] == " "):
        if not spaced:
            times = [time for _, time in members]
            assert output["chunks"].pop(0)["timestamp"] == pytest.approx((times[0][0], times[-1][1]))


@every_family
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="transformers decodes files with ffmpeg")
def test_file(family: Family, tmp_path):
    save_recognizer(family, tmp_path)
    transcribe = pipeline("automatic-speech-recognition", str(tmp_path))
    soundfile.write(tmp_path / "speech.wav", WAVES[0], 16_000, subtype="FLOAT")
    assert transcribe(str(tmp_path / "speech.wav"))["text"] == transcribe(WAVES[0].copy())["text"]


@every_family
def test_too_short_audio_is_refused_in_words(family: Family, tmp_path):
    save_recognizer(family, tmp_path)
    transcribe = pipeline("automatic-speech-recognition", str(tmp_path))
    with pytest.raises(ValueError, match="at least 400"):
        transcribe(np.zeros(399, np.float32))
    with pytest.raises(ValueError, match="frames of 10 ms to make one encoder frame"):
        transcribe(np.zeros(400, np.float32))
