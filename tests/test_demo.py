"""The page to speak into, without a browser: pictures, the task of pretraining, live transcripts, recordings."""

import base64
import json
import os
import socket
import sys
import urllib.request
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from helpers import speech_like, tiny_birq, tiny_chunkssl
from test_streaming import CHUNK_MS, TINY, speech

pytest.importorskip("gradio")

from hf_speech_ssl import (
    BiRQForCTC,
    BiRQForPreTraining,
    ChunkSSLConfig,
    ChunkSSLForCTC,
    ChunkSSLForPreTraining,
    FSQConfig,
    FSQModel,
    cli,
)
from hf_speech_ssl.decoding import TimedText, build_ctc_processor
from hf_speech_ssl.demo import live as live_module
from hf_speech_ssl.demo.live import LiveTranscripts
from hf_speech_ssl.demo.masked_prediction import LabelRows, MaskedPrediction, PretrainingTask
from hf_speech_ssl.demo.models import load_demo_model
from hf_speech_ssl.demo.page import build_page
from hf_speech_ssl.demo.pictures import DOTS_PER_INCH, WIDTH_INCHES, draw_masked_prediction, draw_recording
from hf_speech_ssl.demo.timed_transcript import TimedTranscript, transcribe_with_times
from hf_speech_ssl.demo.words import task_caption
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.modeling.masking import draw_span_mask
from hf_speech_ssl.probing.encoders import ConformerEncoder
from hf_speech_ssl.recognition.recognizer import Recognizer
from hf_speech_ssl.recognition.streaming import StreamingTranscriber

WIDTH = WIDTH_INCHES * DOTS_PER_INCH


def extractor() -> SpeechSSLFeatureExtractor:
    return SpeechSSLFeatureExtractor(mean=[10.0] * 80, variance=[9.0] * 80)


def chunkssl_ctc() -> Recognizer:
    """A random model that babbles in words."""
    torch.manual_seed(1)
    processor = build_ctc_processor(["ab c"], extractor())
    config = ChunkSSLConfig(conv_kernel_size=5, vocab_size=len(processor.tokenizer), **TINY)
    config.initializer_range = 0.5
    return Recognizer(ChunkSSLForCTC(config), processor)


def birq_ctc() -> Recognizer:
    torch.manual_seed(1)
    processor = build_ctc_processor(["ab c"], extractor())
    return Recognizer(BiRQForCTC(tiny_birq(vocab_size=len(processor.tokenizer), initializer_range=0.5)), processor)


def save(recognizer: Recognizer, folder: Path) -> Path:
    recognizer.model.save_pretrained(folder)
    recognizer.processor.save_pretrained(folder)
    return folder


# Pictures


def test_a_recording_s_picture_has_its_words_and_characters():
    waveform = speech_like(2.0)
    words = [TimedText("hello", 0.3, 0.7), TimedText("there", 0.9, 1.4)]
    letters = [TimedText("h", 0.3, 0.34), TimedText("t", 0.9, 0.94)]
    bare = draw_recording(waveform)
    full = draw_recording(waveform, TimedTranscript("hello there", words, letters))
    for picture in (bare, full):
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert picture.shape[1] == WIDTH
    assert full.shape[0] > bare.shape[0]  # a row of words and one of characters more
    assert len(np.unique(bare.reshape(-1, 3), axis=0)) > 100  # a spectrogram, not a blank


def test_only_the_hidden_frames_are_covered_and_only_their_labels_are_bright():
    waveform, heights = speech_like(2.0), []
    for rows in ([], [LabelRows("anchor", np.arange(100) % 7)]):
        pictures = []
        for masked in (np.zeros(100, dtype=bool), np.arange(100) < 50):
            pictures.append(draw_masked_prediction(waveform, MaskedPrediction(masked, 0.02, 0.0, rows)).astype(int))
        changed = np.abs(pictures[0] - pictures[1]).sum(2)
        columns = np.flatnonzero(changed.sum(0))
        assert 0.05 < columns.min() / WIDTH < 0.15 and 0.45 < columns.max() / WIDTH < 0.55  # the first half
        heights.append(np.count_nonzero(changed.sum(1)))
    assert heights[1] > heights[0] + 30  # the labels' row too


