"""Subtitles hold all words in order, on times that do not overlap, in lines that can be read."""

import html
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_speech_ssl.decoding import TimedText
from hf_speech_ssl.recognition.subtitles import CueStream, format_srt, format_vtt, make_cues

TIME = r"(\d{2,}):([0-5]\d):([0-5]\d)%s(\d{3})"


def milliseconds(clock: str, separator: str) -> int:
    hours, minutes, seconds, rest = map(int, re.fullmatch(TIME % separator, clock).groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def parse_blocks(blocks: list[str], separator: str) -> list[tuple[int, int, list[str]]]:
    parsed = []
    for block in blocks:
        timing, *lines = block.split("\n")
        start, arrow, end = timing.split(" ")
        assert arrow == "-->" and lines and all(lines)
        parsed.append((milliseconds(start, separator), milliseconds(end, separator), lines))
    return parsed


def parse_srt(text: str) -> list[tuple[int, int, list[str]]]:
    if not text:
        return []
    assert text.endswith("\n") and not text.endswith("\n\n")
    blocks = text[:-1].split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == [str(n + 1) for n in range(len(blocks))]
    return parse_blocks([block.split("\n", 1)[1] for block in blocks], ",")


def parse_vtt(text: str) -> list[tuple[int, int, list[str]]]:
    head, *blocks = text.removesuffix("\n").split("\n\n")
    assert head == "WEBVTT"
    cues = parse_blocks(blocks, r"\.")
    assert all(not re.search(r"[<>]|&(?!amp;|lt;|gt;)", line) for _, _, lines in cues for line in lines)
    return [(start, end, [html.unescape(line) for line in lines]) for start, end, lines in cues]


def spoken(text: str, seconds: float = 0.3, pause: float = 0.05, start: float = 0.0) -> list[TimedText]:
    step = seconds + pause
    return [TimedText(word, start + i * step, start + i * step + seconds) for i, word in enumerate(text.split(" "))]


WORDS = st.lists(
    st.tuples(
        st.text(st.sampled_from("ab<>&-é.字 \n"), min_size=0, max_size=60),
        st.floats(-0.1, 12.0),  # pause before it: beam searches may let words overlap
        st.one_of(st.just(0.0), st.floats(0.0, 12.0)),
    ),
    max_size=40,
)


@given(WORDS)
@settings(max_examples=300, deadline=None)
def test_whatever_the_words_are(drawn) -> None:
    words, now = [], 0.0
    for text, pause, seconds in drawn:
        start = max(0.0, now + pause)
        words.append(TimedText(text, start, start + seconds))
        now = start + seconds
    cues = make_cues(words)
    srt, vtt = parse_srt(format_srt(cues)), parse_vtt(format_vtt(cues))
    assert [cue[:2] for cue in srt] == [cue[:2] for cue in vtt]
    assert not any("-->" in line for _, _, lines in srt for line in lines)
    said = "".join("".join(lines) for _, _, lines in vtt)
    assert re.sub(r"\s", "", said) == re.sub(r"\s", "", "".join(word.text for word in words))
    before = 0
    for start, end, lines in vtt:
        assert before <= start < end
        assert len(lines) <= 2 and max(map(len, lines)) <= 42
        assert end - start <= 7002  # rounded
        before = end


def test_a_pause_ends_a_cue_and_short_ones_stay() -> None:
    cues = make_cues(spoken("good morning") + spoken("yes", start=5.0) + spoken("no", start=6.3))
    assert [(cue.start, cue.end, cue.lines) for cue in cues] == [
        (0, 1000, ("good morning",)),
        (5000, 6000, ("yes",)),
        (6300, 7300, ("no",)),
    ]


def test_a_full_cue_breaks_at_the_longest_pause_in_its_second_half() -> None:
    first = "we went to the market in the early morning to buy some apples"
    words = spoken(first, 0.2)
    words += spoken("and then we came home again with nothing at all", 0.2, start=words[-1].end + 0.3)
    cues = make_cues(words)
    assert [" ".join(cue.lines) for cue in cues] == [first, "and then we came home again with nothing at all"]
    assert cues[0].lines == ("we went to the market in the", "early morning to buy some apples")


def test_the_end_of_a_sentence_is_a_good_place() -> None:
    first = "we went to the market in the early morning to buy some apples."
    words = spoken(f"{first} and then we came home again with nothing at all", 0.2)
    assert next(" ".join(cue.lines) for cue in make_cues(words)) == first


SENTENCES = [
    "今天天气很好我们去公园吧",
    "明天可能会下雨记得带伞啊",
    "他昨天刚从北京坐火车回来",
    "这本书写得非常有意思推荐",
]


def test_a_script_without_spaces_is_on_the_screen_while_it_is_spoken() -> None:
    """Four sentences of 2.4 s with pauses of 5 s: each has its cue, without spaces between its characters."""
    words = [
        TimedText(char, 7.4 * index + 0.2 * place, 7.4 * index + 0.2 * place + 0.1, joined=bool(index or place))
        for index, sentence in enumerate(SENTENCES)
        for place, char in enumerate(sentence)
    ]
    cues = make_cues(words)
    assert [cue.lines for cue in cues] == [(sentence,) for sentence in SENTENCES]
    assert [(cue.start, cue.end) for cue in cues] == [(7400 * index, 7400 * index + 2300) for index in range(4)]


def test_lines_are_measured_in_columns() -> None:
    words = [TimedText(char, 0.1 * place, 0.1 * place + 0.1, joined=place > 0) for place, char in enumerate("好" * 60)]
    cues = make_cues(words)
    assert len(cues) == 2 and max(len(line) for cue in cues for line in cue.lines) == 21
    assert "".join(line for cue in cues for line in cue.lines) == "好" * 60


def test_slow_speech_is_cut_at_seven_seconds() -> None:
    cues = make_cues(spoken("a b c d e f g h", 1.5, 0.5))
    assert [cue.lines for cue in cues] == [("a b c",), ("d e f",), ("g h",)]
    assert max(cue.end - cue.start for cue in cues) <= 7000


def test_files_as_they_are() -> None:
    cues = make_cues([TimedText("a&b", 1.0, 3661.5004), TimedText("<i>", 3661.51, 3663.0)])
    assert format_srt(make_cues(spoken("one two") + spoken("-->", start=3.0))) == (
        "1\n00:00:00,000 --> 00:00:01,000\none two\n\n2\n00:00:03,000 --> 00:00:04,000\n->\n"
    )
    assert format_vtt(cues) == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:08.000\na&amp;b\n\n01:01:01.510 --> 01:01:03.000\n&lt;i&gt;\n"
    )
    assert (format_srt([]), format_vtt([])) == ("", "WEBVTT\n")


@given(seed=st.integers(0, 999), sizes=st.lists(st.integers(0, 5), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_cues_that_come_live_are_those_of_the_whole(seed, sizes):
    random = np.random.default_rng(seed)
    words, time = [], 0.0
    for _ in range(sum(sizes)):
        time += random.choice([0.05, 0.3, 1.0, 9.0], p=[0.6, 0.25, 0.1, 0.05])
        end = time + random.uniform(0.05, 0.9)
        words.append(TimedText("a" * int(random.integers(1, 12)) + random.choice(["", "."]), time, end))
        time = end
    stream, cues, place = CueStream(), [], 0
    for size in sizes:
        cues += stream.add(words[place : place + size])
        place += size
    assert cues + stream.finish() == make_cues(words)
