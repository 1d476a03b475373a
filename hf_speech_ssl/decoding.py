"""From CTC logits or frame ids to token ids, text and times; and the character tokenizer that CTC training needs.

Shape letters: B utterances, T frames of logits, V vocabulary.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import SequenceFeatureExtractor, Wav2Vec2CTCTokenizer, Wav2Vec2Processor

BLANK_TOKEN = "[PAD]"
UNKNOWN_TOKEN = "[UNK]"
WORD_DELIMITER_TOKEN = "|"


class TokenSpan(NamedTuple):
    """One decoded token and the frames [start_frame, end_frame) that emitted it."""

    token_id: int
    start_frame: int
    end_frame: int


@dataclass(frozen=True)
class TimedText:
    """A character or a word, with the seconds from where it begins to be emitted to where it ends."""

    text: str
    start: float
    end: float


def greedy_ctc(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None = None,
    blank_token_id: int = 0,
) -> list[list[int]]:
    """Best-path CTC decoding (Graves et al. 2006, section 3.2): each frame's best token, repeats merged, no blank.

    Args:
        logits_or_ids: floating (B, T, V) logits, or integer (B, T) ids of the best token of each frame.
        lengths: (B,) frames that belong to each utterance; what follows is padding. All T frames unless given.
        blank_token_id: the CTC blank, `config.pad_token_id`.

    Returns:
        B lists of token ids. They are merged already: decode them with `ctc_text`, or with
        `tokenizer.decode(ids, group_tokens=False)`, else a double letter ("ll") is merged a second time.

    Raises:
        TypeError: if the input is no array or tensor of the kinds above.
        ValueError: if the shape is another, a length is outside [0, T], the blank is none of the V tokens, or a
            logit within the lengths is NaN.
    """
    counts, runs = _token_runs(logits_or_ids, lengths, blank_token_id)
    return [part.tolist() for part in runs[:, 0].split(counts)]


def greedy_ctc_spans(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None = None,
    blank_token_id: int = 0,
) -> list[list[TokenSpan]]:
    """As `greedy_ctc`, with the frames of each token: B lists of `TokenSpan`."""
    counts, runs = _token_runs(logits_or_ids, lengths, blank_token_id)
    return [[TokenSpan(*run) for run in part.tolist()] for part in runs.split(counts)]


def _token_runs(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None,
    blank_token_id: int,
) -> tuple[list[int], torch.Tensor]:
    """How many tokens each utterance has, and all of them in reading order: rows (token, first frame, frame after)."""
    ids, valid = _best_ids(logits_or_ids, lengths, blank_token_id)
    # Frames past the end count as blank; a blank column on either side lets every run begin and end inside.
    padded = torch.nn.functional.pad(ids.masked_fill(~valid, blank_token_id), (1, 1), value=blank_token_id)
    changes = padded[:, 1:] != padded[:, :-1]  # (B, T + 1); True at t: frame t differs from frame t - 1
    is_token = padded != blank_token_id
    utterance, start = (changes & is_token[:, 1:]).nonzero(as_tuple=True)
    end = (changes & is_token[:, :-1]).nonzero(as_tuple=True)[1]  # of the same runs, in the same order
    tokens = padded[:, 1:][utterance, start]
    return utterance.bincount(minlength=ids.shape[0]).tolist(), torch.stack([tokens, start, end], dim=1)


def _best_ids(
    logits_or_ids: torch.Tensor | NDArray[np.generic],
    lengths: torch.Tensor | Sequence[int] | None,
    blank_token_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks the input; (B, T) int64 ids on the CPU, and (B, T) bool: is the frame within its utterance."""
    if not isinstance(logits_or_ids, torch.Tensor | np.ndarray):
        raise TypeError(f"Expected a tensor or array of logits or ids, got {type(logits_or_ids).__name__}.")
    values = torch.as_tensor(logits_or_ids).detach()
    is_logits = values.is_floating_point()
    if values.dtype == torch.bool or values.is_complex() or values.ndim != (3 if is_logits else 2):
        raise ValueError(
            "Expected floating logits (batch, frames, vocabulary) or integer ids (batch, frames), got "
            f"{values.dtype} of shape {tuple(values.shape)}; for a single utterance add a batch axis: x[None]."
        )
    batch, frames = values.shape[:2]
    if is_logits and not 0 <= blank_token_id < values.shape[2]:
        raise ValueError(f"blank_token_id {blank_token_id} is none of the {values.shape[2]} tokens of the logits.")
    ends = torch.full((batch,), frames) if lengths is None else torch.as_tensor(lengths).cpu()
    if batch == 0:
        ends = ends.long()  # an empty list comes as a float tensor
    if ends.shape != (batch,) or ends.is_floating_point() or ((ends < 0) | (ends > frames)).any():
        raise ValueError(f"lengths must be {batch} whole numbers in [0, {frames}], got {ends.tolist()}.")
    valid = torch.arange(frames) < ends[:, None]  # (B, T)
    if not is_logits:
        return values.long().cpu(), valid
    if (values.amax(-1).isnan().cpu() & valid).any():  # a maximum over NaN is NaN
        raise ValueError("The logits hold NaN: the model or its input is broken (diverged training, bad audio).")
    return values.argmax(-1).cpu(), valid


def ctc_text(token_ids: Sequence[int], tokenizer: Wav2Vec2CTCTokenizer) -> str:
    """The text of token ids that are merged already (by `greedy_ctc` or a beam search), or of label ids."""
    return tokenizer.decode(list(token_ids), group_tokens=False)