def test_long_recordings_say_what_is_drawn():
    short, long = draw_recording(speech_like(15.0)), draw_recording(speech_like(20.0))
    assert short.shape == long.shape and (short != long).any()


# The task of pretraining


def test_birq_s_mask_is_its_own_and_its_ctc_model_knows_the_anchor_labels():
    waveform = speech_like(3.0)
    config = tiny_birq(enhanced_loss_weight=0.1)
    model = BiRQForPreTraining(config).eval()
    task = PretrainingTask(config, extractor(), ConformerEncoder(model.encoder, extractor(), model))(waveform, seed=5)
    torch.manual_seed(5)
    expected = draw_span_mask(torch.ones(1, len(task.masked), dtype=torch.bool), 0.1, 5)[0]
    assert 0 < task.masked.mean() < 1 and task.masked.tolist() == expected.tolist()
    assert [row.name for row in task.rows] == ["anchor", "enhanced (block 2)"]
    of_ctc = PretrainingTask(tiny_birq(), extractor())(waveform, seed=5)
    assert (of_ctc.rows[0].labels == task.rows[0].labels).all() and len(of_ctc.rows) == 1
    assert "equal colors are equal labels" in task_caption(task)


def test_the_generator_of_others_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    PretrainingTask(tiny_birq(), extractor())(speech_like(1.0), seed=5)
    assert (torch.rand(2) == expected).all()


