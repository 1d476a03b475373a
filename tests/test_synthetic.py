"""The synthetic corpus: the same whenever it is made, splits that share nothing, times that fit the sound."""

import hashlib
import importlib.metadata
import io
import itertools
import json
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio

pytest.importorskip("espeakng_loader", reason="needs the extra `synthetic`")

from hf_speech_ssl.data.synthetic import build_synthetic, parse_synthetic_options
from hf_speech_ssl.data.synthetic import corpus as synthetic
from hf_speech_ssl.data.synthetic.espeak import speak
from hf_speech_ssl.data.synthetic.grammar import SPLITS, draw_sentence, draw_with_translations, split_of, vocabulary
from hf_speech_ssl.data.synthetic.utterances import ACCENTS, SAMPLING_RATE, VOICES, Recipe, reverberate, utterance

# What the first eight sentences hold: verbs last and second, cases and genders, questions, adjectives behind nouns.
TRANSLATIONS_BY_HAND = {
    "if my mother opens the heavy letter sarah will hide my green bicycle": (
        "Wenn meine Mutter den schweren Brief öffnet, wird Sarah mein grünes Fahrrad verstecken.",
        "Si mi madre abre la carta pesada, Sarah va a esconder mi bicicleta verde.",
    ),
    "this book that my father painted is beautiful": (
        "Dieses Buch, das mein Vater gemalt hat, ist schön.",
        "Este libro que mi padre pintó es hermoso.",
    ),
    "who sold the strange guitar": ("Wer hat die seltsame Gitarre verkauft?", "¿Quién vendió la guitarra extraña?"),
    "thomas knows that peter forgot my beautiful bottle last monday": (
        "Thomas weiß, dass Peter meine schöne Flasche letzten Montag vergessen hat.",
        "Thomas sabe que Peter olvidó mi botella hermosa el lunes pasado.",
    ),
}

CLEAN = Recipe("train", "small", seed=0, noise_snr_db=None, reverberation=False)


def recipe(**changes) -> Recipe:
    return Recipe(**{**CLEAN.__dict__, **changes})


def waveform(row: dict) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
    assert rate == SAMPLING_RATE
    return samples


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [utterance(recipe(split=split, grammar="full"), index) for split in SPLITS for index in range(25)]


@pytest.fixture
def said(monkeypatch) -> list[int]:
    """The numbers of the utterances that were synthesised, as they come."""
    indices = []

    def counting(recipe: Recipe, index: int) -> dict:
        indices.append(index)
        return utterance(recipe, index)

    monkeypatch.setattr(synthetic, "utterance", counting)
    return indices


def test_an_utterance_depends_on_its_recipe_and_number_alone():
    forwards = [utterance(CLEAN, index) for index in range(5)]
    backwards = [utterance(CLEAN, index) for index in reversed(range(5))]
    assert forwards == backwards[::-1]
    assert len({row["audio"]["bytes"] for row in forwards}) == 5
    for other in (recipe(seed=1), recipe(split="test"), recipe(grammar="full")):
        assert utterance(other, 0)["audio"]["bytes"] != forwards[0]["audio"]["bytes"]


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tmp_path):
    one, two = (
        build_synthetic(num_sentences=20, noise_snr_db=10, cache_dir=tmp_path / str(n), num_proc=n) for n in (1, 2)
    )
    assert one.to_list() == two.to_list()


@pytest.mark.parametrize("grammar", ["small", "full"])
def test_every_split_says_every_word_in_sentences_of_its_own(grammar):
    sentences = {
        split: {draw_sentence(grammar, split, random.Random(seed)) for seed in range(6000)} for split in SPLITS
    }
    for split in SPLITS:
        assert {word for sentence in sentences[split] for word in sentence.split()} == set(vocabulary(grammar))
        assert all(split_of(sentence) == split for sentence in sentences[split])
    assert set("".join(vocabulary(grammar))) <= set("abcdefghijklmnopqrstuvwxyz'")


