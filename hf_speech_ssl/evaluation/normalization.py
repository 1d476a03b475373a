"""Text normalization for vocabularies, scoring and evaluation. Nothing applies it behind the caller's back."""

import re
import unicodedata

# What people type for an apostrophe: quotation marks, accents and primes, modifier letters, other scripts' own.
_APOSTROPHES = (
    "\u2019\u2018\u201b\u02bc\u02bb\u02bd\u02b9\u02c8\u2032\u00b4\u0060\uff07\u055a\u05f3\ua78b\ua78c\u07f4\u07f5"
)
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"  # letters and marks without a shape
_TATWEEL = "\u0640"  # lengthens a line, and is no letter
_JOINER, _NON_JOINER, _SPACE = "\u200d", "\u200c", "\u200b"
_TRANSLATION = str.maketrans(
    {
        **dict.fromkeys(_APOSTROPHES, "'"),
        **dict.fromkeys([*_INVISIBLE, _TATWEEL, *map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0))]),
    }
)
_VIRAMA = 9  # combining class of the marks behind which a joiner changes a letter
# Scripts with letters that join: Arabic, Syriac and their neighbors, those of India and Southeast Asia, Mongolian.
_JOINING = re.compile("[\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u17ff\u1800-\u18af\ufb50-\ufdff\ufe70-\ufefc]")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # Thai, Lao, Burmese, Khmer: U+200B ends a word
_LONE_APOSTROPHE = re.compile(r"(?<!\S)'+(?!\S)")


def normalize_text(text: str) -> str:
    """Lower-case, take punctuation, symbols and invisible characters out, collapse white space.

    - Unicode NFC first, so that one written letter is one character however it was typed.
    - Every character of the Unicode categories P (punctuation) and S (symbols) becomes a space: "well-known" gives
      "well known". Apostrophes in words stay; all that is typed for one becomes "'".
    - Invisible characters (category Cf, variation selectors, fillers) and enclosing marks are dropped. U+200C and
      U+200D stay where they change letters: in Arabic script, and behind a virama. U+200B becomes a space in scripts
      that are written without spaces.
    - Letters, digits and combining marks stay as they are: numbers are not spelt out, and ligatures (U+FB01) and
      full-width forms stay. The Arabic tatweel is dropped.
    - Turkish: the dotted capital becomes "i". A capital I without a dot becomes "i" too, as in other languages:
      lower-case Turkish and Azerbaijani transcripts by their own rules before.

    Apply it to the references and to the predictions alike, and to the texts that a tokenizer is built from.
    Normalizing twice changes nothing.

    Raises:
        TypeError: if `text` is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"normalize_text takes one string, got {type(text).__name__}: for a list use "
            "[normalize_text(text) for text in texts], and drop examples that have no transcript."
        )
    text = unicodedata.normalize("NFC", text).replace("\u0130", "i").lower().translate(_TRANSLATION)
    text = unicodedata.normalize("NFC", text.replace("i\u0307", "i"))
    kept = "".join(char if char.isalnum() else _kept(text, place) for place, char in enumerate(text))
    # Taking signs out can leave letters and marks that compose: normalize the result once more.
    return unicodedata.normalize("NFC", " ".join(_LONE_APOSTROPHE.sub(" ", kept).split()))


def _kept(text: str, place: int) -> str:
    """What becomes of one character."""
    char = text[place]
    category = unicodedata.category(char)
    if category[0] in "PS":
        return "'" if char == "'" else " "
    if category[0] == "Z" or char.isspace():
        return " "
    if category == "Me" or category[0] == "C":
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        return _kept_invisible(char, before, after)
    return char


def _kept_invisible(char: str, before: str, after: str) -> str:
    if char == _JOINER:
        return char if before and unicodedata.combining(before) == _VIRAMA else ""
    if char == _NON_JOINER:
        return char if _is_joining(before) and _is_joining(after) else ""
    if char == _SPACE:
        return " " if _UNSPACED.match(before) or _UNSPACED.match(after) else ""
    return ""


def _is_joining(char: str) -> bool:
    return bool(_JOINING.match(char)) and unicodedata.category(char)[0] in "LM"