def test_chunk_ssl_hides_half_of_every_chunk_but_the_first():
    config = tiny_chunkssl(frame_stacking=2)  # chunks of 8 frames of 20 ms
    model = ChunkSSLForPreTraining(config).eval()
    encoder = ConformerEncoder(model.encoder, extractor(), model)
    task = PretrainingTask(config, extractor(), encoder)(speech_like(3.0))
    chunks = task.masked[: len(task.masked) // 8 * 8].reshape(-1, 8).sum(1)
    assert task.chunk_seconds == pytest.approx(0.16)
    assert chunks[0] == 0 and (chunks[1:] == 4).all()
    (row,) = task.rows
    assert row.levels.shape == (2, len(task.masked)) and 0 <= row.levels.min() <= row.levels.max() <= 1
    digits = row.levels.T * (np.array(config.fsq_levels) - 1)
    assert (np.round(digits) @ [1, config.fsq_levels[0]] == row.labels).all()
    of_ctc = PretrainingTask(config, extractor())(speech_like(3.0))
    assert of_ctc.rows == [] and "pretraining checkpoint" in task_caption(of_ctc)


def test_less_than_a_frame_is_refused_in_words():
    with pytest.raises(ValueError, match="less than one frame"):
        PretrainingTask(tiny_birq(), extractor())(speech_like(0.026))


# Live transcripts


def message(recording: str, number: int, block: np.ndarray, last: bool = False, rate: int = 16_000) -> dict:
    samples = base64.b64encode(block.astype("<i2").tobytes()).decode()
    # Over the network everything passes through JSON.
    return json.loads(
        json.dumps({"recording": recording, "number": number, "rate": rate, "samples": samples, "last": last})
    )


def pcm(seconds: float, seed: int = 0) -> np.ndarray:
    return (speech(seconds, seed) * 32_767).clip(-32_768, 32_767).astype(np.int16)


def expected_text(recognizer: Recognizer, samples: np.ndarray) -> str:
    transcriber = StreamingTranscriber(recognizer.model, recognizer.processor, CHUNK_MS)
    transcriber.accept(samples)
    return transcriber.finish()


def test_visitors_hear_their_own_words_and_nobody_else_s():
    recognizer = chunkssl_ctc()
    live = LiveTranscripts(recognizer, CHUNK_MS)
    signals = {name: pcm(2.0, seed) for seed, name in enumerate(("ann", "bob", "eve"))}
    parts = {name: np.array_split(signal, 7 + seed) for seed, (name, signal) in enumerate(signals.items())}
    texts, before = {}, dict.fromkeys(signals, "")
    for number in range(9):
        for name, blocks in parts.items():
            if number < len(blocks):
                answer = live.accept(message(name, number, blocks[number], last=number == len(blocks) - 1))
                assert answer["problem"] == "" and answer["final"].startswith(before[name])
                before[name] = answer["final"]
                texts[name] = answer["final"] + answer["tentative"]
    expected = {name: expected_text(recognizer, signal) for name, signal in signals.items()}
    assert texts == expected and len(set(expected.values())) == 3 and all(len(text) > 3 for text in texts.values())
    kept = live.samples("bob")
    assert np.allclose(kept, signals["bob"] / 32_768) and live.samples("bob") is None
    assert transcribe_with_times(recognizer, kept, CHUNK_MS).text == texts["bob"]


def test_a_block_that_comes_twice_is_heard_once_and_a_lost_one_is_told():
    recognizer = chunkssl_ctc()
    live, signal = LiveTranscripts(recognizer, CHUNK_MS), pcm(2.0)
    first, second = signal[:20_000], signal[20_000:]
    live.accept(message("ann", 0, first))
    assert live.accept(message("ann", 0, first))["seconds"] == 1.25
    live.accept(message("ann", 1, second, last=True))
    answer = live.accept(message("ann", 1, second, last=True))
    assert answer["ended"] and answer["final"] == expected_text(recognizer, signal)
    live.accept(message("bob", 0, first))
    lost = live.accept(message("bob", 2, second))
    assert lost["ended"] and "lost" in lost["problem"]


def test_a_refused_block_is_told_and_the_recording_goes_on():
    recognizer = chunkssl_ctc()
    live, signal = LiveTranscripts(recognizer, CHUNK_MS), pcm(2.0)
    live.accept(message("ann", 0, signal[:20_000]))
    answer = live.accept(message("ann", 1, signal[:8000], rate=8000))
    assert "1.0 s were left out" in answer["problem"] and not answer["ended"]
    answer = live.accept(message("ann", 2, signal[20_000:], last=True))
    assert answer["final"] == expected_text(recognizer, signal) and answer["problem"] == ""


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        "hello",
        {},
        {"samples": "AAAA!"},
        {"samples": base64.b64encode(b"abc").decode()},
        {"samples": 3},
        {"number": -1},
        {"number": "x"},
        {"rate": 0},
        {"rate": float("inf")},
        {"recording": ""},
        {"recording": "x" * 100},
    ],
    ids=str,
)
def test_what_is_no_audio_gets_an_answer_in_words(wrong):
    live = LiveTranscripts(chunkssl_ctc(), CHUNK_MS)
    good = message("ann", 0, pcm(0.5))
    sent = {**good, **wrong} if isinstance(wrong, dict) and wrong else wrong
    answer = live.accept(sent)
    assert answer["ended"] and answer["problem"].startswith("The browser sent")
    assert live.accept(good)["problem"] == ""


