"""hf-speech-ssl stream prints what the transcriber says, and one line for what goes wrong."""

import io
import json
import re
import signal

import numpy as np
import pytest
import soundfile
import torch

from hf_speech_ssl.cli import main
from hf_speech_ssl.decoding import build_ctc_processor
from hf_speech_ssl.modeling.configuration_chunkssl import ChunkSSLConfig
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.modeling.modeling_chunkssl import ChunkSSLForCTC
from hf_speech_ssl.recognition.streaming import StreamingTranscriber
from hf_speech_ssl.recognition.subtitles import format_srt, make_cues
from hf_speech_ssl.recognition.terminal import Screen


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    processor = build_ctc_processor(["ab c"], SpeechSSLFeatureExtractor())
    config = ChunkSSLConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=6
    )
    config.initializer_range = 0.5
    model = ChunkSSLForCTC(config).eval()
    torch.nn.init.constant_(model.ctc_head.bias[:1], -9.0)  # a model that never says blank
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, str(folder)


class Pipe(io.BytesIO):
    """Standard input that hands out odd pieces, as a pipe may; `at_read` is called before each."""

    def __init__(self, data: bytes, at_read=lambda: None):
        super().__init__(data)
        self.at_read, self.buffer = at_read, self

    def read1(self, size: int = -1) -> bytes:
        self.at_read()
        return self.read(min(size, 333))


