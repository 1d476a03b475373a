"""Folders and tables of audio as people have them: every file is used, or counted by its reason."""

import json
import os
import shutil
from pathlib import Path

import pytest
import soundfile
from datasets import Dataset
from helpers import speech_like

from hf_speech_ssl.data.audio_files import NEEDS_FFMPEG, find_audio_files
from hf_speech_ssl.data.batching import SpeechBatches
from hf_speech_ssl.data.corpora import load_corpus, load_corpus_with_report


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    soundfile.write(path, speech_like(0.5), 16_000)
    return path


@pytest.fixture
def fill(tmp_path, speech):
    """Makes files of a corpus: audio by default, else of a text."""

    def make(*names: str, root: str = "corpus", **texts: str) -> str:
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(speech, path)
        return str(tmp_path / root)

    return make


def write(folder: str, name: str, text: str, encoding: str = "utf-8") -> str:
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return str(path)


def names(dataset) -> list[str]:
    return sorted(Path(row["audio"]["path"]).name for row in dataset)


def loaded(folder: str, **options) -> list[str]:
    """The names of the files of a split, which are the same for a stream."""
    map_style = names(load_corpus(folder, **options))
    assert names(load_corpus(folder, streaming=True, **options)) == map_style
    return map_style


# --- which files


def test_split_words_in_file_names_do_not_matter(fill):
    files = [f"rec_{number}.wav" for number in range(4)] + ["train station.wav", "test.wav", "dev set val.wav"]
    folder = fill(*files)
    assert loaded(folder) == sorted(files)
    _, report = load_corpus_with_report(folder)
    assert (report.found, report.used, report.left_out) == (7, 7, {})


def test_only_whole_folders_are_splits(fill):
    folder = fill("val-d-isere/a.wav", "trainer/b.wav", "alice/c.wav")
    assert loaded(folder) == ["a.wav", "b.wav", "c.wav"]
    folder = fill("x/Train/1/a.wav", "x/dev/b.wav", "evaluation/c.wav", "training/d.wav", root="other")
    assert loaded(folder) == ["a.wav", "d.wav"]
    assert loaded(folder, split="validation") == ["b.wav"] and loaded(folder, split="test") == ["c.wav"]
    folder = fill("train-clean-100/a.wav", "dev-clean/b.wav", "train-other-500/c.wav", root="libri")
    assert loaded(folder) == ["a.wav", "c.wav"] and loaded(folder, split="validation") == ["b.wav"]


def test_folders_beside_the_splits_are_named_and_can_be_asked_for(fill):
    folder = fill("train/a.wav", "test/b.wav", "podcasts/c.wav", "podcasts/deep/d.wav")
    dataset, report = load_corpus_with_report(folder)
    assert names(dataset) == ["a.wav"] and report.found == 4 and report.used == 1
    assert "found 4 audio, 1 in the split 'train'; 2 files in the split 'podcasts' (podcasts/c.wav," in str(report)
    assert "1 file in the split 'test' (test/b.wav)" in str(report)
    assert loaded(folder, split="podcasts") == ["c.wav", "d.wav"]
    _, report = load_corpus_with_report(folder, split="train+podcasts")
    assert report.used == 3 and list(report.left_out) == ["in the split 'test'"]
    with pytest.raises(ValueError, match=r"no split 'dev'; its splits are \['podcasts', 'test', 'train'\]"):
        load_corpus(folder, split="dev")


def test_every_ending_that_is_audio_counts(fill):
    files = ["a.wav", "b.Wav", "c.WAVE", "d.aif", "e.oga", "f.sph", "g.nist", "h", "i.recording", "j.wav.1"]
    folder = fill(*files)
    write(folder, "notes", "a text without a suffix")
    write(folder, "notes.unknown", "RIFF")
    assert loaded(folder) == sorted(files)


