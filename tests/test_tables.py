"""Tables that list audio files, as spreadsheets, pandas, macOS and Windows write them."""

import unicodedata
from pathlib import Path

import pytest
import soundfile
from helpers import speech_like

from hf_speech_ssl.data.corpora import load_corpus, load_corpus_with_report
from hf_speech_ssl.data.tables import read_table

NAMES = ("a.wav", "B.WAV", "caf\u00e9.wav")


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in NAMES:
        soundfile.write(tmp_path / name, speech_like(0.3), 16_000, format="WAV")
    return tmp_path


def rows_of(folder: Path, split: str = "train") -> list[tuple[str, str | None]]:
    rows = load_corpus(str(folder), split=split)
    assert all(Path(row["audio"]["path"]).exists() for row in rows)
    return [(Path(row["audio"]["path"]).name, row.get("text", row.get("Text"))) for row in rows]


WANTED = list(zip(NAMES, "xyz", strict=True))
LISTS = {
    "no endings": ("a,x", "B,y", "caf\u00e9,z"),
    "another case": ("A.wav,x", "b.wav,y", "Caf\u00e9.WAV,z"),
    "macOS": ("a.wav,x", "B.WAV,y", unicodedata.normalize("NFD", "caf\u00e9.wav") + ",z"),
    "white space": (" a.wav ,x", "B.WAV ,y", " caf\u00e9.wav,z"),
    "a comma too many": ("a.wav,x,", "B.WAV,y,", "caf\u00e9.wav,z,"),
    "backslashes": (".\\a.wav,x", ".\\B.WAV,y", ".\\caf\u00e9.wav,z"),
}


@pytest.mark.parametrize("case", LISTS)
def test_files_are_found_by_names_that_are_nearly_theirs(folder: Path, case: str) -> None:
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *LISTS[case]]), "utf-8")
    assert rows_of(folder) == WANTED


def test_a_name_that_two_files_nearly_have_is_missing(folder: Path) -> None:
    soundfile.write(folder / "b.wav", speech_like(0.3), 16_000)
    (folder / "metadata.csv").write_text("file_name,text\nb.Wav,x\n")
    (row,) = load_corpus(str(folder))
    assert Path(row["audio"]["path"]).name == "b.Wav"


@pytest.mark.parametrize(
    ("separator", "encoding", "newline"),
    [
        (",", "utf-8-sig", "\r\n"),
        (";", "utf-8-sig", "\r\n"),
        ("\t", "utf-16", "\r\n"),
        (";", "utf-16-le", "\r\n"),
        (",", "utf-16-be", "\n"),
        ("|", "utf-8", "\n"),
    ],
)
def test_tables_of_spreadsheets(folder: Path, separator: str, encoding: str, newline: str) -> None:
    lines = ["File_Name,Text", *(f"{name},{text}" for name, text in WANTED)]
    text = newline.join(lines).replace(",", separator)
    (folder / "metadata.csv").write_bytes(text.encode(encoding))
    assert rows_of(folder) == WANTED


def test_urls_of_local_files(folder: Path) -> None:
    (folder / "metadata.csv").write_text(f"file_name,text\n{(folder / NAMES[2]).as_uri()},x\n")
    dataset, report = load_corpus_with_report(str(folder))
    assert dataset[0]["audio"]["path"] == str(folder / NAMES[2])
    assert report.left_out == {"not listed in the metadata": ["B.WAV", "a.wav"]}


def test_nan_in_json_is_no_word(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "a.wav", "text": NaN}\n{"file_name": "B.WAV", "text": "nan"}\n'
    )
    assert rows_of(folder) == [("a.wav", None), ("B.WAV", "nan")]


def test_columns_of_one_name_are_refused(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text,text\na.wav,x,y\n")
    with pytest.raises(ValueError, match=r"metadata.csv has several columns 'text'"):
        read_table(folder / "metadata.csv")


def test_a_column_of_splits_is_believed(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text,split\na.wav,x,train\nB.WAV,y,dev\ncaf\u00e9.wav,z,test\n")
    assert [rows_of(folder, split) for split in ("train", "validation", "test")] == [[row] for row in WANTED]
    (folder / "metadata.csv").write_text("file_name,text,split\na.wav,x,left\nB.WAV,y,test\ncaf\u00e9.wav,z,\n")
    assert rows_of(folder) == WANTED, "a column that holds something else"


def test_files_that_are_listed_twice_are_named(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text\na.wav,x\na.wav,y\nB.WAV,z\n")
    report = load_corpus_with_report(str(folder))[1]
    assert "1 file listed more than once in the metadata, such as a.wav" in str(report)
    (folder / "metadata.csv").write_text("file_name,text,start,end\na.wav,x,0,0.1\na.wav,y,0.1,0.2\n")
    assert "more than once" not in str(load_corpus_with_report(str(folder))[1])


def test_a_link_to_itself_is_missed_by_name(folder: Path) -> None:
    (folder / "self.wav").symlink_to(folder / "self.wav")
    assert "self.wav" in [Path(row["audio"]["path"]).name for row in load_corpus(str(folder))]


def test_a_folder_of_texts_holds_no_audio(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match=r"holds no audio, no table .* and no data set, but 1 .txt"):
        load_corpus(str(tmp_path))
