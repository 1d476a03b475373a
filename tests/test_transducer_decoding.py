"""Decoding of transducers: pieces of audio, exact scores, language models, live streams, the pipeline."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import tiny_birq, tiny_chunkssl
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, pipeline

from hf_speech_ssl import BiRQForRNNT, ChunkSSLForRNNT, SpeechSSLFeatureExtractor
from hf_speech_ssl.data.audio_stream import SampleWindow
from hf_speech_ssl.decoding import (
    TransducerBeamDecoder,
    TransducerGreedyDecoder,
    build_piece_processor,
    build_piece_tokenizer,
    estimate_ngrams,
    make_transducer_decoder,
    unknown_characters,
)
from hf_speech_ssl.decoding.collapse import TokenSpan
from hf_speech_ssl.decoding.text import make_text_builder
from hf_speech_ssl.modeling.transducer_loss import transducer_loss
from hf_speech_ssl.options import DecodingOptions
from hf_speech_ssl.recognition.long_form import LongFormRecognizer
from hf_speech_ssl.recognition.recognizer import Recognizer
from hf_speech_ssl.recognition.streaming import StreamingBatch, StreamingTranscriber

TEXTS = ["ab abba", "b ba", "a b ab ba"]
FRAME = 0.04  # seconds
OPEN = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "initializer_range": 0.5, "joint_hidden_size": 20}


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    count = int(16_000 * seconds)
    loudness = np.repeat(random.uniform(0.01, 0.5, count // 800 + 1), 800)[:count]
    return np.clip(loudness * random.standard_normal(count), -1, 1).astype(np.float32)


def talkative(model):
    """A random model whose blank is no likelier than its tokens."""
    model.joint.head.bias.data.zero_()
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return build_piece_tokenizer(TEXTS, 7, "bpe")


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(5)
    return talkative(BiRQForRNNT(tiny_birq(**OPEN, vocab_size=len(tokenizer), max_symbols_per_step=3)))


def frames_of(count: int, seed: int, width: int = 20) -> torch.Tensor:
    return 3 * torch.randn(1, count, width, generator=torch.Generator().manual_seed(seed))


def beam(model, tokenizer, num_best=1, threshold=10.0, **options) -> TransducerBeamDecoder:
    return TransducerBeamDecoder(model, tokenizer, FRAME, DecodingOptions(**options), num_best, threshold)


@pytest.mark.parametrize("kind", ["greedy", "beam"])
@given(frames=st.integers(1, 30), seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 30), max_size=4))
@example(frames=6, seed=13, cuts=[4])  # the best alignment of shared tokens changes later
@example(frames=30, seed=1, cuts=[])  # a pause of a second divides a word
@settings(max_examples=12, deadline=None)
def test_pieces_give_what_the_whole_gives(model, tokenizer, kind, frames, seed, cuts):
    decoder = (
        TransducerGreedyDecoder(model, tokenizer, FRAME) if kind == "greedy" else beam(model, tokenizer, beam_size=3)
    )
    whole = frames_of(frames, seed)
    [wanted] = decoder(whole, [frames])
    state, before = decoder.start(), ""
    edges = [0, *sorted(min(cut, frames) for cut in cuts), frames]
    for begin, end in itertools.pairwise(edges):
        decoder.step([state], whole[:, begin:end], [end - begin])
        text = decoder.hypothesis(state)
        assert text.text.startswith(text.final) and text.final.startswith(before)
        before = text.final
    found = decoder.finish(state)
    assert [one.text for one in found] == [one.text for one in wanted] and found[0].text.startswith(before)
    assert found[0].score == pytest.approx(wanted[0].score, rel=1e-4)
    words = "".join(f"{'' if word.joined else ' '}{word.text}" for word in found[0].words)
    assert words.split() == found[0].text.split()
    assert [(word.start, word.end) for word in found[0].words] == [(word.start, word.end) for word in wanted[0].words]


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_padded_utterances_of_a_batch_give_what_they_give_alone(model, tokenizer, kind):
    decoder = (
        TransducerGreedyDecoder(model, tokenizer, FRAME) if kind == "greedy" else beam(model, tokenizer, beam_size=3)
    )
    alone = [frames_of(count, seed) for seed, count in enumerate((9, 4, 13))]
    together = torch.nn.utils.rnn.pad_sequence([one[0] for one in alone], batch_first=True, padding_value=7.0)
    found = decoder(together, [9, 4, 13])
    for one, hypotheses in zip(alone, found, strict=True):
        [wanted] = decoder(one, [one.shape[1]])
        assert [h.text for h in hypotheses] == [h.text for h in wanted]


def probability(model, frames: torch.Tensor, ids: list[int]) -> float:
    """ln P of a text, over all alignments, by the loss."""
    labels = torch.tensor([ids], dtype=torch.long)
    states = model.decoder(torch.nn.functional.pad(labels, (1, 0)))
    lengths = torch.tensor([frames.shape[1]]), torch.tensor([len(ids)])
    return -transducer_loss(frames, states, model.joint, labels, *lengths).item()


@pytest.mark.slow
@torch.no_grad()
def test_scores_of_a_wide_beam_are_the_exact_probabilities(model, tokenizer):
    """Every text of at most three tokens: none has more than three at a frame, so no alignment is left out."""
    frames = frames_of(3, seed=2)
    decoder = beam(model, tokenizer, num_best=5000, threshold=math.inf, beam_size=5000)
    [hypotheses] = decoder(frames, [3])
    best: dict[str, float] = {}
    for length in range(4):
        for ids in itertools.product(range(1, len(tokenizer)), repeat=length):
            builder = make_text_builder(tokenizer, FRAME)
            for place, token in enumerate(ids):
                builder.add(TokenSpan(token, place, place + 1))
            text = builder.finished()[0]
            best[text] = max(best.get(text, -math.inf), probability(model, frames, list(ids)))
    found = {one.text: one.score for one in hypotheses}
    assert len(best) > 40 and [one.score for one in hypotheses] == sorted(found.values(), reverse=True)
    for text, score in best.items():
        assert found[text] >= score - 0.02  # a beam of 5,000 leaves out alignments of longer texts only
    top = max(best, key=best.__getitem__)
    assert found[top] == pytest.approx(best[top], abs=0.02)


@torch.no_grad()
def test_greedy_times_are_those_of_the_emitting_frames(model, tokenizer):
    [[best]] = TransducerGreedyDecoder(model, tokenizer, FRAME)(frames_of(40, 3), [40])
    assert best.words and all(0 <= word.start < word.end <= 40 * FRAME for word in best.words)
    starts = [word.start for word in best.words]
    assert starts == sorted(starts) and best.words[-1].end > 30 * FRAME


def test_language_model_adds_to_the_score_and_changes_the_text(model, tokenizer, tmp_path):
    estimate_ngrams(["abba abba abba", "abba"], order=2).write_arpa(tmp_path / "lm.arpa")
    frames = frames_of(6, seed=4)
    [plain] = beam(model, tokenizer, num_best=20, beam_size=20)(frames, [6])
    options = {"num_best": 20, "beam_size": 20, "lm_path": tmp_path / "lm.arpa"}
    [unweighted] = beam(model, tokenizer, lm_weight=0.0, **options)(frames, [6])
    assert [one.text for one in unweighted] == [one.text for one in plain]
    [bonus] = beam(model, tokenizer, lm_weight=0.0, word_bonus=9.0, **options)(frames, [6])
    assert len(bonus[0].text.split()) > len(plain[0].text.split())
    decoder = beam(model, tokenizer, lm_weight=5.0, **options)
    [fused] = decoder(frames, [6])
    assert fused[0].text != plain[0].text
    acoustic = {one.text: one.score for one in plain}
    known = next(one for one in fused if one.text in acoustic)
    fusion = decoder.fusion
    state, total = fusion.model.start(False), 0.0
    for word in known.text.split():
        state, log10 = fusion.model.score(state, fusion.indices.get(word, len(fusion.indices)))
        total += log10
    total += fusion.model.finish(state)[1]
    assert known.score == pytest.approx(acoustic[known.text] + 5 * math.log(10) * total, abs=0.2)
    [again] = decoder.reweighted(0.0, 0.0)(frames, [6])
    assert [one.text for one in again] == [one.text for one in plain]


def test_which_decoder(model, tokenizer):
    def kind(num_best: int = 1, **options):
        return type(make_transducer_decoder(model, tokenizer, FRAME, DecodingOptions(**options), num_best))

    assert kind() is TransducerGreedyDecoder
    assert kind(beam_size=2) is kind(num_best=2) is TransducerBeamDecoder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lexicon_path": "x"}, "vocabulary is open: --lexicon_path is for CTC models"),
        ({"num_best": 9}, "num_best must be 1 to beam_size, which is 8; got 9"),
        ({"beam_size": -1}, "beam_size must be at least 1"),
        ({"threshold": 0.0}, "beam_threshold must be positive"),
    ],
)
def test_refused_options(model, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        beam(model, tokenizer, **options)


def test_refused_frames_and_tokenizers(model, tokenizer):
    for decoder in (TransducerGreedyDecoder(model, tokenizer, FRAME), beam(model, tokenizer)):
        with pytest.raises(ValueError, match=r"pooler_output, \(batch, frames, 20\), got \(1, 2, 5\)"):
            decoder(torch.zeros(1, 2, 5), [2])
        with pytest.raises(ValueError, match="hold NaN"):
            decoder(torch.full((1, 2, 20), torch.nan), [2])
    other = build_piece_tokenizer([*TEXTS, "abc"], 8, "bpe")
    with pytest.raises(ValueError, match="transducer has 7 tokens and token 0 as its blank; the tokenizer has 8"):
        TransducerGreedyDecoder(model, other, FRAME)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_pieces_keep_case_punctuation_and_repeats(kind, tmp_path):
    texts = ["Hello, little bookkeeper!", "a quick brown fox jumps", "Hello hello", "over the lazy dogs", "Zwölf"]
    processor = build_piece_processor(texts, SpeechSSLFeatureExtractor(), 40, kind)
    processor.save_pretrained(tmp_path)
    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    assert len(tokenizer) == 40 and tokenizer.pad_token_id == 0
    for text in texts:
        ids = tokenizer(text).input_ids
        assert ids == processor.tokenizer(text).input_ids and 0 not in ids
        assert tokenizer.decode(ids, group_tokens=False) == text
        builder = make_text_builder(tokenizer, 0.5)
        for place, token in enumerate(ids):
            builder.add(TokenSpan(token, place, place + 1))
        whole, words = builder.finished()
        assert whole == text and [word.text for word in words] == text.split()
        assert words[0].start == 0 and words[-1].end == len(ids) / 2
    assert tokenizer("").input_ids == []
    assert unknown_characters(["Hello Q7"], tokenizer) == {"7": 1, "Q": 1}


def test_words_of_a_script_without_spaces_end_at_their_pieces():
    tokenizer = build_piece_tokenizer(["你好 世界", "世 好"], 7, "bpe")
    builder = make_text_builder(tokenizer, 1.0)
    for place, token in enumerate(tokenizer("你好 世界").input_ids):
        builder.add(TokenSpan(token, place, place + 1))
    text, words = builder.finished()
    assert text == "你好 世界"
    assert "".join(word.text if word.joined else f" {word.text}" for word in words).strip() == text


def test_a_vocabulary_that_does_not_fit_the_texts():
    with pytest.raises(ValueError, match=r"of 4 pieces does not hold the 2 characters .* \(--vocabulary_size 5\)"):
        build_piece_tokenizer(TEXTS, 4)
    with pytest.raises(ValueError, match=r"have (\d+) different pieces, 500 are asked for: give --vocabulary_size \1"):
        build_piece_tokenizer(TEXTS, 500)
    with pytest.raises(ValueError, match="All 2 texts are empty"):
        build_piece_tokenizer(["", " "], 20)


@pytest.fixture(scope="module")
def parts():
    """A random streaming transducer that babbles in words, and its processor."""
    torch.manual_seed(10)
    extractor = SpeechSSLFeatureExtractor(mean=[10.0] * 80, variance=[9.0] * 80)
    processor = build_piece_processor(TEXTS, extractor, 7, "bpe")
    sizes = {"vocab_size": 7, "hidden_size": 16, "num_hidden_layers": 2, "max_symbols_per_step": 2}
    return talkative(ChunkSSLForRNNT(tiny_chunkssl(**OPEN, **sizes))), processor


@pytest.mark.parametrize("kind", ["greedy", "beam"])
@given(
    seconds=st.floats(0.25, 1.5),  # the recognizer lengthens what is shorter than 0.2 s
    seed=st.integers(0, 99),
    cuts=st.lists(st.one_of(st.just(1), st.integers(0, 6000)), min_size=1, max_size=8),
)
@settings(max_examples=8, deadline=None)
def test_any_split_of_a_stream_gives_the_offline_text(parts, kind, seconds, seed, cuts):
    samples, place = speech(seconds, seed), 0
    recognizer = Recognizer(*parts)
    decoder = recognizer.make_decoder(DecodingOptions(beam_size=3 if kind == "beam" else None))
    transcriber = StreamingTranscriber(*parts, chunk_duration_ms=160, decoder=decoder)
    before = ""
    for cut in [*cuts, len(samples)]:
        result = transcriber.accept(samples[place : place + cut])
        place += cut
        assert result.text.startswith(result.final) and result.final.startswith(before)
        before = result.final
    assert transcriber.finish() == recognizer.recognize([samples], decoder, 160)[0][0].text


@pytest.mark.parametrize("kind", ["greedy", "beam"])
@pytest.mark.parametrize("chunk_duration_ms", [0, 160])
def test_long_files_in_pieces_are_the_whole(parts, kind: str, chunk_duration_ms: int):
    """Chunk by chunk with a bounded past, and in windows with more context than the model sees."""
    sizes = {"vocab_size": 7, "hidden_size": 16, "num_hidden_layers": 2, "max_symbols_per_step": 2, **OPEN}
    torch.manual_seed(3)
    streaming, offline = tiny_chunkssl(left_context_chunks=2, **sizes), tiny_birq(attention_window=2, **sizes)
    model = ChunkSSLForRNNT(streaming) if chunk_duration_ms else BiRQForRNNT(offline)
    model.encoder_projector.weight.data.mul_(10)  # what it hears counts more than what it said
    model.joint.head.weight.data[0] = 0  # the blank wins where nothing is likely
    recognizer = Recognizer(talkative(model), parts[1])
    decoder = recognizer.make_decoder(DecodingOptions(beam_size=3 if kind == "beam" else None))
    samples = speech(9.3, 4)
    [in_pieces, *_] = LongFormRecognizer(
        recognizer, decoder, chunk_duration_ms, batch_seconds=3.0, window_seconds=3.0
    ).recognize(SampleWindow([samples]))
    [[whole, *_]] = recognizer.recognize([samples], decoder, chunk_duration_ms)
    assert len(whole.words) > 5
    assert (in_pieces.text, in_pieces.words) == (whole.text, whole.words)


def test_streams_of_a_batch(parts):
    signals = [speech(seconds, seed) for seed, seconds in enumerate((1.5, 0.7, 1.1))]
    recognizer = Recognizer(*parts)
    wanted = [one[0] for one in recognizer.recognize(signals, chunk_duration_ms=160)]
    assert any(one.text for one in wanted)
    batch = StreamingBatch(*parts, chunk_duration_ms=160)
    streams = [batch.join() for _ in signals]
    for begin in range(0, 24_000, 3000):
        batch.feed({stream: one[begin : begin + 3000] for stream, one in zip(streams, signals, strict=True)})
    assert [one[0].text for one in batch.finish_hypotheses(*streams)] == [one.text for one in wanted]


def test_pipeline_and_generate_write_the_greedy_text(parts, tmp_path):
    model, processor = parts
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    recognizer = Recognizer.from_pretrained(str(tmp_path), device="cpu")
    signals = [speech(1.3, 5), speech(0.8, 6)]
    wanted = [" ".join(one[0].text.split()) for one in recognizer.recognize(signals)]
    assert len(set(wanted)) == 2 and " " in wanted[0]
    transcribe = pipeline("automatic-speech-recognition", str(tmp_path))
    assert isinstance(transcribe.model, type(model))  # and no CTC model, whose Auto class it asks first
    assert [" ".join(one["text"].split()) for one in transcribe(list(signals), batch_size=2)] == wanted
    inputs = processor(signals, sampling_rate=16_000, padding=True, return_tensors="pt", return_attention_mask=True)
    sequences = recognizer.model.generate(**inputs).sequences
    texts = processor.batch_decode(sequences, group_tokens=False, skip_special_tokens=True)
    assert [" ".join(text.split()) for text in texts] == wanted