def test_links_are_followed_and_a_circle_ends(fill, tmp_path):
    folder = fill("train/a.wav")
    fill("b.wav", "deep/c.wav", root="elsewhere")
    os.symlink(tmp_path / "elsewhere", Path(folder) / "train" / "linked")
    os.symlink(Path(folder), Path(folder) / "train" / "linked" / "circle")
    os.symlink(tmp_path / "elsewhere" / "b.wav", Path(folder) / "train" / "d.wav")
    os.symlink(tmp_path / "nowhere.wav", Path(folder) / "train" / "e.wav")
    assert loaded(folder) == ["a.wav", "b.wav", "c.wav", "d.wav", "e.wav"]
    os.symlink(folder, tmp_path / "link to all")
    assert len(loaded(str(tmp_path / "link to all"))) == 5
    batches = SpeechBatches(load_corpus(folder), batch_seconds=5.0)
    assert sum(batch.num_examples for batch in batches.epoch(0)) == 4
    assert batches.skipped.by_reason == {"missing": 1}


def test_a_link_beside_the_splits_does_not_take_their_files(fill):
    folder = fill("train/a.wav", "train/b.wav")
    os.symlink(Path(folder) / "train", Path(folder) / "all")
    assert loaded(folder) == ["a.wav", "b.wav"]


@pytest.mark.parametrize("name", ["Corpus [2021]", "a::b", "100% *?{x}", "übung 中文 'quoted'", "line\nbreak"])
def test_any_name_of_a_folder_will_do(fill, name: str):
    folder = fill("a.wav", "c::d.wav", "e[1].wav", "f\ng.wav", root=name)
    assert len(loaded(folder)) == 4
    batches = SpeechBatches(load_corpus(folder), batch_seconds=5.0)
    assert sum(batch.num_examples for batch in batches.epoch(0)) == 4


@pytest.mark.parametrize("name", ["Corpus [2021]", "a::b"])
@pytest.mark.parametrize("as_file", [False, True])
def test_packed_files_are_found_in_any_folder(tmp_path, speech, name: str, as_file: bool):
    folder = tmp_path / name
    folder.mkdir()
    for split in ("train", "test"):
        table = Dataset.from_dict({"audio": [{"path": None, "bytes": speech.read_bytes()}], "text": [split]})
        table.to_parquet(str(tmp_path / "table.parquet"))  # `datasets` cannot write into such a folder either
        (tmp_path / "table.parquet").rename(folder / f"{split}-00000-of-00001.parquet")
    path = str(folder / "train-00000-of-00001.parquet" if as_file else folder)
    assert load_corpus(path, cache_dir=str(tmp_path / "cache"))["text"][:] == ["train"]
    if not as_file:
        assert load_corpus(path, split="test", cache_dir=str(tmp_path / "cache"))["text"][:] == ["test"]


def test_names_that_are_no_utf_8_are_counted(fill, speech):
    folder = fill("a.wav")
    shutil.copy(speech, os.fsencode(folder) + b"/caf\xe9.wav")
    dataset, report = load_corpus_with_report(folder)
    assert names(dataset) == ["a.wav"] and report.found == 2
    assert list(report.left_out) == ["whose names are not UTF-8: rename them"] and "caf\ufffd.wav" in str(report)


def test_hidden_files_and_those_for_ffmpeg_are_counted(fill, monkeypatch):
    folder = fill("a.wav", "._a.wav", "__MACOSX/b.wav", "memo.m4a")
    monkeypatch.setattr("hf_speech_ssl.data.audio_files.has_ffmpeg", lambda: False)
    _, report = load_corpus_with_report(folder)
    assert report.found == 4 and report.used == 1
    assert {reason: len(paths) for reason, paths in report.left_out.items()} == {"hidden": 2, NEEDS_FFMPEG: 1}
    monkeypatch.setattr("hf_speech_ssl.data.audio_files.has_ffmpeg", lambda: True)
    assert loaded(folder) == ["a.wav", "memo.m4a"]


