"""Sentences for the synthetic corpus: their grammars, and the split that a sentence belongs to.

No grammar holds two words that sound alike (no "to" beside "two", no "for" beside "four"), which no recognizer
without a language model can tell apart, nor pairs that espeak-ng runs together ("in the" is one word to it).
"""

import random
import zlib

from .clauses import Sentence, draw_translated

SPLITS = ("train", "validation", "test")

# An upper-case word is a symbol, replaced by one of its productions; alternatives are equally likely.
SMALL = {
    "SENTENCE": (
        "DIGIT DIGIT DIGIT",
        "DIGIT DIGIT DIGIT DIGIT",
        "DIGIT DIGIT DIGIT DIGIT DIGIT",
        "call NAME DIGIT DIGIT DIGIT",
        "NAME DIGIT DIGIT",
        "NAME and NAME VERB THING",
        "please call NAME and NAME",
        "VERB THING now",
        "please VERB THING",
        "VERB THING and THING",
    ),
    "DIGIT": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "NAME": ("anna", "david", "maria", "peter"),
    "VERB": ("open", "close", "find", "stop"),
    "THING": ("the NOUN", "my NOUN", "COLOR NOUN"),
    "NOUN": ("door", "window", "book", "light"),
    "COLOR": ("red", "green"),
}

FULL = {
    "SENTENCE": (
        "DIGIT DIGIT DIGIT DIGIT",
        "DIGIT DIGIT DIGIT DIGIT DIGIT DIGIT",
        "PERSON PAST OBJECT",
        "PERSON PAST OBJECT and OBJECT",
        "PERSON PAST OBJECT WHEN",
        "PERSON has COUNT ADJECTIVE PLURAL",
        "COUNT ADJECTIVE PLURAL and COUNT PLURAL",
        "POLITE COMMAND",
        "COMMAND and COMMAND",
        "don't VERB OBJECT",
        "call NAME at DIGIT DIGIT DIGIT DIGIT DIGIT",
        "it's HOUR o'clock WHEN",
        "set an alarm at HOUR TENS WHEN",
        "OBJECT is PLACE",
        "OBJECT was ADJECTIVE and ADJECTIVE",
        "PERSON can't VERB OBJECT",
        "PERSON lives near a PLACENAME",
        "DAY will be WEATHER and WEATHER",
        "where is OBJECT",
        "who PAST OBJECT",
        "they PAST OBJECT",
        "add COUNT PLURAL and some FOOD",
        "NAME plays MUSIC WHEN",
        "we PAST some FOOD WHEN",
        "MONTH was WEATHER and WEATHER",
    ),
    "PERSON": ("NAME", "NAME", "he", "she", "my RELATIVE"),
    "NAME": (
        "anna", "david", "maria", "peter", "sarah", "thomas", "laura", "michael",
        "julia", "robert", "emma", "daniel", "sophie", "victor", "olivia", "kevin",
    ),
    "RELATIVE": ("mother", "father", "brother", "sister", "cousin", "friend", "doctor", "teacher"),
    "DIGIT": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "HOUR": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    "TENS": ("ten", "fifteen", "twenty", "thirty", "forty", "fifty"),
    "COUNT": ("two", "three", "four", "five", "seven", "nine", "twelve", "fourteen", "TENS", "ninety", "many"),
    "OBJECT": ("DETERMINER NOUN", "DETERMINER ADJECTIVE NOUN", "DETERMINER COLOR NOUN"),
    "DETERMINER": ("the", "my", "your", "this", "that", "our", "every", "another"),
    "COLOR": ("red", "green", "yellow", "purple", "orange", "brown", "white", "black", "silver", "golden"),
    "ADJECTIVE": (
        "small", "large", "old", "young", "heavy", "quiet", "broken", "clean", "dirty", "empty",
        "simple", "strange", "famous", "beautiful", "narrow", "wooden", "expensive", "ordinary", "sharp", "gentle",
    ),
    "NOUN": (
        "door", "window", "book", "light", "table", "garden", "river", "mountain", "bridge", "picture",
        "letter", "engine", "bottle", "basket", "camera", "pencil", "jacket", "mirror", "ladder", "hammer",
        "guitar", "island", "kitchen", "library", "hospital", "station", "village", "castle", "bicycle", "rabbit",
        "horse", "elephant", "monkey", "chicken", "spider", "question", "answer", "story", "newspaper", "umbrella",
    ),
    "PLURAL": (
        "apples", "bananas", "tickets", "chairs", "flowers", "houses", "students", "dogs", "boxes", "candles",
        "buttons", "keys", "ships", "trees", "hats", "spoons", "potatoes", "glasses", "birds", "stones",
    ),
    "PAST": (
        "opened", "closed", "found", "painted", "carried", "lost", "followed", "remembered", "bought", "sold",
        "visited", "watched", "touched", "liked", "dropped", "changed", "wanted", "needed", "moved", "cleaned",
    ),
    "VERB": (
        "open", "close", "find", "stop", "move", "watch", "touch", "follow", "remember", "forget", "bring",
        "buy",
    ),
    "POLITE": ("please", "now", "quickly", "never"),
    "COMMAND": (
        "VERB OBJECT", "turn off OBJECT", "VERB my NOUN", "show me OBJECT", "give NAME OBJECT",
        "play some MUSIC",
    ),
    "WHEN": (
        "today", "tomorrow", "yesterday", "DAY morning", "DAY evening", "again", "last DAY", "last MONTH",
        "before lunch",
    ),
    "DAY": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "MONTH": (
        "january", "february", "april", "june", "july", "august", "september", "october", "november",
        "december",
    ),
    "PLACE": ("behind OBJECT", "under OBJECT", "between OBJECT and OBJECT", "near a PLACENAME", "above my NOUN"),
    "PLACENAME": (
        "school", "church", "market", "museum", "forest", "harbour", "valley", "airport", "factory", "theatre",
    ),
    "WEATHER": ("cold", "warm", "windy", "cloudy", "sunny", "wet", "dry", "foggy", "stormy"),
    "FOOD": ("bread", "butter", "cheese", "coffee", "sugar", "honey", "pepper", "chocolate", "soup", "water"),
    "MUSIC": ("music", "jazz", "drums", "violin", "piano", "songs"),
}  # fmt: skip