def test_recordings_are_bounded_in_length_and_number(monkeypatch):
    monkeypatch.setattr(live_module, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(live_module, "MAX_RECORDINGS", 2)
    live = LiveTranscripts(chunkssl_ctc(), CHUNK_MS)
    answer = live.accept(message("ann", 0, pcm(1.2)))
    assert answer["ended"] and "Recordings end" in answer["problem"]
    for name in ("bob", "eve"):
        assert not live.accept(message(name, 0, pcm(0.5)))["ended"]
    assert "2 people are speaking" in live.accept(message("dan", 0, pcm(0.5)))["problem"]
    monkeypatch.setattr(live_module, "IDLE_SECONDS", -1.0)  # all have left
    assert live.accept(message("dan", 0, pcm(0.5)))["problem"] == ""


def test_silence_and_nothing_end_without_words_or_picture():
    live = LiveTranscripts(chunkssl_ctc(), CHUNK_MS)
    assert live.accept(message("ann", 0, np.zeros(0), last=True))["final"] == ""
    live.accept(message("bob", 0, np.zeros(100), last=True))
    assert live.samples("ann") is None and live.samples("bob") is None and live.samples("nobody") is None


# The page and the command


def titles(page) -> list[str]:
    return [block["props"].get("label") for block in page.config["components"] if block["type"] == "tabitem"]


def test_the_page_has_what_the_model_can_do(tmp_path):
    assert titles(build_page(load_demo_model(str(save(chunkssl_ctc(), tmp_path / "chunkssl"))), CHUNK_MS)) == [
        "Live",
        "Recording",
    ]
    assert titles(build_page(load_demo_model(str(save(birq_ctc(), tmp_path / "birq"))))) == []
    BiRQForPreTraining(tiny_birq()).save_pretrained(tmp_path / "pretrained")
    extractor().save_pretrained(tmp_path / "pretrained")
    model = load_demo_model(str(tmp_path / "pretrained"))
    assert model.recognizer is None and model.name == "pretrained"
    page = build_page(model)
    text = json.dumps(page.config, default=str)
    assert "writes no text" in text and "Transcript" not in text


@pytest.mark.parametrize("kind", ["pretraining", "ctc"])
def test_the_picture_command_draws_mask_labels_phones_and_their_use(tmp_path, capsys, kind):
    if kind == "ctc":
        save(birq_ctc(), tmp_path / "model")
    else:
        BiRQForPreTraining(tiny_birq()).save_pretrained(tmp_path / "model")
        extractor().save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", speech_like(2.0), 16_000)
    phones = [{"phone": "ah", "start": 0.5, "end": 1.0}]
    (tmp_path / "phones.json").write_text(json.dumps(phones))
    line = [
        "picture",
        str(tmp_path / "model"),
        str(tmp_path / "a.wav"),
        "--output_file",
        str(tmp_path / "x" / "a.png"),
    ]
    assert cli.main(line) == 0
    plain = matplotlib.image.imread(tmp_path / "x" / "a.png")
    assert "labels: equal colors" in capsys.readouterr().out
    assert cli.main([*line, "--phones_file", str(tmp_path / "phones.json")]) == 0
    with_phones = matplotlib.image.imread(tmp_path / "x" / "a.png")
    assert with_phones.shape[1] == plain.shape[1] == WIDTH_INCHES * DOTS_PER_INCH
    assert with_phones.shape[0] > plain.shape[0]
    (tmp_path / "phones.json").write_text('[{"phone": "ah"}]')
    assert cli.main([*line, "--phones_file", str(tmp_path / "phones.json")]) == 1
    assert "is no list of" in capsys.readouterr().err


def test_a_tokenizer_s_page_shows_its_labels_and_hides_nothing(tmp_path):
    tokenizer = FSQModel(FSQConfig(fsq_levels=[3, 5], fsq_hidden_size=16, fsq_num_hidden_layers=2)).eval()
    tokenizer.save_pretrained(tmp_path)
    extractor().save_pretrained(tmp_path)
    model = load_demo_model(str(tmp_path))
    text = json.dumps(build_page(model).config, default=str)
    assert "A tokenizer" in text and "Its labels" in text and "Mask other frames" not in text
    task = model.task(speech_like(2.0))
    inputs = extractor()(speech_like(2.0), sampling_rate=16_000, return_tensors="pt")
    expected = tokenizer.tokenizer.quantizer.indices_from_digits(tokenizer.tokenize(inputs["input_features"], None))[0]
    assert task.masked is None and (task.rows[0].labels == expected.numpy()).all()
    caption = task_caption(task)
    assert "frames of 40 ms" in caption and "Bright" not in caption and "Covered" not in caption
    assert draw_masked_prediction(speech_like(2.0), task).shape[1] == WIDTH


def test_a_ctc_model_s_labels_come_from_its_pretraining_checkpoint(tmp_path):
    folder = str(save(chunkssl_ctc(), tmp_path / "ctc"))
    stacking = chunkssl_ctc().model.config.frame_stacking
    for name, frames in (("pretrained", stacking), ("other", 2 * stacking)):
        ChunkSSLForPreTraining(tiny_chunkssl(frame_stacking=frames)).save_pretrained(tmp_path / name)
        extractor().save_pretrained(tmp_path / name)
    task = load_demo_model(folder, labels_from=str(tmp_path / "pretrained")).task(speech_like(2.0))
    expected = load_demo_model(str(tmp_path / "pretrained")).task(speech_like(2.0))
    assert task.why_no_labels == "" and (task.rows[0].levels == expected.rows[0].levels).all()
    assert len(task.rows[0].labels) == len(task.masked)
    with pytest.raises(ValueError, match="checkpoint that it was fine-tuned from"):
        load_demo_model(folder, labels_from=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="makes no labels"):
        load_demo_model(folder, labels_from=folder)


def call_listen(page, *inputs):
    (function,) = [one for one in page.fns.values() if one.name == "listen"]
    return function.fn(*inputs)


def test_an_uploaded_recording_becomes_text_and_pictures(tmp_path):
    soundfile.write(tmp_path / "spoken.wav", np.stack([pcm(2.0)] * 2, axis=1), 16_000)  # stereo
    recognizer = chunkssl_ctc()
    page = build_page(load_demo_model(str(save(recognizer, tmp_path / "model"))), CHUNK_MS)
    in_chunks = call_listen(page, str(tmp_path / "spoken.wav"), CHUNK_MS)
    whole = call_listen(page, str(tmp_path / "spoken.wav"), 0)
    assert in_chunks[1] == expected_text(recognizer, pcm(2.0)) != whole[1]
    _, _, column, waveform, recording, masked, caption = whole
    assert column.visible and len(waveform) == 32_000 and recording.shape[1] == masked.shape[1] == WIDTH
    assert "Chunks" in caption or "chunks" in caption
    assert call_listen(page, None, 0)[1] == "" and not call_listen(page, None, 0)[2].visible


def test_a_recording_that_cannot_be_used_is_told(tmp_path, monkeypatch):
    import gradio

    told = []
    monkeypatch.setattr(gradio, "Warning", lambda words, **_: told.append(words))
    page = build_page(load_demo_model(str(save(birq_ctc(), tmp_path / "model"))))
    (tmp_path / "notes.wav").write_text("shopping list")
    assert call_listen(page, str(tmp_path / "notes.wav"), 0)[:2] == [None, ""]
    assert "convert it to wav or flac" in told[0] or "nor ffmpeg can read it" in told[0]
    assert str(tmp_path) not in told[0]
    for name, seconds, words in (("silence", 1, "no sound"), ("lecture", 121, "longer than 2 minutes")):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(seconds * 16_000), 16_000)
        assert call_listen(page, str(tmp_path / f"{name}.wav"), 0)[1] == "" and words in told[-1]