def test_transcribe_names_what_it_leaves_out(fill, monkeypatch):
    folder = fill("a.wav", "interview.m4a", "talk.mp4", "voice.amr")
    write(folder, "notes.txt", "notes")
    write(folder, "strange.xyz", "no audio")
    monkeypatch.setattr("hf_speech_ssl.data.audio_files.has_ffmpeg", lambda: False)
    notes = " ".join(find_audio_files([folder]).notes())
    assert "3 files left out (for ffmpeg, which is not installed), such as interview.m4a" in notes
    assert "2 files left out (no audio by name): 1 .txt, 1 .xyz" in notes
    monkeypatch.setattr("hf_speech_ssl.data.audio_files.has_ffmpeg", lambda: True)
    assert len(find_audio_files([folder]).files) == 4


# --- metadata


def with_texts(folder: str, header: str = "file_name,text", name: str = "metadata.csv", **options) -> str:
    write(folder, name, f"{header}\na.wav,the first\nb.wav,the second\n", **options)
    return folder


def texts(folder: str, text_column: str = "text", **options) -> list:
    dataset = load_corpus(folder, text_column=text_column, **options)
    rows = sorted(dataset, key=lambda row: row["audio"]["path"])
    assert sorted(
        map(
            str,
            load_corpus(folder, streaming=True, text_column=text_column, **options)[
                "text" if text_column == "text" else text_column
            ],
        )
    ) == sorted(str(row[text_column]) for row in rows)
    return [row[text_column] for row in rows]


def test_metadata_at_the_root_and_splits_below(fill):
    folder = fill("audios/train/a.wav", "audios/validation/b.wav")
    write(folder, "metadata.csv", "file_name,text\naudios/train/a.wav,one\naudios\\validation\\b.wav,two\n")
    assert texts(folder) == ["one"] and texts(folder, split="validation") == ["two"]


def test_a_split_word_in_a_speaker_folder_leaves_the_metadata_alone(fill):
    folder = fill("val-d-isere/a.wav", "bob/b.wav")
    write(folder, "metadata.csv", "file_name,text\nval-d-isere/a.wav,one\nbob/b.wav,two\n")
    assert sorted(texts(folder)) == ["one", "two"]


@pytest.mark.parametrize(
    "word", ["null", "nan", "NaN", "None", "NA", "n/a", "N/A", "NULL", "", "true", "007", "1e5", "1.0"]
)
def test_words_stay_as_they_are_written(fill, word: str):
    folder = fill("a.wav", "b.wav")
    write(folder, "metadata.csv", f"file_name,text\na.wav,{word}\nb.wav,hello\n")
    assert texts(folder) == [word, "hello"]


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("metadata.csv", 'file_name,text\na.wav,"one, two"\nb.wav,three\n', "utf-8-sig"),
        ("metadata.csv", 'file_name;text\r\na.wav;"one, two"\r\nb.wav;three\r\n', "utf-8"),
        ("metadata.csv", "file_name\ttext\na.wav\tone, two\nb.wav\tthree\n", "utf-16"),
        ("metadata.tsv", "file_name\ttext\na.wav\tone, two\nb.wav\tthree", "utf-8"),
        ("Metadata.CSV", 'text,file_name\n"one, two",a.wav\n\nthree,b.wav\n', "utf-8"),
        (
            "metadata.jsonl",
            '{"file_name": "a.wav", "text": "one, two"}\n{"file_name": "b.wav", "text": "three"}\n',
            "utf-8",
        ),
    ],
)
def test_tables_are_read_as_they_are_saved(fill, name: str, text: str, encoding: str):
    folder = fill("a.wav", "b.wav")
    write(folder, name, text, encoding)
    assert texts(folder) == ["one, two", "three"]


