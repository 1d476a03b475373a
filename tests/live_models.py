"""A random model that babbles in words, for the tests of live transcription, and the offline pass to compare with."""

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Wav2Vec2Processor

from hf_speech_ssl.decoding import Decoder, GreedyDecoder, Hypothesis, build_ctc_processor
from hf_speech_ssl.modeling.configuration_chunkssl import ChunkSSLConfig
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.modeling.modeling_chunkssl import ChunkSSLForCTC

CHUNK_MS = 80
ONE_FRAME = 400 + 3 * 160  # samples
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def extractor() -> SpeechSSLFeatureExtractor:
    return SpeechSSLFeatureExtractor(mean=[10.0] * 80, variance=[9.0] * 80)


def babbling_model(processor, seed: int = 1) -> ChunkSSLForCTC:
    torch.manual_seed(seed)
    config = ChunkSSLConfig(conv_kernel_size=5, vocab_size=len(processor.tokenizer), **TINY)
    config.initializer_range = 0.5
    config.pad_token_id = processor.tokenizer.pad_token_id
    return ChunkSSLForCTC(config).eval()


def character_parts(alphabet: str = "ab c", seed: int = 1) -> tuple:
    processor = build_ctc_processor([alphabet], extractor())
    return babbling_model(processor, seed), processor


def bpe_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """BPE with capital letters and punctuation: SentencePiece's marks, or byte level."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    texts = ["Hello, Anna! Hello there.", "There she goes; the end.", "Is it so? It is so."] * 3
    if kind == "metaspace":
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        alphabet = []
    else:
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        alphabet = ["é"]
        texts.append("Ça été été")
    special = ["<pad>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")


def bpe_parts(kind: str, seed: int = 1) -> tuple:
    processor = Wav2Vec2Processor(extractor(), bpe_tokenizer(kind))
    return babbling_model(processor, seed), processor


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness and color change, so that a random model changes its mind."""
    random = np.random.default_rng(seed)
    count = int(16_000 * seconds)
    loudness = np.repeat(random.uniform(0.01, 0.5, count // 800 + 1), 800)[:count]
    tone = np.sin(np.cumsum(np.repeat(random.uniform(0.1, 2.0, count // 800 + 1), 800)[:count]))
    return (loudness * (tone + 0.1 * random.standard_normal(count))).astype(np.float32)


@torch.no_grad()
def offline(parts: tuple, samples: np.ndarray, decoder: Decoder | None = None) -> Hypothesis:
    """What one pass over the whole signal gives, in the same chunks."""
    model, processor = parts
    decoder = decoder or GreedyDecoder(processor.tokenizer, 0.04)
    if len(samples) < ONE_FRAME:
        return decoder.finish(decoder.start())[0]
    inputs = processor.feature_extractor(samples, sampling_rate=16_000, return_tensors="pt")
    logits = model(**inputs, chunk_size=model.config.chunk_frames(CHUNK_MS)).logits
    return decoder(logits.log_softmax(-1), [inputs["attention_mask"].sum() // 4])[0][0]