CLAUSES = "clauses"  # the grammar whose sentences have translations
_CONTEXT_FREE = {"small": SMALL, "full": FULL}
GRAMMARS = (*_CONTEXT_FREE, CLAUSES)


def vocabulary(grammar: str) -> list[str]:
    """The words of a context-free grammar ("small" or "full"), sorted."""
    rules = _CONTEXT_FREE[grammar]
    words = {word for productions in rules.values() for production in productions for word in production.split()}
    return sorted(words - rules.keys())


def split_of(sentence: str) -> str:
    """The one split that a sentence may occur in, whatever the seed: 80 % train, 10 % validation, 10 % test."""
    share = zlib.crc32(sentence.encode()) % 10
    return {8: "validation", 9: "test"}.get(share, "train")


def draw_sentence(grammar: str, split: str, rng: random.Random) -> str:
    """A sentence of the grammar that belongs to the split."""
    return draw_with_translations(grammar, split, rng).english


def draw_with_translations(grammar: str, split: str, rng: random.Random) -> Sentence:
    """The sentence of `draw_sentence` with its translations, which those of the grammar "clauses" have."""
    while True:
        if grammar == CLAUSES:
            sentence = draw_translated(rng)
        else:
            sentence = Sentence(" ".join(_expand("SENTENCE", _CONTEXT_FREE[grammar], rng)), {})
        if split_of(sentence.english) == split:
            return sentence


def _expand(symbol: str, rules: dict[str, tuple[str, ...]], rng: random.Random) -> list[str]:
    production = rng.choice(rules[symbol]).split()
    return [word for part in production for word in (_expand(part, rules, rng) if part in rules else [part])]