def character_times(
    spans: Sequence[TokenSpan], tokenizer: Wav2Vec2CTCTokenizer, seconds_per_frame: float
) -> list[TimedText]:
    """Characters with times; spaces between words are characters too.

    Args:
        spans: of one utterance, from `greedy_ctc_spans`.
        seconds_per_frame: `config.inputs_to_logits_ratio / feature_extractor.sampling_rate`.

    Raises:
        ValueError: if seconds_per_frame is not positive.
    """
    if not (np.isfinite(seconds_per_frame) and seconds_per_frame > 0):
        raise ValueError(f"seconds_per_frame must be positive, got {seconds_per_frame}.")
    tokens = tokenizer.convert_ids_to_tokens([span.token_id for span in spans])
    return [
        TimedText(
            tokenizer.replace_word_delimiter_char if token == tokenizer.word_delimiter_token else token,
            span.start_frame * seconds_per_frame,
            span.end_frame * seconds_per_frame,
        )
        for token, span in zip(tokens, spans, strict=True)
    ]


def word_times(
    spans: Sequence[TokenSpan], tokenizer: Wav2Vec2CTCTokenizer, seconds_per_frame: float
) -> list[TimedText]:
    """Words with times, from the first frame of the first character to the last frame of the last one.

    Arguments and errors as in `character_times`.
    """
    words: list[TimedText] = []
    in_word = False
    for char in character_times(spans, tokenizer, seconds_per_frame):
        if char.text == tokenizer.replace_word_delimiter_char:
            in_word = False
        elif in_word:
            words[-1] = TimedText(words[-1].text + char.text, words[-1].start, char.end)
        else:
            words.append(char)
            in_word = True
    return words


def build_ctc_tokenizer(texts: Iterable[str]) -> Wav2Vec2CTCTokenizer:
    """A character tokenizer over exactly the characters of `texts`, taken as they are: normalise them first.

    Ids: 0 the blank (and padding) `[PAD]`, 1 `[UNK]`, 2 the word delimiter `|`, then the characters in the order of
    their code points: the same texts in any order give the same ids. The model needs `vocab_size=len(tokenizer)` and
    `pad_token_id=tokenizer.pad_token_id`.

    `Wav2Vec2CTCTokenizer` is the tokenizer with which the speech recognition pipeline gives right word times. Its
    `do_lower_case` is left off: it UPPER-cases what it reads and so wants an upper-case vocabulary. Frame ids must be
    decoded with the default `skip_special_tokens=False`: True takes blanks out before repeats are merged, and the
    two l of "hello" become one.

    Args:
        texts: transcripts, read once. Single empty ones (nothing said) are fine.

    Raises:
        TypeError: if `texts` is one bare string, or an entry is not a string (None: an example without transcript).
        ValueError: if there are no texts, or none with a character; if a text holds a character that the tokenizer
            gives another meaning ("|", "[PAD]") or white space other than the plain space.
    """
    characters = sorted(_characters_of(texts) - {" "})
    tokens = [BLANK_TOKEN, UNKNOWN_TOKEN, WORD_DELIMITER_TOKEN, *characters]
    with tempfile.TemporaryDirectory() as folder:  # the tokenizer reads its vocabulary from a file, once
        vocab_file = Path(folder) / "vocab.json"
        vocab_file.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
        # Without bos and eos set to None, <s> and </s> are added behind the vocabulary: two logits without a use.
        return Wav2Vec2CTCTokenizer(
            str(vocab_file),
            bos_token=None,
            eos_token=None,
            unk_token=UNKNOWN_TOKEN,
            pad_token=BLANK_TOKEN,
            word_delimiter_token=WORD_DELIMITER_TOKEN,
        )


def build_ctc_processor(texts: Iterable[str], feature_extractor: SequenceFeatureExtractor) -> Wav2Vec2Processor:
    """`build_ctc_tokenizer(texts)` and the feature extractor (any), as one processor that saves and loads together.

    Raises:
        TypeError: if `feature_extractor` is none; otherwise as `build_ctc_tokenizer`.
    """
    if not isinstance(feature_extractor, SequenceFeatureExtractor):
        raise TypeError(f"Expected a feature extractor, got {type(feature_extractor).__name__}.")
    return Wav2Vec2Processor(feature_extractor, build_ctc_tokenizer(texts))


def unknown_characters(texts: Iterable[str], tokenizer: Wav2Vec2CTCTokenizer) -> dict[str, int]:
    """Characters of `texts` that the tokenizer can only read as `[UNK]`, with their counts, the most frequent first.

    Worth a look before training (labels that are `[UNK]`) and before evaluation (errors that no model can avoid).
    """
    known = set(tokenizer.get_vocab()) | {" "}
    counts = Counter(char for text in texts for char in text if char not in known)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _characters_of(texts: Iterable[str]) -> set[str]:
    """The characters of all texts, each text checked."""
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of strings, got one string: {texts[:40]!r}.")
    characters: set[str] = set()
    index = -1
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"Text {index} is {text!r}, not a string: drop examples without a transcript, and check the name of "
                "the text column."
            )
        reserved = [token for token in (WORD_DELIMITER_TOKEN, BLANK_TOKEN) if token in text]
        odd_space = sorted({char for char in text if char.isspace() and char != " "})
        if reserved or odd_space:
            raise ValueError(
                f"Text {index} holds {(reserved + odd_space)!r}, which a character tokenizer cannot write: pass the "
                f"texts through hf_speech_ssl.evaluation.normalize_text first. The text: {text[:80]!r}"
            )
        characters.update(text)
    if index < 0:
        raise ValueError("There are no texts to build a vocabulary from: the dataset or its split is empty.")
    if not characters - {" "}:
        raise ValueError(f"All {index + 1} texts are empty: check the name of the text column.")
    return characters