def test_sentences_with_clauses_have_translations_in_the_order_of_their_language():
    drawn = [draw_with_translations("clauses", split, random.Random(seed)) for seed in range(2000) for split in SPLITS]
    by_english = {one.english: one.translations for one in drawn}
    assert all(by_english[one.english] == one.translations for one in drawn)  # one translation each
    assert {split_of(one) for one in by_english} == set(SPLITS)
    for german, spanish in (one.values() for one in by_english.values()):
        assert german[0].isupper() and german[-1] in ".?" and spanish[-1] in ".?"
        assert (german[-1] == "?") == (spanish[0] == "¿") == german.startswith("Wer ")
    verb_last = re.compile(r"(dass|weil|Wenn|Obwohl) [^,.]* (hat|wird|muss|kann|[a-zäöüß]+t)[,.]")
    clauses = {word: [one["de"] for one in by_english.values() if word in one["de"]] for word in ("dass", "weil")}
    assert all(len(texts) > 200 and all(map(verb_last.search, texts)) for texts in clauses.values())


def test_translations_by_hand():
    rows = [utterance(recipe(grammar="clauses", languages=("de", "es")), index) for index in range(8)]
    texts = {row["text"]: (row["text_de"], row["text_es"]) for row in rows}
    assert texts.items() >= TRANSLATIONS_BY_HAND.items()
    assert list(rows[0])[1:4] == ["text", "text_de", "text_es"]
    bare = utterance(recipe(grammar="clauses"), 0)
    assert bare == {name: value for name, value in rows[0].items() if name not in ("text_de", "text_es")}


def test_no_voice_is_in_two_splits(rows):
    assert len({voice for voices in VOICES.values() for voice in voices}) == sum(map(len, VOICES.values())) == 78
    for number, split in enumerate(SPLITS):
        spoken_by = {row["speaker_id"].split(".")[0].replace("_", " ") for row in rows[25 * number : 25 * number + 25]}
        assert spoken_by <= set(VOICES[split])


def test_every_voice_exists():
    for voice in itertools.chain(*VOICES.values()):
        assert speak("stop", f"en-us+{voice}").words
    for accent in ACCENTS:
        assert speak("stop", accent).words


def test_times_are_ordered_inside_the_audio_and_consistent(rows):
    for row in rows:
        assert row["duration"] == len(waveform(row)) / SAMPLING_RATE
        assert [word["word"] for word in row["words"]] == row["text"].split()
        for segments in (row["phones"], row["words"]):
            times = [time for segment in segments for time in (segment["start"], segment["end"])]
            assert times == sorted(times)
            assert times[0] > 0.09
            assert times[-1] < row["duration"] - 0.09
            assert all(segment["end"] > segment["start"] for segment in segments)
        starts, ends = ({phone[key] for phone in row["phones"]} for key in ("start", "end"))
        assert all(word["start"] in starts and word["end"] in ends for word in row["words"])


def test_the_first_and_last_word_are_where_the_sound_is(rows):
    with_echo = ("f2", "f3", "f4", "f5", "m2", "pablo")  # sounds on for up to 70 ms after the last phone
    for row in rows:
        samples = waveform(row)
        power = np.convolve(samples**2, np.ones(80) / 80, mode="same")  # 5 ms
        loud = np.flatnonzero(power > power.max() * 1e-4) / SAMPLING_RATE
        late = 0.1 if row["speaker_id"].split(".")[0] in with_echo else 0.01
        assert abs(loud[0] - row["words"][0]["start"]) < 0.04, row["text"]
        assert -0.05 < loud[-1] - row["words"][-1]["end"] < late, row["text"]


@pytest.mark.parametrize("snr_db", [20.0, 0.0])
def test_noise_has_the_ratio_asked_for(snr_db):
    for index in range(5):
        clean, noisy = utterance(CLEAN, index), utterance(recipe(noise_snr_db=snr_db), index)
        assert {k: v for k, v in clean.items() if k != "audio"} == {k: v for k, v in noisy.items() if k != "audio"}
        speech = slice(*(round(clean["words"][i][key] * SAMPLING_RATE) for i, key in ((0, "start"), (-1, "end"))))
        signal, mixture = waveform(clean), waveform(noisy)
        scale = (signal @ mixture) / (signal @ signal)  # peaks above full scale turn the whole mixture down
        noise = mixture - scale * signal
        measured = 10 * np.log10(np.mean((scale * signal[speech]) ** 2) / np.mean(noise**2))
        assert measured == pytest.approx(snr_db, abs=0.5)


