"""Latency: formulas against values by hand, and what a stream shows when, against a clock that is made up."""

import numpy as np
import pytest
from live_models import CHUNK_MS, babble, character_parts

from hf_speech_ssl.evaluation.latency import emission_delays, laal, yaal
from hf_speech_ssl.recognition import StreamingTranscriber, latency
from hf_speech_ssl.recognition.latency import LatencyMeter, run_live


def test_laal_by_hand():
    # 4 s, 4 words: ideal at 0, 1, 2, 3 s; the last word came when all had been heard
    assert laal([1.0, 2.0, 3.0, 4.0], 4.0, 4) == pytest.approx(1.0)
    # the words behind the first late one do not count: (1 - 0 + 4 - 1) / 2
    assert laal([1.0, 4.0, 4.0, 4.0], 4.0, 4) == pytest.approx(2.0)
    # more was written than said: ideal at 0, 0.5, 1, ...: (1 + 1.5 + 3 + 2.5) / 4
    assert laal([1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0], 4.0, 2) == pytest.approx((1 + 1.5 + 3) / 3)
    assert laal([4.5, 5.0], 4.0, 2) == 4.5
    assert laal([], 4.0, 2) is None


def test_yaal_by_hand():
    assert yaal([1.0, 2.0, 3.0, 4.0], 4.0, 4) == pytest.approx(1.0)  # three words, each 1 s late
    assert yaal([1.0, 4.0, 4.0, 4.0], 4.0, 4) == pytest.approx(1.0)  # of the others nothing is known
    assert yaal([1.0, 2.0], 4.0, 4) == pytest.approx((1 + 2 - 1) / 2)
    assert yaal([4.0, 4.0], 4.0, 2) is None
    assert yaal([], 4.0, 2) is None


def test_delays_of_the_words_that_are_right():
    delays = emission_delays(
        ["a", "x", "c", "new", "d"], [1.0, 2.0, 3.0, 3.5, 4.0], ["a", "b", "c", "d"], [0.5, 1.0, 2.8, 3.0]
    )
    assert delays == pytest.approx([0.5, 0.2, 1.0])


class ScriptedBatch:
    num_steps = 0


class Scripted:
    """Shows a text after so many blocks, each of which takes 30 ms to compute."""

    def __init__(self, script: dict[int, str], clock: list[float]):
        self.script, self.clock, self.blocks, self.text, self.batch = script, clock, 0, "", ScriptedBatch()

    def accept(self, samples):
        self.blocks += 1
        self.clock[0] += 0.03
        if self.blocks in self.script:
            self.text, self.batch.num_steps = self.script[self.blocks], self.batch.num_steps + 1
        return type("Text", (), {"text": self.text})

    def finish(self):
        self.clock[0] += 0.1
        return self.script[-1]

    def events(self):
        return []


def test_the_clock_of_a_live_stream(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    script = {1: "one", 3: "one too", 5: "one two", 6: "one two three", -1: "one two three four"}
    run = run_live(Scripted(script, clock), np.zeros(10 * 320, np.float32))
    assert run.words == ["one", "two", "three", "four"]
    assert run.heard == pytest.approx([0.02, 0.1, 0.12, 0.2])
    # blocks of 20 ms take 30 ms: the computation falls behind
    assert run.shown == pytest.approx([0.05, 0.02 + 5 * 0.03, 0.02 + 6 * 0.03, 0.02 + 10 * 0.03 + 0.1])
    assert run.end == pytest.approx(0.2) and run.final == pytest.approx(0.42)
    assert run.steps == pytest.approx([0.03] * 4)


def test_a_meter_measures_streams():
    transcriber = StreamingTranscriber(*character_parts(seed=26), CHUNK_MS)
    meter = LatencyMeter(transcriber)
    samples = babble(1.5, 1)
    words = transcriber.batch.model and run_live(transcriber, samples).words
    ends = np.linspace(0.2, 1.4, len(words)).tolist()
    run = meter.add(samples, words, ends)
    assert run.end == pytest.approx(1.4) and len(run.heard) == len(run.shown) == len(run.words)
    assert run.heard == sorted(run.heard) and all(a <= b for a, b in zip(run.heard, run.shown, strict=True))
    figures = meter.figures()
    assert figures["final_delay"]["median"] > 0 and figures["step"]["p99"] >= figures["step"]["median"] > 0
    assert figures["laal_computed"] >= figures["laal"] > 0
    meter.add(samples, words)
    assert len(meter._finals) == 2 and len(meter._delays) <= len(words)
