"""What libmpg123 writes to standard error from C: caught, and said in one line that names the file."""

import io
import logging
import os
import signal
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest
import soundfile
from helpers import speech_like

from hf_speech_ssl.data.audio import SAMPLING_RATE, AudioError, audio_duration, load_audio
from hf_speech_ssl.data.audio_stream import stream_audio
from hf_speech_ssl.data.containers.mpeg import read_header
from hf_speech_ssl.data.native_messages import without_libmpg123

needs_own_descriptors = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has threads of that kind")


def broken_mp3s() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    soundfile.write(buffer, speech_like(4.0), SAMPLING_RATE, format="MP3")
    whole = buffer.getvalue()
    flipped, place = bytearray(whole), 0
    while (header := read_header(whole, place)) is not None:
        if place > 2000:
            flipped[place + 6] ^= 0xFF  # the lengths of a frame's parts
        place += header.size
    middle = len(whole) // 2
    return {
        "flipped": bytes(flipped),
        "overwritten": whole[:middle] + rng.bytes(1500) + whole[middle + 1500 :],
        "a hole": whole[:middle] + whole[middle + 1500 :],
        "junk": whole[:middle] + rng.bytes(3000) + whole[middle:],
    }


@needs_own_descriptors
@pytest.mark.parametrize("case", broken_mp3s())
def test_libmpg123_is_quiet_and_others_are_not(case: str, capfd, caplog) -> None:
    data = broken_mp3s()[case]
    with suppress(soundfile.SoundFileError), soundfile.SoundFile(io.BytesIO(data)) as file:
        file.read()
    noise = capfd.readouterr().err
    assert "libmpg123" in noise or "Note: " in noise  # what this test is about

    stop = threading.Event()

    def write_on() -> None:
        while not stop.wait(0.0005):
            os.write(2, b"another thread\n")

    other = threading.Thread(target=write_on, daemon=True)
    other.start()
    refusal = ""
    try:
        load_audio(data, name="call.mp3")
    except AudioError as error:
        refusal = str(error)
    finally:
        stop.set()
        other.join()
    lines = capfd.readouterr().err.splitlines()
    assert lines and set(lines) == {"another thread"}
    named = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert all(name.startswith("call.mp3: damaged MP3") for name in named)
    assert (len(named) == 1 and not refusal) or refusal.startswith("call.mp3: truncated")

    with suppress(AudioError):
        list(stream_audio(data))
    with suppress(AudioError):
        audio_duration(data)
    assert capfd.readouterr().err == ""


@needs_own_descriptors
def test_what_others_write_during_the_call_is_passed_on(capfd) -> None:
    def call() -> int:
        os.write(2, b"[src/libmpg123/layer3.c:f():1] error: dequantization failed!\nTraceback of a callback\n")
        os.write(2, b"\nWarning: Xing stream size off by more than 1%\n")
        return 7

    assert without_libmpg123(call) == (7, ["dequantization failed!", "Xing stream size off by more than 1%"])
    os.write(2, b"behind it\n")
    assert capfd.readouterr().err == "Traceback of a callback\nbehind it\n"


def test_interruptions_come_when_the_call_is_over() -> None:
    ended = []

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        ended.append(sum(range(100_000)))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            without_libmpg123(interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended


@pytest.mark.parametrize("begins", [True, False])
def test_an_interruption_while_the_thread_starts(begins: bool, monkeypatch) -> None:
    """A call that has begun is waited for, one that has not never begins."""
    start, begun, ended = threading.Thread.start, threading.Event(), []

    def call() -> None:
        begun.set()
        ended.append(sum(range(1_000_000)))

    def interrupted(thread: threading.Thread) -> None:
        if begins:
            start(thread)
            begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        without_libmpg123(call)
    assert bool(ended) == begins


def test_errors_come_when_the_call_is_over() -> None:
    with pytest.raises(ZeroDivisionError):
        without_libmpg123(lambda: 1 / 0)


def test_files_that_the_call_opens_work(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("here")
    with path.open() as file:
        assert without_libmpg123(lambda: (file.read(), path.read_text()))[0] == ("here", "here")
        assert file.seek(0) == 0  # its descriptor is still open


@pytest.mark.parametrize("missing", ["the system call", "files in memory"])
def test_where_threads_cannot_have_descriptors_of_their_own_mp3s_are_read_too(missing: str, monkeypatch) -> None:
    expected = load_audio(broken_mp3s()["flipped"])
    if missing == "files in memory":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    else:
        monkeypatch.setattr("hf_speech_ssl.data.native_messages._CLOSE_RANGE", -1)
    np.testing.assert_array_equal(load_audio(broken_mp3s()["flipped"]), expected)