def speech_dbfs(row: dict) -> float:
    speech = slice(*(round(row["words"][i][key] * SAMPLING_RATE) for i, key in ((0, "start"), (-1, "end"))))
    return 10 * np.log10(np.mean(waveform(row)[speech] ** 2))


def test_varied_levels_differ_between_voices_and_utterances_and_leave_the_words_alone():
    equal = [utterance(CLEAN, index) for index in range(60)]
    varied = [utterance(recipe(levels="varied"), index) for index in range(60)]
    for one, other in zip(equal, varied, strict=True):
        assert {k: v for k, v in one.items() if k != "audio"} == {k: v for k, v in other.items() if k != "audio"}
    levels = np.array([speech_dbfs(row) for row in varied])
    assert levels.max() - levels.min() > 25 and levels.min() > -62 and levels.max() < -18
    assert np.std([speech_dbfs(row) for row in equal]) < 4 < np.std(levels)
    assert varied == [utterance(recipe(levels="varied"), index) for index in range(60)]
    in_silence = [np.abs(waveform(row)[:1200]).max() for row in varied]
    assert all(quiet > 0 for quiet in in_silence)  # noise is everywhere


def test_a_voice_has_a_level_of_its_own():
    by_voice: dict[str, list[float]] = {}
    for index in range(250):
        row = utterance(recipe(levels="varied", noise_snr_db=100.0), index)
        by_voice.setdefault(row["speaker_id"], []).append(speech_dbfs(row))
    within = np.mean([np.ptp(levels) for levels in by_voice.values() if len(levels) > 1])
    assert np.ptp([np.mean(levels) for levels in by_voice.values()]) > 20 > within


def test_a_corpus_of_equal_levels_has_the_name_that_it_had_before_there_were_others():
    """So that corpora on disk are found again."""
    key = {"split": "train", "grammar": "small", "seed": 0, "noise_snr_db": None, "reverberation": False}
    key |= {"num_sentences": 7, "hours": None, "generator": synthetic.GENERATOR_VERSION}
    key["espeakng_loader"] = importlib.metadata.version("espeakng-loader")
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    size = {"num_sentences": 7, "hours": None}
    assert synthetic._folder_name(CLEAN, size) == f"small-train-{digest}"
    assert synthetic._folder_name(recipe(levels="varied"), size) != f"small-train-{digest}"


def test_loud_noise_does_not_clip():
    assert 0.9 < np.abs(waveform(utterance(recipe(noise_snr_db=-20), 0))).max() < 0.96


def test_reverberation_is_a_convolution():
    impulse = np.zeros(16_000)
    impulse[0] = 1
    response = reverberate(impulse, np.random.default_rng(5))  # a room of at most 0.6 s
    speech = np.random.default_rng(6).standard_normal(3_001)
    expected = np.convolve(speech, response)[: len(speech)]
    np.testing.assert_allclose(reverberate(speech, np.random.default_rng(5)), expected, atol=1e-9)


def test_reverberation_adds_a_tail_and_moves_nothing():
    for index in range(5):
        dry, wet = utterance(CLEAN, index), utterance(recipe(reverberation=True), index)
        assert {k: v for k, v in dry.items() if k != "audio"} == {k: v for k, v in wet.items() if k != "audio"}
        before, after = waveform(dry), waveform(wet)
        size = 2 * len(before)
        correlation = np.fft.irfft(np.fft.rfft(after, size) * np.conj(np.fft.rfft(before, size)))
        assert correlation.argmax() == 0
        end = round(dry["words"][-1]["end"] * SAMPLING_RATE) + 800
        assert np.mean(after[end : end + 800] ** 2) > 10 * np.mean(before[end : end + 800] ** 2)


def test_the_corpus_is_made_once_and_read_as_bytes(tmp_path, said):
    first = build_synthetic("test", num_sentences=6, cache_dir=tmp_path)
    again = build_synthetic("test", num_sentences=6, cache_dir=tmp_path)
    assert said == list(range(6))
    assert first.to_list() == again.to_list() == [utterance(recipe(split="test"), index) for index in range(6)]
    assert first.features["audio"] == Audio(sampling_rate=SAMPLING_RATE, decode=False)
    for changes in ({"num_sentences": 7}, {"seed": 1}, {"grammar": "full"}, {"reverberation": True}):
        build_synthetic("test", **{"num_sentences": 6, "cache_dir": tmp_path, **changes})
    assert len(said) == 6 + 7 + 6 + 6 + 6