@pytest.mark.parametrize("from_file", [True, False])
def test_stream_prints_the_transcript(saved, tmp_path, capsys, monkeypatch, from_file):
    model, processor, folder = saved
    samples = (np.random.default_rng(0).standard_normal(16_000) * 3000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    monkeypatch.setattr("sys.stdin", Pipe(samples.tobytes() + b"!"))  # half a sample too much
    source = str(tmp_path / "a.wav") if from_file else "-"
    assert main(["stream", source, "--model_name_or_path", folder]) == 0
    printed = capsys.readouterr()
    transcriber = StreamingTranscriber(model, processor)
    transcriber.accept(samples)
    assert printed.out == transcriber.finish() + "\n"
    assert len(printed.out) > 2
    assert re.search(r"1.0 s of audio in .* real-time factor 0?\.\d+|real-time factor \d", printed.err)


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_speech_ssl.recognition.recognizer.Recognizer.from_pretrained", interrupted)
    monkeypatch.setattr("sys.stdin", Pipe(b""))
    assert main(["stream", "-", "--model_name_or_path", "any"]) == 130
    assert capsys.readouterr().err == "hf-speech-ssl: interrupted\n"


def stream_as(saved, source, capsys, *options) -> str:
    assert main(["stream", str(source), "--model_name_or_path", saved[2], *options]) == 0
    return capsys.readouterr().out


def test_stream_prints_events_and_subtitles(saved, tmp_path, capsys):
    model, processor, _ = saved
    samples = (np.random.default_rng(0).standard_normal(48_000) * np.repeat([3000, 30, 1000], 16_000)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    transcriber = StreamingTranscriber(model, processor)
    transcriber.accept(samples)
    [[best]] = transcriber.batch.finish_hypotheses(transcriber.stream)
    events = [
        json.loads(line) for line in stream_as(saved, tmp_path / "a.wav", capsys, "--format", "json").splitlines()
    ]
    assert events[-1]["type"] == "final" and events[-1]["text"] == best.text
    assert [one["word"]["text"] for one in events if one["type"] == "word"] == [word.text for word in best.words]
    assert stream_as(saved, tmp_path / "a.wav", capsys, "--format", "srt") == format_srt(make_cues(best.words))
    options = ("--format", "json", "--max_segment_seconds", "0.6", "--hot_words", "abba", "c a=3")
    events = [json.loads(line) for line in stream_as(saved, tmp_path / "a.wav", capsys, *options).splitlines()]
    assert {one["reason"] for one in events if one["type"] == "endpoint"} == {"length"}
    arguments = ["stream", str(tmp_path / "a.wav"), "--model_name_or_path", saved[2]]
    for options, message in (
        (["--hot_words", "a=much"], "'much' is no number; write 'phrase=8'"),
        (["--hot_words", "zz"], "has no 'z' to spell the hot word 'zz'"),
        (["--voice_detector", "silero"], "give --silence_seconds too"),
    ):
        assert main([*arguments, *options]) == 1
        assert message in capsys.readouterr().err


def test_stream_says_what_is_wrong_in_one_line(saved, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "empty.wav").touch()
    header = io.BytesIO()
    soundfile.write(header, np.zeros(99), 16_000, format="WAV")
    for source, stdin, message, options in (
        ("text.wav", None, "text.wav: not audio", {}),
        ("none.wav", None, "none.wav: missing", {}),
        ("empty.wav", None, "empty.wav: empty", {}),
        (".", None, "missing: it cannot be opened", {}),
        ("-", None, "missing: nothing is piped in", {}),
        ("-", b"", "standard input: empty", {}),
        ("-", b"a", "standard input: empty", {}),
        ("-", header.getvalue(), "a wav file came in, raw samples are needed", {}),
        ("-", b"aa", "a number of Hz from 1000 to 768000, got -5", {"--sampling_rate": "-5"}),
        ("-", b"aa", "There is no model folder", {"--model_name_or_path": str(tmp_path / "no")}),
        ("-", b"aa", "whole number of encoder frames of 40 ms, got 7 ms", {"--chunk_duration_ms": "7"}),
        ("-", b"aa", "left_context_chunks must be", {"--left_context_chunks": "-1"}),
    ):
        monkeypatch.setattr("sys.stdin", None if stdin is None else Pipe(stdin))
        options = {"--model_name_or_path": saved[2], **options}
        source = source if source == "-" else str(tmp_path / source)
        assert main(["stream", source, *(word for pair in options.items() for word in pair)]) == 1
        printed = capsys.readouterr()
        last = printed.err.strip().splitlines()[-1]
        assert last.startswith("hf-speech-ssl: ") and message in last and not printed.out


def test_raw_samples_of_other_formats(saved, capsys, monkeypatch):
    """Floats, stereo and both at once; what is of another format than was said is refused, with the flag to give."""
    model, processor, folder = saved
    samples = (np.random.default_rng(0).standard_normal(16_000) * 3000).astype(np.int16)
    transcriber = StreamingTranscriber(model, processor)
    transcriber.accept(samples)
    text = transcriber.finish()
    floats, stereo = (samples / 2**15).astype("<f4"), np.stack([samples, samples], axis=1)
    for data, options, message in (
        (floats, ["--sample_format", "f32"], ""),
        (stereo, ["--num_channels", "2"], ""),
        (np.stack([floats * 2, floats * 0], axis=1), ["--sample_format", "f32", "--num_channels", "2"], ""),
        (floats, [], "give --sample_format f32"),
        (samples, ["--sample_format", "f32"], "give --sample_format s16"),
        (stereo, [], "give --num_channels 2"),
        (samples, ["--num_channels", "0"], "--num_channels must be at least 1"),
    ):
        monkeypatch.setattr("sys.stdin", Pipe(data.tobytes()))
        assert main(["stream", "-", "--model_name_or_path", folder, *options]) == bool(message)
        printed = capsys.readouterr()
        assert message in printed.err and printed.out == ("" if message else text + "\n")


@pytest.mark.parametrize("from_file", [True, False])
def test_ctrl_c_ends_the_stream_with_what_was_heard(saved, tmp_path, capsys, monkeypatch, from_file):
    """In the middle of a step it is kept for the next block; while standard input is waited for it ends the wait."""
    model, processor, folder = saved
    samples = (np.random.default_rng(0).standard_normal(32_000) * 3000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    accept, calls, heard = StreamingTranscriber.accept, [], []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored

    def interrupt(times: int) -> None:
        calls.append(None)
        if len(calls) == times:
            signal.raise_signal(signal.SIGINT)

    def hear(self, block, rate):
        if from_file:
            interrupt(8)
        heard.append(block)
        return accept(self, block, rate)

    monkeypatch.setattr(StreamingTranscriber, "accept", hear)
    monkeypatch.setattr("sys.stdin", Pipe(samples.tobytes(), lambda: None if from_file else interrupt(100)))
    source = str(tmp_path / "a.wav") if from_file else "-"
    assert main(["stream", source, "--model_name_or_path", folder]) == 130
    assert len(heard) == (8 if from_file else 93)  # what comes first is held until its format is known
    monkeypatch.undo()
    transcriber = StreamingTranscriber(model, processor)
    transcriber.accept(np.concatenate(heard))
    printed = capsys.readouterr()
    assert printed.out == transcriber.finish() + "\n" and "real-time factor" in printed.err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_text_without_spaces_fills_rows_of_a_terminal(monkeypatch):
    """Two columns a character, one of which is kept free."""
    text = "今天天气很好，我们去公园吧。明天可能会下雨。"
    output = io.StringIO()
    output.isatty = lambda: True
    monkeypatch.setenv("COLUMNS", "13")
    screen = Screen(output)
    for end in range(len(text) + 1):
        screen.show(text[:end], text[: max(0, end - 1)])
    screen.close(text)
    rows = [row.split("\r\033[K")[-1] for row in output.getvalue().split("\n")]
    assert rows == ["今天天气很", "好，我们去公", "园吧。明天可", "能会下雨。", ""]
    pipe = io.StringIO()
    Screen(pipe).show(text[:5], text[:4])
    assert pipe.getvalue() == text[:4]


@pytest.mark.parametrize("columns", [8, 12, 40])
def test_a_terminal_shows_every_word_once(columns, capsys, monkeypatch):
    """Rows of final words stay, only the last row is rewritten, and none but a word is wider than the terminal."""
    text = "so much to say about " + "very" * 5 + " little and a few more words"
    output = io.StringIO()
    output.isatty = lambda: True
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Screen(output)
    for end in range(len(text)):
        screen.show(text[:end].strip(), text[: max(0, text.rfind(" ", 0, end))])
        if end == 30:
            screen.interrupt("Left out: something")
    live = output.getvalue()
    screen.close(text)
    assert all(len(row) < columns or " " not in row for row in re.split(r"\r\x1b\[K|\n", live))
    rows = [row.split("\r\033[K")[-1] for row in output.getvalue().split("\n")]
    assert " ".join(rows).split() == text.split()
    assert all(len(row) < columns or " " not in row for row in rows)
    assert capsys.readouterr().err == "Left out: something\n"