def run_cli(capsys, *flags: str) -> str:
    """The one line that a failing command prints."""
    assert cli.main(["demo", *flags]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_the_command_tells_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch):
    folder = str(save(chunkssl_ctc(), tmp_path / "model"))
    capsys.readouterr()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port}" in run_cli(capsys, folder, "--port", port)
    assert "no model folder" in run_cli(capsys, str(tmp_path / "nowhere"), "--port", port)
    assert "whole number of encoder frames" in run_cli(capsys, folder, "--port", port, "--chunk_duration_ms", "33")
    assert "no port 70000" in run_cli(capsys, folder, "--port", "70000")
    assert "nowhere.invalid" in run_cli(capsys, folder, "--host", "nowhere.invalid")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'hf-speech-ssl[demo]'" in run_cli(capsys, folder)


def test_the_page_opens_where_a_proxy_is_set_and_says_so_then(tmp_path, capsys, monkeypatch):
    import gradio

    folder, answers = str(save(birq_ctc(), tmp_path / "model")), []

    def ask(page):
        (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("Open ")]
        without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        answers.append(without_proxy.open(line.split()[1]).status)
        page.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", ask)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "example.org")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert cli.main(["demo", folder, "--port", str(port)]) == 0
    assert answers == [200] and os.environ["NO_PROXY"] == "example.org,127.0.0.1"