@pytest.mark.parametrize("name", ["metadata.tsv", "metadata.csv"])
def test_a_sentence_that_begins_with_a_quotation_mark_swallows_no_line(fill, name: str):
    folder = fill("a.wav", "b.wav", "c.wav", "d.wav")
    separator = "\t" if name.endswith("tsv") else ","
    sentences = ['"Wait', "said he", 'no" she said', 'nothing "else']
    lines = [f"{letter}.wav{separator}{sentence}" for letter, sentence in zip("abcd", sentences, strict=True)]
    write(folder, name, "\n".join([f"file_name{separator}text", *lines]))
    assert texts(folder) == sentences


def test_quoted_line_breaks_of_a_csv_file_stay(fill):
    folder = fill("a.wav", "b.wav")
    write(folder, "metadata.csv", 'file_name,text\na.wav,"one\ntwo, three"\nb.wav,four\n')
    assert texts(folder) == ["one\ntwo, three", "four"]


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("file_name,text\na.wav,caf\u00e9\n", "latin-1", "metadata.csv: line 2 is not UTF-8 text .byte 0xe9.*iconv"),
        ("", "utf-8", "metadata.csv is empty"),
        ("file_name,text\n", "utf-8", "metadata.csv has a header and no rows"),
        ("file_name,text\na.wav,one, two\n", "utf-8", "metadata.csv: line 2 has 3 fields, the header has 2"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(fill, text: str, encoding: str, message: str):
    folder = fill("a.wav")
    write(folder, "metadata.csv", text, encoding)
    with pytest.raises(ValueError, match=message):
        load_corpus(folder)


def test_absolute_paths_missing_files_and_files_that_are_not_listed(fill, tmp_path):
    folder = fill("b.wav", "c.wav")
    outside = fill("a.wav", root="outside")
    write(folder, "metadata.csv", f"file_name,text\n{outside}/a.wav,one\nb.wav,two\ngone.wav,three\n")
    dataset, report = load_corpus_with_report(folder, text_column="text")
    assert names(dataset) == ["a.wav", "b.wav", "gone.wav"]
    assert report.left_out == {"not listed in the metadata": ["c.wav"]}
    batches = SpeechBatches(dataset, batch_seconds=5.0, text_column="text")
    assert sorted(text for batch in batches.epoch(0) for text in batch.texts) == ["one", "two"]
    assert batches.skipped.by_reason == {"missing": 1}


def test_metadata_in_every_split(fill):
    folder = fill("train/a.wav", "train/b.wav", "test/a.wav", "test/b.wav")
    with_texts(folder, name="train/metadata.csv")
    with_texts(folder, name="test/metadata.csv")
    assert texts(folder) == texts(folder, split="test") == ["the first", "the second"]


@pytest.mark.parametrize("beside", [".json", ".txt", ".csv", ".xml", ".tsv"])
def test_files_beside_each_recording_do_not_hide_the_audio(fill, beside: str):
    folder = fill("1/a.wav", "1/b.wav")
    for name in ("a", "b"):
        write(folder, f"1/{name}{beside}", '{"text": "x"}' if beside == ".json" else "words\n1\n")
        write(folder, f"1/{name}.original.txt", "words")
    assert loaded(folder) == ["a.wav", "b.wav"]


def test_a_missing_column_names_the_tables_that_are_not_used(fill):
    folder = fill("clips/a.wav", "clips/b.wav")
    table = write(folder, "train.tsv", 'client_id\tpath\tsentence\n1\ta.wav\tone\n2\tb.wav\t"two\n')
    with pytest.raises(ValueError, match="no column 'text'.*folder of audio files.*train.tsv.*--dataset_name"):
        load_corpus(folder, text_column="text")
    # What the message advises.
    assert texts(table, text_column="sentence") == ["one", '"two']
    write(folder, "metadata.csv", "name|words\na.wav|one\n")
    with pytest.raises(ValueError, match=r"metadata.csv is not used: it has no column file_name"):
        load_corpus(folder, text_column="text")


def test_manifests_of_json_lines(fill, tmp_path):
    audio = fill("a.wav", "b.wav", root="audio")
    rows = [{"audio_filepath": f"{audio}/a.wav", "duration": 0.5, "text": "one"}]
    rows += [{"audio_filepath": "../audio/b.wav", "duration": 0.5, "text": "two", "speaker": 7}]
    folder = str(tmp_path / "manifests")
    manifest = write(folder, "train_manifest.json", "\n".join(map(json.dumps, rows)))
    for source in (manifest, folder):
        for column in ("audio", "audio_filepath"):
            dataset = load_corpus(source, audio_column=column, text_column="text")
            batches = SpeechBatches(dataset, batch_seconds=5.0, audio_column=column, text_column="text")
            assert sorted(text for batch in batches.epoch(0) for text in batch.texts) == ["one", "two"]


def test_an_empty_split_is_an_error_that_says_so(tmp_path):
    Dataset.from_dict({"audio": [], "text": []}).save_to_disk(tmp_path / "saved")
    for streaming in (False, True):
        with pytest.raises(ValueError, match="The split 'train' of .* is empty"):
            load_corpus(str(tmp_path / "saved"), streaming=streaming)


def test_a_cache_that_cannot_be_written_names_the_flag(tmp_path, speech, monkeypatch):
    folder = tmp_path / "packed"
    folder.mkdir()
    Dataset.from_dict({"audio": [str(speech)]}).to_parquet(str(folder / "train.parquet"))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "cache")

    monkeypatch.setattr("hf_speech_ssl.data.builders.load_dataset_builder", refuse)
    with pytest.raises(OSError, match="--dataset_cache_dir"):
        load_corpus(str(folder))


