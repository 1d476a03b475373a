"""Tokenizers of word pieces, as transducers are trained with, made from the transcripts: unigram or BPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ParakeetTokenizer, SequenceFeatureExtractor, Wav2Vec2Processor

from .text import WORD_START
from .vocabulary import BLANK_TOKEN, UNKNOWN_TOKEN, check_texts

PieceKind = Literal["unigram", "bpe"]


def build_piece_tokenizer(texts: Sequence[str], vocab_size: int, kind: PieceKind = "unigram") -> ParakeetTokenizer:
    """A tokenizer of `vocab_size` pieces, in SentencePiece's notation, over `texts`, taken as they are.

    Ids: 0 the blank (and padding) `[PAD]`, 1 `[UNK]`, then the pieces. Case and punctuation stay as they are in the
    texts, and every character of theirs is a piece. `ParakeetTokenizer` is the class of transformers whose `decode`
    drops blanks; `group_tokens=False` keeps the repeats that a transducer emits.

    Args:
        texts: transcripts. Single empty ones are fine.
        vocab_size: pieces, the two special tokens included.
        kind: "unigram" (Kudo, arXiv 1804.10959) or "bpe".

    Raises:
        TypeError, ValueError: as in `build_ctc_tokenizer`, and where the texts do not have just so many pieces.
    """
    characters = check_texts(texts, reserved=(BLANK_TOKEN, UNKNOWN_TOKEN, WORD_START))
    least = len(characters) + 3  # with the mark of a word's beginning, and two special tokens
    if vocab_size < least:
        raise ValueError(
            f"A vocabulary of {vocab_size} pieces does not hold the {len(characters)} characters of the transcripts: "
            f"give at least {least} (--vocabulary_size {least})."
        )
    special = [BLANK_TOKEN, UNKNOWN_TOKEN]
    trainer: trainers.UnigramTrainer | trainers.BpeTrainer
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size, special_tokens=special, unk_token=UNKNOWN_TOKEN, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN_TOKEN))
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WORD_START)
    tokenizer.decoder = decoders.Metaspace(WORD_START)
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) != vocab_size:
        raise ValueError(
            f"The transcripts have {found} different pieces, {vocab_size} are asked for: give --vocabulary_size "
            f"{found} or less, or more text."
        )
    return ParakeetTokenizer(tokenizer_object=tokenizer, pad_token=BLANK_TOKEN, unk_token=UNKNOWN_TOKEN)


def build_piece_processor(
    texts: Sequence[str], feature_extractor: SequenceFeatureExtractor, vocab_size: int, kind: PieceKind = "unigram"
) -> Wav2Vec2Processor:
    """`build_piece_tokenizer` and the feature extractor, as one processor that saves and loads together."""
    return Wav2Vec2Processor(feature_extractor, build_piece_tokenizer(texts, vocab_size, kind))
