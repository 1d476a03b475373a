"""Files in, text out: short files in batches, long ones in windows or chunks, and what goes wrong in words."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from families import FAMILIES, every_family
from helpers import speech_like
from test_subtitles import parse_srt, parse_vtt

from hf_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.cli import main
from hf_speech_ssl.data.audio import AudioError, load_audio
from hf_speech_ssl.data.audio_files import find_audio_files
from hf_speech_ssl.data.audio_stream import SampleWindow, stream_audio
from hf_speech_ssl.decoding import Decoder, Hypothesis, StreamingText, build_ctc_processor, make_decoder
from hf_speech_ssl.options import DecodingOptions
from hf_speech_ssl.recognition.long_form import LongFormRecognizer
from hf_speech_ssl.recognition.recognizer import Recognizer

SECONDS = (2.0, 0.4, 3.13, 0.71)
ATTENTIVE = {"initializer_range": 0.1}  # distant frames count too


def save_recognizer(name: str, folder: Path, **overrides) -> Recognizer:
    """A random model that is sure of itself: nearly every frame says another letter."""
    waves = [speech_like(seconds, seed) for seed, seconds in enumerate(SECONDS)]
    extractor = SpeechSSLFeatureExtractor()
    extractor.fit_normalization((torch.from_numpy(wave)[None], torch.tensor([len(wave)])) for wave in waves)
    processor = build_ctc_processor(["abcdefghijklmnopqrstuvwxyz"], extractor)
    size = {"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    model = FAMILIES[name].build("ctc", **size, **overrides)
    with torch.no_grad():
        model.ctc_head.weight.mul_(100)
        model.ctc_head.bias[processor.tokenizer.word_delimiter_token_id] = 15.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Recognizer(model, processor)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, tuple[Recognizer, str]]:
    folders = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    return {name: (save_recognizer(name, folder), str(folder)) for name, folder in folders.items()}


@pytest.fixture
def talks(tmp_path) -> list[Path]:
    """Four files, in two folders and three formats."""
    paths = [tmp_path / "talks" / name for name in ("a.wav", "b.flac", "day 2/a.ogg", "day 2/c.wav")]
    (tmp_path / "talks" / "day 2").mkdir(parents=True)
    for seed, (path, seconds) in enumerate(zip(paths, SECONDS, strict=True)):
        soundfile.write(path, speech_like(seconds, seed), 16_000)
    (tmp_path / "talks" / "notes.txt").write_text("no audio")
    return paths


def long_file(path: Path, seconds: float, rate: int = 16_000) -> np.ndarray:
    soundfile.write(path, np.clip(8 * speech_like(seconds), -1, 1), rate)
    return load_audio(path)


class KeptFrames(Decoder[list[torch.Tensor]]):
    """A decoder that keeps the log-probabilities of the last utterance, and writes nothing."""

    def start(self) -> list[torch.Tensor]:
        self.kept: list[torch.Tensor] = []
        return self.kept

    def step(self, states, frames, lengths) -> None:
        for state, row, length in zip(states, frames, lengths, strict=True):
            state.append(row[:length])

    def hypothesis(self, state) -> StreamingText:
        return StreamingText("", "")

    def finish(self, state) -> list[Hypothesis]:
        return [Hypothesis("", 0.0, [])]


def kept_frames(recognizer: Recognizer, samples: SampleWindow, **options) -> torch.Tensor:
    """The log-probabilities (T, V) that a decoder gets of a recording in pieces."""
    decoder = KeptFrames()
    LongFormRecognizer(recognizer, decoder, **options).recognize(samples)
    return torch.cat(decoder.kept)


def pieces(recognizer: Recognizer, path: Path, **options) -> torch.Tensor:
    return kept_frames(recognizer, SampleWindow(stream_audio(path)), **options)


@pytest.mark.parametrize("seconds", [3.0, 3.01, 5.0, 7.0, 11.33, 20.013])
@pytest.mark.parametrize("batch_seconds", [1.0, 7.0])
def test_windows_are_the_whole_where_the_model_sees_no_further(tmp_path, seconds: float, batch_seconds: float) -> None:
    """3 layers that each see 1 + 2 frames to either side: 9 frames of 20 ms."""
    recognizer = save_recognizer("birq", tmp_path, attention_window=2, **ATTENTIVE)
    wave = long_file(tmp_path / "a.flac", seconds)
    [whole], _ = recognizer.decoder_frames([wave])
    in_pieces = pieces(recognizer, tmp_path / "a.flac", batch_seconds=batch_seconds, window_seconds=3.0)
    torch.testing.assert_close(in_pieces, whole, atol=1e-3, rtol=0)  # weights times 100


def test_too_little_context_shows(tmp_path) -> None:
    """A sixth of a second are 8 frames."""
    recognizer = save_recognizer("birq", tmp_path, attention_window=2, initializer_range=0.3)
    wave = long_file(tmp_path / "a.flac", 7.0)
    [whole], _ = recognizer.decoder_frames([wave])
    assert (pieces(recognizer, tmp_path / "a.flac", window_seconds=1.0) - whole).abs().max() > 0.01


@every_family
def test_windows_keep_every_frame(family, tmp_path, saved) -> None:
    """Whatever the model sees, no frame is lost, none is there twice."""
    recognizer, _ = saved[family.config.model_type]
    for samples in (16_000 * 3, 16_000 * 3 + 1, 16_000 * 4 + 123, 16_000 * 5, 16_000 * 7 + 639, 16_000 * 7 + 640):
        wave = speech_like(samples / 16_000)
        assert (
            len(kept_frames(recognizer, SampleWindow([wave]), window_seconds=3.0))
            == recognizer.decoder_frames([wave])[1][0]
        )


@pytest.mark.parametrize("options", [{}, {"num_lookahead_chunks": 0}, {"left_context_chunks": 2}])
@pytest.mark.parametrize("seconds", [3.0, 5.04, 7.333])
def test_chunks_of_a_long_file_are_those_of_the_whole(tmp_path, options, seconds: float) -> None:
    recognizer = save_recognizer("chunkssl", tmp_path, **options, **ATTENTIVE)
    wave = long_file(tmp_path / "a.flac", seconds)
    [whole], _ = recognizer.decoder_frames([wave], chunk_duration_ms=160)
    in_pieces = pieces(recognizer, tmp_path / "a.flac", chunk_duration_ms=160)
    torch.testing.assert_close(in_pieces, whole, atol=1e-3, rtol=0)


def test_a_bounded_past_forgets_and_only_that(tmp_path) -> None:
    """With 2 s of past the first 2 s are those of the whole, later ones are not."""
    recognizer = save_recognizer("chunkssl", tmp_path, **ATTENTIVE)
    wave = long_file(tmp_path / "a.flac", 6.0)
    [whole], _ = recognizer.decoder_frames([wave], chunk_duration_ms=160)
    difference = (
        (pieces(recognizer, tmp_path / "a.flac", chunk_duration_ms=160, window_seconds=2.0) - whole).abs().amax(-1)
    )
    assert difference[:52].max() < 1e-3 and difference[52] > 0.01


@every_family
@pytest.mark.parametrize("chunk_duration_ms", [0, 160])
def test_batches_are_one_by_one_and_in_order(family, tmp_path, saved, talks, chunk_duration_ms: int) -> None:
    if chunk_duration_ms and family.config.model_type == "birq":
        pytest.skip("BiRQ takes whole utterances")
    recognizer, _ = saved[family.config.model_type]
    long_file(tmp_path / "long.wav", 4.0)
    soundfile.write(tmp_path / "short.wav", speech_like(0.026), 16_000)
    sources = [str(path) for path in [*talks[:2], tmp_path / "short.wav", tmp_path / "long.wav", *talks[2:]]]
    results = {}
    done = []
    for batch_seconds in (0.1, 5.0, 60.0):
        long_form = LongFormRecognizer(
            recognizer, None, chunk_duration_ms, batch_seconds, window_seconds=3.5, progress=done.append
        )
        results[batch_seconds] = list(long_form.transcribe(sources))
    first = results[0.1]
    assert [result.name for result in first] == sources
    assert isinstance(first[2], AudioError) and first[2].reason == "too short"
    for others in results.values():
        for one, other in zip(first, others, strict=True):
            assert str(one) == str(other) if isinstance(one, AudioError) else same(one, other)
    transcripts = [one for one in first if not isinstance(one, AudioError)]
    assert all(len(one.hypotheses[0].text) > 5 for one in transcripts)
    assert sum(one.seconds for one in transcripts) * 3 == pytest.approx(sum(done))
    alone = recognizer.recognize([load_audio(talks[2])], chunk_duration_ms=chunk_duration_ms)[0][0]
    assert first[4].hypotheses[0].text == alone.text


def same(one, other) -> bool:
    a, b = one.hypotheses[0], other.hypotheses[0]
    return (one.seconds, a.text, a.words) == (other.seconds, b.text, b.words)


def run(saved, *arguments: str, name: str = "birq") -> int:
    return main(["transcribe", *arguments, "--model_name_or_path", saved[name][1]])


def test_text_lines(saved, talks, capsys) -> None:
    recognizer, _ = saved["birq"]
    wanted = [" ".join(recognizer.recognize([load_audio(path)])[0][0].text.split()) for path in talks]
    assert run(saved, str(talks[0])) == 0
    assert capsys.readouterr().out == wanted[0] + "\n"
    assert run(saved, str(talks[0].parent)) == 0
    printed = capsys.readouterr()
    assert printed.out == "".join(f"{path}\t{text}\n" for path, text in zip(talks, wanted, strict=True))
    assert printed.err.splitlines()[-1].startswith("4 files, 6.2 s of audio in ") and "s of audio [" not in printed.err


def test_json_lines(saved, talks, capsys) -> None:
    recognizer, _ = saved["birq"]
    assert run(saved, *map(str, talks), "--format", "json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["file"] for record in records] == [str(path) for path in talks]
    assert [record["duration"] for record in records] == [2.0, 0.4, 3.13, 0.71]
    for record, path in zip(records, talks, strict=True):
        [[reading]] = recognizer.recognize([load_audio(path)])
        assert record["text"] == " ".join(reading.text.split()) and record["score"] == pytest.approx(
            reading.score, abs=1e-2
        )
        assert " ".join(word["word"] for word in record["words"]) == record["text"]
        times = [time for word in record["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times) and times[-1] <= record["duration"]
        assert times[:2] == [pytest.approx(reading.words[0].start, abs=1e-3), pytest.approx(reading.words[0].end)]


def test_json_holds_the_other_readings_that_are_asked_for(saved, talks, capsys) -> None:
    pytest.importorskip("flashlight.lib.text")
    recognizer, _ = saved["birq"]
    assert run(saved, str(talks[1]), "--format", "json", "--num_best", "3") == 0
    record = json.loads(capsys.readouterr().out)
    decoder = make_decoder(recognizer.tokenizer, recognizer.seconds_per_frame, DecodingOptions(), num_best=3)
    [readings] = recognizer.recognize([load_audio(talks[1])], decoder)
    found = [(one["text"], one["score"]) for one in (record, *record["alternatives"])]
    assert found == [(" ".join(one.text.split()), pytest.approx(one.score, abs=1e-2)) for one in readings]
    assert len({text for text, _ in found}) == 3


@pytest.mark.parametrize(("format", "parse"), [("srt", parse_srt), ("vtt", parse_vtt)])
def test_subtitles_in_a_folder(saved, talks, tmp_path, format: str, parse, capsys) -> None:
    """Sub-folders are kept, so that both files of the same name are there; an old output is replaced."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"a.{format}").write_text("old")
    assert run(saved, str(tmp_path / "talks"), "--format", format, "--output_dir", str(tmp_path / "out")) == 0
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == [f"a.{format}", f"b.{format}", f"day 2/a.{format}", f"day 2/c.{format}"]
    recognizer, _ = saved["birq"]
    for name, path in (("a", talks[0]), ("day 2/a", talks[2])):
        cues = parse((tmp_path / "out" / f"{name}.{format}").read_text(encoding="utf-8"))
        said = "".join("".join(lines) for _, _, lines in cues)
        assert said.replace(" ", "") == recognizer.recognize([load_audio(path)])[0][0].text.replace(" ", "")
        assert cues[-1][0] <= 1000 * len(load_audio(path)) / 16_000
    assert capsys.readouterr().out == ""