def test_packed_files_and_audio_in_one_folder_are_told_of_each_other(fill, tmp_path, speech):
    folder = fill("a.wav", "b.wav", "c.wav")
    write(folder, "more.zip", "PK")
    _, report = load_corpus_with_report(folder)
    assert report.used == 3 and "1 file not unpacked (1 .zip)" in str(report)
    folder = fill("example.wav", root="packed")
    rows = {"audio": [{"path": None, "bytes": speech.read_bytes()}] * 3, "text": ["a", "b", "c"]}
    Dataset.from_dict(rows).to_parquet(f"{folder}/train.parquet")
    dataset, report = load_corpus_with_report(folder, cache_dir=str(tmp_path / "cache"))
    assert len(dataset) == 3 and "1 audio files lie there unused" in str(report)
    with pytest.raises(ValueError, match="no column 'words'.*builder Parquet.*1 audio files lie there unused"):
        load_corpus(folder, text_column="words", cache_dir=str(tmp_path / "cache"))


def test_files_beside_the_folders_of_splits_are_named(fill):
    _, report = load_corpus_with_report(fill("train/a.wav", "b.wav"))
    assert report.left_out == {"beside the folders of the splits": ["b.wav"]}


def test_audio_that_needs_ffmpeg_alone_is_an_error_that_says_so(fill, monkeypatch):
    monkeypatch.setattr("hf_speech_ssl.data.audio_files.has_ffmpeg", lambda: False)
    with pytest.raises(ValueError, match="found 2 audio, 0 in the split.*2 files for ffmpeg, which is not installed"):
        load_corpus(fill("a.m4a", "b.webm"))


def test_a_manifest_beside_its_audio_is_read_where_its_column_is_named(fill):
    folder = fill("wav/a.wav")
    row = {"audio_filepath": "wav/a.wav", "offset": 0.1, "duration": 0.2, "text": "one"}
    write(folder, "train_manifest.json", json.dumps(row))
    dataset = load_corpus(folder, audio_column="audio_filepath", text_column="text")
    batches = SpeechBatches(dataset, batch_seconds=5.0, audio_column="audio_filepath", text_column="text")
    (batch,) = batches.epoch(0)
    assert batch.texts == ["one"] and batch.lengths.tolist() == [3200]
