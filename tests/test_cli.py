"""hf-speech-ssl stream prints what the transcriber says, and one line for what goes wrong."""

import io
import re
import types

import numpy as np
import pytest
import soundfile
import torch

from hf_speech_ssl.cli import main
from hf_speech_ssl.decoding import build_ctc_processor
from hf_speech_ssl.modeling.configuration_chunkssl import ChunkSSLConfig
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.modeling.modeling_chunkssl import ChunkSSLForCTC
from hf_speech_ssl.streaming import StreamingTranscriber


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


@pytest.mark.parametrize("from_file", [True, False])
def test_stream_prints_the_transcript(saved, tmp_path, capsys, monkeypatch, from_file):
    model, processor, folder = saved
    samples = (np.random.default_rng(0).standard_normal(16_000) * 3000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    stdin = io.BytesIO(samples.tobytes())
    stdin.read1 = lambda size: stdin.read(min(size, 333))  # odd pieces, as a pipe may give them
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=stdin))
    source = str(tmp_path / "a.wav") if from_file else "-"
    assert main(["stream", source, "--model_name_or_path", folder]) == 0
    printed = capsys.readouterr()
    transcriber = StreamingTranscriber(model, processor)
    transcriber.accept(samples)
    assert printed.out == transcriber.finish() + "\n"
    assert len(printed.out) > 2
    assert re.search(r"1.0 s of audio in .* real-time factor 0?\.\d+|real-time factor \d", printed.err)


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, capsys):
    def interrupted(**arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_speech_ssl.commands.stream.stream_to_terminal", interrupted)
    assert main(["stream", "-", "--model_name_or_path", "any"]) == 130
    assert capsys.readouterr().err == "hf-speech-ssl: interrupted.\n"


def test_stream_says_what_is_wrong_in_one_line(saved, tmp_path, capsys):
    (tmp_path / "text.wav").write_text("no audio")
    for arguments, message in (
        ([str(tmp_path / "text.wav"), "--model_name_or_path", saved[2]], "not audio"),
        ([str(tmp_path / "none.wav"), "--model_name_or_path", saved[2]], "none.wav"),
        (["-", "--model_name_or_path", str(tmp_path)], "hf-speech-ssl:"),
        (["-", "--model_name_or_path", saved[2], "--chunk_duration_ms", "7"], "whole number of encoder frames"),
    ):
        assert main(["stream", *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