def test_bad_files_are_named_and_the_others_go_on(saved, talks, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.wav").write_text("no audio")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    truncated = tmp_path / "truncated.wav"
    truncated.write_bytes(talks[0].read_bytes()[:20_000])
    bad = ["broken.wav", "none.wav", "silent.wav", "truncated.wav", "empty", "*.mp3"]
    assert run(saved, *(str(tmp_path / one) for one in bad), str(talks[0]), str(talks[3])) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3 and f"{tmp_path / 'silent.wav'}\t\n" in printed.out
    for name, reason in zip(
        bad, ["not audio", "missing", "silent", "truncated", "no audio in", "no audio"], strict=True
    ):
        [line] = [line for line in printed.err.splitlines() if str(tmp_path / name) in line]
        assert reason in line
    assert printed.err.splitlines()[-1] == "hf-speech-ssl: 5 of 8 files failed; the lines above say why."


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no file names that are not UTF-8")
@pytest.mark.parametrize(
    "options", [(), ("--format", "json"), ("--output_dir", "out"), ("--format", "json", "--output_dir", "out")]
)
def test_a_file_name_that_is_not_utf_8_is_one_of_the_batch(saved, tmp_path, monkeypatch, capsys, options) -> None:
    monkeypatch.chdir(tmp_path)
    Path("talks").mkdir()
    names = ["a.wav", os.fsdecode(b"caf\xe9.wav"), "z.wav", "\u4e2d\u6587.wav"]
    for name in names:
        soundfile.write(os.fsencode(f"talks/{name}"), speech_like(0.7), 16_000)
    assert run(saved, "talks", *options) == 0
    printed = capsys.readouterr()
    assert "4 files" in printed.err and "Traceback" not in printed.err
    if "out" in options:
        assert len(os.listdir("out")) == 4 and not any(
            name.endswith((".part", ".partial")) for name in os.listdir("out")
        )
    else:
        assert len(printed.out.splitlines()) == 4


def test_what_a_folder_holds_beside_its_audio_is_named(saved, talks, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "talks" / "interview.m4a").write_bytes(b"any")
    monkeypatch.setattr("hf_speech_ssl.data.audio_files.has_ffmpeg", lambda: False)
    assert run(saved, str(tmp_path / "talks"), "--output_dir", str(tmp_path / "out")) == 0
    error = capsys.readouterr().err
    assert "1 file left out (for ffmpeg, which is not installed), such as interview.m4a" in error
    assert "1 file left out (no audio by name): 1 .txt" in error and "4 files," in error


def test_an_output_that_cannot_be_written_is_the_failure_of_its_file(saved, talks, tmp_path, capsys) -> None:
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    assert run(saved, str(talks[0]), str(talks[1]), "--output_dir", str(tmp_path / "out")) == 1
    printed = capsys.readouterr()
    assert str(talks[0]) in printed.err and "1 of 2 files failed" in printed.err
    assert (tmp_path / "out" / "b.txt").is_file()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are needed")
def test_pipes_are_read_once(saved, talks, tmp_path, monkeypatch, capsys) -> None:
    """A named pipe, and standard input as `-`; what is in them is a file of any format."""
    recognizer, _ = saved["birq"]
    expected = [" ".join(recognizer.recognize([load_audio(path)])[0][0].text.split()) for path in talks[:2]]
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(talks[0].read_bytes()))
    writer.start()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(talks[1].read_bytes())))
    assert run(saved, str(tmp_path / "pipe"), "-", "--output_dir", str(tmp_path / "out")) == 0
    writer.join()
    found = [(tmp_path / "out" / f"{name}.txt").read_text().strip() for name in ("pipe", "standard-input")]
    assert found == expected


