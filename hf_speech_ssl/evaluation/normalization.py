"""Text normalization for scoring. Nothing in the package applies it behind the caller's back."""

import unicodedata


def normalize_text(text: str) -> str:
    """Lower-case, take punctuation and symbols out, collapse white space.

    - Unicode NFC first, so that one written letter is one character however it was typed.
    - Every character of the Unicode categories P (punctuation) and S (symbols) becomes a space: "well-known" gives
      "well known". Apostrophes stay, the typographic ones (U+2019, U+02BC) as "'".
    - Letters, digits and combining marks stay as they are: numbers are not spelt out.

    Apply it to the references and to the predictions alike, and to the texts that a tokenizer is built from.

    Raises:
        TypeError: if `text` is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"normalize_text takes one string, got {type(text).__name__}: for a list use "
            "[normalize_text(text) for text in texts], and drop examples that have no transcript."
        )
    text = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'").replace("\u02bc", "'")
    kept = (" " if unicodedata.category(char)[0] in "PS" and char != "'" else char for char in text)
    # Lower-casing and taking signs out can leave letters and marks that compose: normalize the result once more.
    return unicodedata.normalize("NFC", " ".join("".join(kept).split()))
