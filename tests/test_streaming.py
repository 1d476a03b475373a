"""Live = offline: whatever the pieces, and whoever else is speaking."""

import copy
import gc
import pickle
import types
import weakref
from itertools import pairwise

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_speech_ssl.data.audio import AudioError
from hf_speech_ssl.decoding import BeamSearchDecoder, build_ctc_processor, ctc_text, greedy_ctc
from hf_speech_ssl.modeling.configuration_birq import BiRQConfig
from hf_speech_ssl.modeling.configuration_chunkssl import ChunkSSLConfig
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.modeling.modeling_birq import BiRQForCTC
from hf_speech_ssl.modeling.modeling_chunkssl import ChunkSSLForCTC
from hf_speech_ssl.options import DecodingOptions
from hf_speech_ssl.recognition.recognizer import Recognizer
from hf_speech_ssl.recognition.streaming import StreamingBatch, StreamingTranscriber

CHUNK_MS = 80
ONE_FRAME, ONE_CHUNK = 400 + 3 * 160, 400 + 7 * 160  # samples for an encoder frame and for a chunk of two
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def parts():
    """A random model that babbles in words, and its processor."""
    torch.manual_seed(1)
    processor = build_ctc_processor(["ab c"], SpeechSSLFeatureExtractor(mean=[10.0] * 80, variance=[9.0] * 80))
    config = ChunkSSLConfig(conv_kernel_size=5, vocab_size=len(processor.tokenizer), **TINY)
    config.initializer_range = 0.5
    return ChunkSSLForCTC(config).eval(), processor


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness and color change, so that a random model changes its mind."""
    random = np.random.default_rng(seed)
    count = int(16_000 * seconds)
    loudness = np.repeat(random.uniform(0.01, 0.5, count // 800 + 1), 800)[:count]
    tone = np.sin(np.cumsum(np.repeat(random.uniform(0.1, 2.0, count // 800 + 1), 800)[:count]))
    return (loudness * (tone + 0.1 * random.standard_normal(count))).astype(np.float32)


def variant(parts, lookahead: int, past: int | None):
    """The same weights with another look-ahead and memory."""
    model = copy.deepcopy(parts[0])
    model.config.num_lookahead_chunks, model.config.left_context_chunks = lookahead, past
    return model, parts[1]


@torch.no_grad()
def offline(parts, samples: np.ndarray) -> str:
    model, processor = parts
    if len(samples) < ONE_FRAME:
        return ""
    inputs = processor.feature_extractor(samples, sampling_rate=16_000, return_tensors="pt")
    logits = model(**inputs, chunk_size=model.config.chunk_frames(CHUNK_MS)).logits
    return ctc_text(greedy_ctc(logits)[0], processor.tokenizer)


def test_the_model_says_something(parts):
    assert len(set(offline(parts, speech(3.0)))) > 3 and " " in offline(parts, speech(3.0))


@given(
    seconds=st.floats(0.0, 1.6),
    seed=st.integers(0, 99),
    lookahead=st.integers(0, 1),
    past=st.one_of(st.none(), st.integers(0, 3)),
    cuts=st.lists(st.one_of(st.just(0), st.just(1), st.integers(2, 6000)), min_size=1, max_size=12),
)
@settings(max_examples=30, deadline=None)
def test_any_split_gives_the_offline_text(parts, seconds, seed, lookahead, past, cuts):
    samples, place = speech(seconds, seed), 0
    streaming = variant(parts, lookahead, None)
    transcriber = StreamingTranscriber(*streaming, chunk_duration_ms=CHUNK_MS, left_context_chunks=past)
    before = ""
    for cut in [*cuts, len(samples)]:
        result = transcriber.accept(samples[place : place + cut])
        place += cut
        assert result.text.startswith(result.final) and result.final.startswith(before)
        before = result.final
    text = transcriber.finish()
    assert text.startswith(before)
    assert text == offline(variant(parts, lookahead, past), samples)


@pytest.mark.parametrize("pieces", [1, 3, None])  # None: sample by sample
@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("edge", [0, 1, 400, ONE_FRAME, ONE_CHUNK, ONE_CHUNK + 640, ONE_CHUNK + 1280])
def test_very_short_signals(parts, edge, extra, pieces):
    """At the edges of a feature frame, an encoder frame, and chunks with and without look-ahead."""
    samples = speech(0.25, seed=3)[: max(0, edge + extra)]
    transcriber = StreamingTranscriber(*parts, chunk_duration_ms=CHUNK_MS)
    for piece in np.array_split(samples, pieces or max(1, len(samples))):
        transcriber.accept(piece)
    assert transcriber.finish() == offline(parts, samples)


def test_memory_is_bounded_where_asked(parts):
    transcriber = StreamingTranscriber(*parts, chunk_duration_ms=CHUNK_MS, left_context_chunks=3)
    for _ in range(5):
        transcriber.accept(speech(1.0))
        assert transcriber.stream.cache.length == 6 and transcriber.stream.cache.keys[0].shape[2] < 20


def test_streams_of_a_batch_do_not_hear_each_other(parts):
    """Streams join late, speak in turns of different length and leave early."""
    signals = [speech(seconds, seed) for seed, seconds in enumerate((1.5, 0.7, 1.1, 0.02))]
    batch = StreamingBatch(*parts, chunk_duration_ms=CHUNK_MS)
    streams, places, texts = {}, [0] * 4, {}
    random = np.random.default_rng(0)
    for turn in range(100):
        if turn in (0, 2, 5, 7):
            streams[len(streams)] = batch.join()
        cuts = {index: int(random.integers(0, 5000)) for index in streams if index not in texts}
        batch.accept({streams[i]: signals[i][places[i] : places[i] + cut] for i, cut in cuts.items()})
        for index, cut in cuts.items():
            places[index] += cut
        done = [index for index in cuts if places[index] >= len(signals[index])]
        texts |= dict(zip(done, batch.finish(*[streams[index] for index in done]), strict=True))
    assert [texts[index] for index in range(4)] == [*(offline(parts, signal) for signal in signals[:3]), ""]
    assert not batch.streams


def test_a_cache_is_copied_only_when_its_streams_part(parts):
    """Streams in step keep one cache; when some go ahead alone, neither side keeps memory of the other."""
    batch = StreamingBatch(*parts, chunk_duration_ms=CHUNK_MS)
    first, second, third = (batch.join() for _ in range(3))
    batch.accept({stream: speech(0.4) for stream in batch.streams})
    together = first.cache
    assert together is second.cache is third.cache and together.num_streams == 3
    batch.accept({stream: speech(0.1) for stream in batch.streams})
    assert first.cache is together and [first.row, second.row, third.row] == [0, 1, 2]
    batch.accept({third: speech(0.1), first: speech(0.1)})
    assert first.cache is third.cache and first.cache.num_streams == 2 and second.cache.num_streams == 1
    batch.accept({second: speech(0.1)})
    batch.accept({stream: speech(0.3) for stream in batch.streams})
    assert first.cache is second.cache is third.cache
    batch.finish(second)
    assert first.cache.num_streams == 2 and second.cache is None


def test_a_stream_leaves_as_it_is(parts):
    """Nothing of it is transcribed, its memory is freed, and those who shared its cache go on."""
    batch = StreamingBatch(*parts, chunk_duration_ms=CHUNK_MS)
    first, second = batch.join(), batch.join()
    batch.accept({first: speech(1.0)[:8000], second: speech(0.5, 1)})
    batch.leave(second)
    assert batch.streams == [first] and second.cache is None and not len(second.input.features)
    with pytest.raises(ValueError, match="Stream 2 has left"):
        batch.accept({second: speech(0.1)})
    with pytest.raises(ValueError, match="Stream 2 has left"):
        batch.leave(first, second)
    batch.accept({first: speech(1.0)[8000:]})
    assert first.cache.num_streams == 1
    assert batch.finish(first) == [offline(parts, speech(1.0))]


def test_streams_that_nobody_holds_are_let_go(parts):
    batch = StreamingBatch(*parts, chunk_duration_ms=CHUNK_MS)
    kept = batch.join()
    for _ in range(3):
        visitor = batch.join()
        batch.accept({kept: speech(0.3), visitor: speech(0.3)})
    cache = weakref.ref(visitor.cache)
    del visitor
    gc.collect()
    assert batch.streams == [kept]
    batch.accept({kept: speech(0.3)})
    gc.collect()
    assert cache() is None and kept.cache.num_streams == 1
    assert batch.finish(kept) == [offline(parts, np.concatenate([speech(0.3)] * 4))]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_live_transcriber_can_be_copied_or_says_why_not(parts, copied):
    transcriber = StreamingTranscriber(*parts, chunk_duration_ms=CHUNK_MS)
    transcriber.accept(speech(1.0)[:7000])
    twin = copied(transcriber)
    for one in (transcriber, twin):
        one.accept(speech(1.0)[7000:])
        assert one.finish() == offline(parts, speech(1.0))
    fresh = copied(StreamingTranscriber(*parts))
    fresh.accept(speech(0.1), sampling_rate=48_000)
    with pytest.raises(TypeError, match="A stream at 48000 Hz cannot be copied.*resampler.*Copy it before"):
        copied(fresh)


def test_a_decoder_of_ones_own_transcribes_live(parts):
    """A beam search gives the text of the offline pass with the same beam."""
    model, processor = parts
    decoder = BeamSearchDecoder(processor.tokenizer, 0.04, DecodingOptions(beam_size=8))
    transcriber = StreamingTranscriber(*parts, CHUNK_MS, decoder=decoder)
    for block in np.array_split(speech(3.0), 17):
        text = transcriber.accept(block)
        assert text.text.startswith(text.final)
    [[wanted]] = Recognizer(model, processor).recognize([speech(3.0)], decoder, CHUNK_MS)
    assert transcriber.finish() == wanted.text != ""


def test_safe_conversions(parts):
    """int16, stereo and another rate give what the converted whole gives."""
    samples = speech(1.0)
    integers = np.round(samples * 20_000).astype(np.int16)
    expected = offline(parts, integers / np.float32(32_768))
    for block in (integers, np.stack([integers, integers], axis=1), torch.from_numpy(integers)):
        transcriber = StreamingTranscriber(*parts, chunk_duration_ms=CHUNK_MS)
        transcriber.accept(block[:5000])
        transcriber.accept(block[5000:])
        assert transcriber.finish() == expected


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates(parts, rate):
    samples = soxr.resample(speech(1.0), 16_000, rate)
    transcriber = StreamingTranscriber(*parts, chunk_duration_ms=CHUNK_MS)
    for start in range(0, len(samples), 701):
        transcriber.accept(samples[start : start + 701], sampling_rate=rate)
    assert transcriber.finish() == offline(parts, soxr.resample(samples, rate, 16_000))


def test_a_stream_remembers_which_axis_its_channels_are_on(parts):
    """A block of one or two samples does not tell."""
    samples = speech(0.5)
    stereo = np.stack([samples, np.zeros_like(samples)], axis=1)
    for blocks in (stereo, stereo.T):
        transcriber = StreamingTranscriber(*parts, chunk_duration_ms=CHUNK_MS)
        for begin, end in pairwise([0, 500, *range(501, 2000), 2002, 8000]):
            transcriber.accept(blocks[begin:end] if blocks is stereo else blocks[:, begin:end])
        assert transcriber.finish() == offline(parts, samples / 2)


def test_a_refused_block_leaves_the_stream_as_it_was(parts):
    samples = speech(1.0)
    transcriber = StreamingTranscriber(*parts, chunk_duration_ms=CHUNK_MS)
    transcriber.accept(samples[:7000])
    bad = samples[7000:9000].copy()
    bad[3] = np.nan
    with pytest.raises(AudioError, match="stream 1 at 0.44 s: not finite"):
        transcriber.accept(bad)
    with pytest.raises(AudioError, match="began at 16000 Hz and now brings 8000 Hz"):
        transcriber.accept(samples[7000:], sampling_rate=8_000)
    stream = transcriber.stream
    before = (
        stream.input.samples,
        stream.input.features,
        stream.input.seconds,
        stream.cache,
        stream.cache.valid,
        stream.input.channel_axis,
    )
    for block in (["a"], [[0.1], [0.2, 0.3]], samples * 1j, samples * 20_000, samples * 1e30, [1, 2], None, "text"):
        with pytest.raises(AudioError, match="stream 1 at 0.44 s: bad array"):
            transcriber.accept(block)
    other = transcriber.batch.join()
    with pytest.raises(AudioError, match="stream 2 at 0.00 s"):
        transcriber.batch.accept({stream: np.zeros((500, 2)), other: bad})  # nobody's block is heard
    after = (
        stream.input.samples,
        stream.input.features,
        stream.input.seconds,
        stream.cache,
        stream.cache.valid,
        stream.input.channel_axis,
    )
    assert all(one is other for one, other in zip(before, after, strict=True))
    transcriber.accept(samples[7000:])
    assert transcriber.finish() == offline(parts, samples)
    transcriber.accept(samples)  # a new stream
    assert transcriber.finish() == offline(parts, samples)


def test_what_cannot_stream_is_refused(parts):
    model, processor = parts
    with pytest.raises(ValueError, match="whole number of encoder frames of 40 ms, got 100 ms"):
        StreamingTranscriber(model, processor, chunk_duration_ms=100)
    with pytest.raises(ValueError, match="BiRQForCTC cannot stream"):
        StreamingTranscriber(BiRQForCTC(BiRQConfig(**TINY)), processor)
    batch = StreamingBatch(model, processor)
    stream = batch.join()
    batch.finish(stream)
    with pytest.raises(ValueError, match="has left"):
        batch.accept({stream: np.zeros(3)})
    other = batch.join()
    batch.accept({other: np.zeros(99)}, sampling_rate=8_000)
    with pytest.raises(ValueError, match="has left"):
        batch.finish(other, stream)
    assert not other.ended and batch.finish(other, other) == ["", ""]
    with pytest.raises(ValueError, match="ChunkSSLModel cannot stream"):
        StreamingTranscriber(model.encoder, processor)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        StreamingTranscriber(model, processor, left_context_chunks=-1)
    with pytest.raises(ValueError, match="where words begin or end.*got Named"):
        StreamingTranscriber(model, types.SimpleNamespace(tokenizer=Named()))


class Named:
    """A tokenizer that does not tell where words begin."""

    def __len__(self):
        return 2

    def convert_ids_to_tokens(self, ids):
        return ["<pad>", "a"]


def test_a_broken_model_is_not_taken_for_silence(parts):
    model = copy.deepcopy(parts[0])
    model.ctc_head.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        StreamingTranscriber(model, parts[1]).accept(speech(1.0))


def test_text_is_written_as_the_tokenizer_writes_it():
    torch.manual_seed(1)
    processor = build_ctc_processor(["AB C"], SpeechSSLFeatureExtractor(mean=[10.0] * 80, variance=[9.0] * 80))
    processor.tokenizer.do_lower_case = True
    config = ChunkSSLConfig(conv_kernel_size=5, vocab_size=len(processor.tokenizer), **TINY)
    config.initializer_range = 0.5
    model = ChunkSSLForCTC(config).eval()
    transcriber = StreamingTranscriber(model, processor, chunk_duration_ms=CHUNK_MS)
    text = transcriber.accept(speech(3.0)).text
    assert "c" in text and transcriber.finish() == offline((model, processor), speech(3.0))