def test_what_cannot_work_is_refused_before_the_work(saved, talks, tmp_path, capsys) -> None:
    out = ("--output_dir", str(tmp_path / "out"))
    for arguments, message in (
        ([str(tmp_path / "*.wav")], "no audio file matches"),
        ([str(talks[0]), str(talks[2]), *out], "would both be written to"),
        ([str(talks[0]), str(talks[1]), "--format", "srt"], "cannot share standard output"),
        ([str(talks[0]), "--output_dir", str(talks[1])], "b.flac"),
        ([str(talks[0]), "--chunk_duration_ms", "320"], "Chunk SSL takes both"),
        ([str(talks[0]), "--batch_seconds", "0"], "batch_seconds must be a positive number"),
        ([str(talks[0]), "--window_seconds", "0.5"], "window_seconds must be a number of at least 1"),
        ([str(talks[0]), "--window_seconds", "inf"], "window_seconds must be a number of at least 1"),
        ([str(talks[0]), "--beam_size", "-3"], "beam_size must be at least 1"),
        ([str(talks[0]), "--num_best", "3"], "give --format json"),
        ([str(talks[0]), "--lm_path", str(tmp_path / "none.arpa")], "none.arpa"),
        ([str(talks[0]), "--device", "abacus"], "abacus"),
    ):
        assert run(saved, *arguments) == 1
        printed = capsys.readouterr()
        assert message in printed.err and "Traceback" not in printed.err and printed.out == ""
    assert run(saved, str(talks[0]), "--chunk_duration_ms", "50", name="chunkssl") == 1
    assert "whole number of encoder frames of 40 ms, got 50 ms" in capsys.readouterr().err


