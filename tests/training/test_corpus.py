"""What a run says of its corpus before the first update."""

import numpy as np
import pytest
import soundfile
from accelerate import Accelerator
from helpers import speech_like

from hf_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.evaluation import normalize_text
from hf_speech_ssl.training.corpus import Corpus, estimate_normalization
from hf_speech_ssl.training.settings import DataSettings


@pytest.fixture
def folder(tmp_path):
    """Two recordings of 8 s, one of 0.5 s and a silent one, in a folder with a split word in one name."""
    for name, samples in (
        ("a.wav", speech_like(8.0)),
        ("train station.wav", speech_like(8.0, 1)),
        ("c.wav", speech_like(0.5)),
        ("d.wav", np.zeros(8_000)),
    ):
        soundfile.write(tmp_path / name, samples, 16_000)
    return tmp_path


def load(folder, text_column: str | None = None, **settings) -> Corpus:
    return Corpus.load(DataSettings(dataset_name=str(folder), **settings), Accelerator(cpu=True), text_column)


def test_long_recordings_are_all_of_a_newcomers_data_and_none_is_lost(folder, capsys):
    corpus = load(folder, max_duration_in_seconds=3.0)
    assert "found 4 audio, 4 in the split 'train'" in capsys.readouterr().out
    batches = corpus.train_batches(Accelerator(cpu=True), seed=0)
    assert sum(batch.seconds for batch in batches.epoch(0)) == pytest.approx(16.5, abs=0.01)
    assert batches.skipped.by_reason == {"silent": 1}


def test_normalization_says_why_there_is_no_audio(folder):
    corpus = load(folder, min_duration_in_seconds=20.0, max_duration_in_seconds=30.0)
    with pytest.raises(ValueError, match="could not be estimated: .* 4 audio files skipped: 4 too short"):
        estimate_normalization(SpeechSSLFeatureExtractor(), corpus.sample_batches(0), 9.0, Accelerator(cpu=True))


def test_transcripts_are_read_by_their_own_rules(folder):
    (folder / "metadata.csv").write_text('file_name,text\na.wav,Null!\nc.wav,...\n"train station.wav",7\n')
    corpus = load(folder, "text")
    found = corpus.transcripts(corpus.train, normalize_text)
    assert sorted(found.texts) == ["7", "null"] and found.remark().startswith("1 transcripts are empty")
    (folder / "metadata.csv").write_text("file_name,text\na.wav\nc.wav\n")
    with pytest.raises(ValueError, match="Column 'text' has no transcript: 2 rows without a text"):
        corpus = load(folder, "text")
        corpus.transcripts(corpus.train, normalize_text)