def test_hours_stop_after_the_sentence_that_fills_them(tmp_path):
    durations = build_synthetic(hours=20 / 3600, cache_dir=tmp_path)["duration"]
    assert sum(durations[:-1]) < 20 <= sum(durations)


def test_a_broken_run_leaves_nothing_that_is_taken_for_a_corpus(tmp_path, monkeypatch):
    def killed(recipe: Recipe, index: int) -> dict:
        if index == 3:
            raise KeyboardInterrupt
        return utterance(recipe, index)

    def corpora() -> list[Path]:
        return [path for path in (tmp_path / "synthetic").iterdir() if path.is_dir()]

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "utterance", killed)
        with pytest.raises(KeyboardInterrupt):
            build_synthetic(num_sentences=6, cache_dir=tmp_path)
    assert corpora() == []
    whole = build_synthetic(num_sentences=6, cache_dir=tmp_path).to_list()
    (corpus,) = corpora()
    scratch = corpus.with_name(corpus.name + ".partial")  # what is there after a kill while saving
    scratch.mkdir()
    corpus.rename(scratch / "corpus")
    (scratch / "corpus" / "state.json").unlink()
    (scratch / "corpus" / "half-written").touch()
    assert build_synthetic(num_sentences=6, cache_dir=tmp_path).to_list() == whole
    assert corpora() == [corpus]
    assert not (corpus / "half-written").exists()


def test_two_at_once_make_it_once(tmp_path, said):
    lengths = []
    threads = [
        threading.Thread(target=lambda: lengths.append(len(build_synthetic(num_sentences=8, cache_dir=tmp_path))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [8, 8]
    assert sorted(said) == list(range(8))


def test_options_are_read_from_one_string():
    assert parse_synthetic_options(None) == parse_synthetic_options("") == {}
    assert parse_synthetic_options("full") == {"grammar": "full"}
    assert parse_synthetic_options("levels=varied") == {"levels": "varied"}
    text = "sentences=500, grammar=small,seed=1,noise=12.5,reverb=true,eval_sentences=50"
    expected = {"num_sentences": 500, "grammar": "small", "seed": 1, "noise_snr_db": 12.5, "reverberation": True}
    assert parse_synthetic_options(text) == expected
    assert parse_synthetic_options(text, "test") == {**expected, "num_sentences": 50}
    assert parse_synthetic_options("hours=2,eval_sentences=50", "test") == {"num_sentences": 50}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence=5", "Cannot read 'sentence=5'.*needed: name=value.*sentences, hours"),
        ("seed", "Option 'seed'.*is ''; needed: a whole number"),
        ("sentences=many", "Option 'sentences'.*is 'many'; needed: a whole number"),
        ("reverb=1", "Option 'reverb'.*is '1'; needed: true or false"),
        ("seed=1,seed=2", "'seed' comes twice"),
    ],
)
def test_options_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        parse_synthetic_options(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "no split 'dev'; needed: one of train, validation, test"),
        ({"grammar": "tiny"}, "no grammar 'tiny'; needed: one of small, full, clauses"),
        ({"grammar": "clauses", "languages": ("de", "fr")}, "no translations into 'fr'; needed: languages=de"),
        ({"languages": ("de",)}, "grammar 'small' of the synthetic corpus has no translations"),
        ({"levels": "loud"}, "no levels 'loud'; needed: one of equal, varied"),
        ({"num_sentences": 3, "hours": 1.0}, "both num_sentences=3 and hours=1.0"),
        ({"num_sentences": 0}, "0 sentences.*needed: more than none"),
        ({"seed": -1}, "seed.*is -1; needed: 0 or more"),
        ({"noise_snr_db": float("nan")}, "nan dB.*needed: -100 to 100"),
    ],
)
def test_arguments_out_of_range(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_synthetic(cache_dir=tmp_path, **arguments)