def test_subtitles_need_word_times(saved, talks, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("hf_speech_ssl.decoding.text.WordText.finished", lambda text: ("a b", None))
    assert run(saved, str(talks[0]), "--format", "vtt") == 1
    assert "Subtitles need word times" in capsys.readouterr().err
    assert run(saved, str(talks[0]), "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["words"] is None


def test_a_lexicon_is_obeyed(saved, talks, tmp_path, capsys) -> None:
    pytest.importorskip("flashlight.lib.text")
    (tmp_path / "words.txt").write_text("a\nbe\nsee\nyou\n")
    assert run(saved, str(talks[0]), "--lexicon_path", str(tmp_path / "words.txt")) == 0
    assert set(capsys.readouterr().out.split()) <= {"a", "be", "see", "you"}


def test_finding(talks, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talks" / ".cache").mkdir()
    for name in ("talks/.cache/x.wav", "talks/._a.wav", "odd [1].wav", "talks/UPPER.WAV"):
        (tmp_path / name).write_bytes(b"")
    below = {"a.wav", "b.flac", "day 2/a.ogg", "day 2/c.wav", "UPPER.WAV"}
    for sources, wanted in (
        (["talks"], below),
        (["talks/*.wav"], {"a.wav"}),
        (["talks/**/*.wav", "talks/a.wav", f"{tmp_path}/talks/a.wav"], {"a.wav", "c.wav"}),
        (["ta*"], below),
        (["odd [1].wav"], {"odd [1].wav"}),
        (["talks/notes.txt", "https://host/x/talk.mp3"], {"notes.txt", "talk.mp3"}),
    ):
        found = find_audio_files(sources)
        assert {str(file.below) for file in found.files} == wanted and len(found.files) == len(wanted)
        assert found.problems == []
    [problem] = find_audio_files(["talks/*.txt", "talks"]).problems
    assert problem.startswith("talks/*.txt: no audio file matches") and ".flac" in problem


MEASURE = """
import resource, sys
from hf_speech_ssl.recognition.long_form import LongFormRecognizer
from hf_speech_ssl.recognition.recognizer import Recognizer
recognizer = Recognizer.from_pretrained(sys.argv[1], device="cpu")
long_form = LongFormRecognizer(recognizer, chunk_duration_ms=int(sys.argv[2]))
for path in sys.argv[3:]:
    [result] = long_form.transcribe([path])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(result.hypotheses[0].words), result.seconds)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chunk_duration_ms"), [("birq", 0), ("chunkssl", 0), ("chunkssl", 1280)])
def test_memory_does_not_grow_with_the_file(saved, tmp_path, name: str, chunk_duration_ms: int) -> None:
    """The peak of 30 minutes after that of 5, in one process: read whole, the samples alone would be 96 MiB more."""
    for minutes in (5, 30):
        with soundfile.SoundFile(tmp_path / f"{minutes}.flac", "w", 16_000, 1) as file:
            for seed in range(minutes):
                file.write(speech_like(60.0, seed))
    paths = [str(tmp_path / f"{minutes}.flac") for minutes in (5, 30)]
    command = [sys.executable, "-c", MEASURE, saved[name][1], str(chunk_duration_ms), *paths]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (small, few, seconds), (large, many, more_seconds) = ([float(one) for one in line.split()] for line in output)
    assert (seconds, more_seconds) == (300, 1800) and many > 3 * few > 0
    assert large - small < 40, output
