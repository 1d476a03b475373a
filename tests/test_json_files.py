"""JSON as it is written: finite, without folders, whole or not at all."""

import json
import math
import os
import threading

import pytest

from hf_speech_ssl.json_files import is_hub_id, json_text, read_json, without_folders, write_json


def test_numbers_that_are_not_finite_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"x": [math.nan, (math.inf, 1.5)], "y": -math.inf})
    assert "NaN" not in (tmp_path / "a.json").read_text()
    assert read_json(tmp_path / "a.json") == {"x": [None, [None, 1.5]], "y": None}


PATHS = {
    ("anything", "/data/ana/calls"): "calls",
    ("anything", "C:\\Users\\ana\\calls"): "calls",
    ("anything", "../ana/calls/"): "calls",
    ("anything", "~ana/calls"): "calls",
    ("output_dir", "ana/run"): "run",
    ("lm_path", "ana/4gram.arpa"): "4gram.arpa",
    ("dataset_name", "ana/outputs/calls"): "calls",
    ("model_name_or_path", "someone/birq-base"): "someone/birq-base",
    ("dataset_name", "openslr/librispeech_asr"): "openslr/librispeech_asr",
    ("split", "validation/clean"): "validation/clean",
    ("resume_from_checkpoint", "last"): "last",
    ("reference", "and / or"): "and / or",
    ("hypothesis", "/ the slash is read"): "/ the slash is read",
    ("decoder", "greedy decoding"): "greedy decoding",
}


@pytest.mark.parametrize(("field", "value"), PATHS)
def test_paths_lose_their_folders_and_nothing_else_does(field, value):
    assert without_folders({"a": [{field: value}]}) == {"a": [{field: PATHS[field, value]}]}
    assert without_folders({field: [value]}) == {field: [PATHS[field, value]]}


def test_a_folder_here_is_no_id_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("ana/calls")
    (tmp_path / "ana" / "calls").mkdir(parents=True)
    assert not is_hub_id("ana/calls") and without_folders({"dataset": "ana/calls"}) == {"dataset": "calls"}


def test_a_file_name_that_is_not_utf_8_is_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    write_json(tmp_path / "a.json", {"file": name, "text": "überall"})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"file": name, "text": "überall"}
    assert "überall" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1} and [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_named_pipe_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    write_json(tmp_path / "pipe", {"x": 1})
    reader.join(timeout=10)
    assert got == [json_text({"x": 1}, indent=2)] and (tmp_path / "pipe").is_fifo()
