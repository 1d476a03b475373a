"""Sentences with subordinate clauses in English, with their translations into German and Spanish.

German has the verb, or the part of it that carries the meaning, at the end of a clause: "that anna bought the hat" is
"dass Anna den Hut gekauft hat". Spanish has its adjectives behind the noun. Translations are cased and punctuated.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

LANGUAGES = ("de", "es")

_SHARE_OF_ADJECTIVES, _SHARE_OF_TIMES = 0.5, 0.4


@dataclass(frozen=True)
class Sentence:
    """A sentence as it is spoken, in lower case without punctuation, and its translations by language."""

    english: str
    translations: dict[str, str]


def _table(text: str) -> list[list[str]]:
    """Rows of a table: fields separated by bars."""
    return [line.strip().split("|") for line in text.strip().splitlines()]


# Somebody, in English, in German (nominative) and in Spanish.
_PERSONS = _table("""
    anna|Anna|Anna
    david|David|David
    maria|Maria|María
    peter|Peter|Peter
    sarah|Sarah|Sarah
    thomas|Thomas|Thomas
    my mother|meine Mutter|mi madre
    my father|mein Vater|mi padre
    my brother|mein Bruder|mi hermano
    my sister|meine Schwester|mi hermana
    our teacher|unser Lehrer|nuestro profesor
    our doctor|unser Arzt|nuestro médico
    our neighbor|unser Nachbar|nuestro vecino
""")

# A thing in English, in German and in Spanish, there with its gender.
_NOUNS = _table("""
    hat|Hut|m|sombrero|m
    book|Buch|n|libro|m
    lamp|Lampe|f|lámpara|f
    door|Tür|f|puerta|f
    window|Fenster|n|ventana|f
    letter|Brief|m|carta|f
    table|Tisch|m|mesa|f
    bottle|Flasche|f|botella|f
    basket|Korb|m|cesta|f
    camera|Kamera|f|cámara|f
    picture|Bild|n|cuadro|m
    jacket|Jacke|f|chaqueta|f
    guitar|Gitarre|f|guitarra|f
    mirror|Spiegel|m|espejo|m
    umbrella|Regenschirm|m|paraguas|m
    bicycle|Fahrrad|n|bicicleta|f
""")

# A property in English, in German without its ending, in Spanish masculine and feminine.
_ADJECTIVES = _table("""
    red|rot|rojo|roja
    green|grün|verde|verde
    white|weiß|blanco|blanca
    black|schwarz|negro|negra
    old|alt|viejo|vieja
    new|neu|nuevo|nueva
    small|klein|pequeño|pequeña
    heavy|schwer|pesado|pesada
    beautiful|schön|hermoso|hermosa
    strange|seltsam|extraño|extraña
""")

# A verb: its infinitive, past and present in English; infinitive, participle and present in German; as in English in
# Spanish.
_VERBS = _table("""
    buy|bought|buys|kaufen|gekauft|kauft|comprar|compró|compra
    sell|sold|sells|verkaufen|verkauft|verkauft|vender|vendió|vende
    find|found|finds|finden|gefunden|findet|encontrar|encontró|encuentra
    lose|lost|loses|verlieren|verloren|verliert|perder|perdió|pierde
    paint|painted|paints|malen|gemalt|malt|pintar|pintó|pinta
    carry|carried|carries|tragen|getragen|trägt|llevar|llevó|lleva
    clean|cleaned|cleans|putzen|geputzt|putzt|limpiar|limpió|limpia
    open|opened|opens|öffnen|geöffnet|öffnet|abrir|abrió|abre
    forget|forgot|forgets|vergessen|vergessen|vergisst|olvidar|olvidó|olvida
    hide|hid|hides|verstecken|versteckt|versteckt|esconder|escondió|esconde
""")

_MODALS = _table("""
    will|wird|va a
    must|muss|debe
    can|kann|puede
""")

_TIMES = {
    "past": _table("""
        yesterday|gestern|ayer
        last monday|letzten Montag|el lunes pasado
        last week|letzte Woche|la semana pasada
    """),
    "present": _table("""
        today|heute|hoy
        every day|jeden Tag|cada día
        now|jetzt|ahora
    """),
    "modal": _table("""
        today|heute|hoy
        tomorrow|morgen|mañana
        next week|nächste Woche|la próxima semana
    """),
}
_TENSES = tuple(_TIMES)

_REPORTS = _table("""
    says|sagt|dice
    thinks|glaubt|cree
    knows|weiß|sabe
""")

# Determiners: in German by case and gender (m, n, f), in Spanish by gender (m, f).
_DETERMINERS = {
    "the": ({"nominative": "der das die", "accusative": "den das die"}, "el la"),
    "my": ({"nominative": "mein mein meine", "accusative": "meinen mein meine"}, "mi mi"),
    "this": ({"nominative": "dieser dieses diese", "accusative": "diesen dieses diese"}, "este esta"),
}
# Endings of German adjectives behind them.
_STRONG = {"nominative": "er es e", "accusative": "en es e"}  # behind "mein"
_WEAK = {"nominative": "e e e", "accusative": "en e e"}
_RELATIVE = "den das die"


def _of_gender(forms: str, gender: str) -> str:
    genders = "mnf" if forms.count(" ") == 2 else "mf"
    return forms.split()[genders.index(gender)]


@dataclass(frozen=True)
class _Phrase:
    english: str
    german: str
    spanish: str


@dataclass(frozen=True)
class _Clause:
    """A clause: German in parts, because their order depends on where the clause stands."""

    english: str
    subject: str
    finite: str
    middle: str
    rest: str
    spanish: str

    @property
    def main(self) -> str:
        """Verb second."""
        return _join(self.subject, self.finite, self.middle, self.rest)

    @property
    def inverted(self) -> str:
        """Verb before the subject, behind what stands first in the sentence."""
        return _join(self.finite, self.subject, self.middle, self.rest)

    @property
    def subordinate(self) -> str:
        """Verb last."""
        return _join(self.subject, self.middle, self.rest, self.finite)


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _choose(table: list[list[str]], rng: random.Random) -> _Phrase:
    return _Phrase(*rng.choice(table))


def _thing(rng: random.Random) -> _Phrase:
    """An object: determiner, perhaps an adjective, noun; accusative."""
    determiner = rng.choice(tuple(_DETERMINERS))
    english, german, gender, spanish, spanish_gender = rng.choice(_NOUNS)
    of_case, spanish_forms = _DETERMINERS[determiner]
    german_parts = [_of_gender(of_case["accusative"], gender), german]
    english_parts, spanish_parts = [determiner, english], [_of_gender(spanish_forms, spanish_gender), spanish]
    if rng.random() < _SHARE_OF_ADJECTIVES:
        adjective, stem, *by_gender = rng.choice(_ADJECTIVES)
        endings = (_STRONG if determiner == "my" else _WEAK)["accusative"]
        english_parts.insert(1, adjective)
        german_parts.insert(1, stem + _of_gender(endings, gender))
        spanish_parts.append(_of_gender(" ".join(by_gender), spanish_gender))
    return _Phrase(*map(" ".join, (english_parts, german_parts, spanish_parts)))


def _time(tense: str, rng: random.Random) -> _Phrase:
    return _choose(_TIMES[tense], rng) if rng.random() < _SHARE_OF_TIMES else _Phrase("", "", "")


def _verb(tense: str, rng: random.Random) -> tuple[str, str, str, str]:
    """A verb in English, its finite and its other part in German, and in Spanish."""
    infinitive, past, present, de_infinitive, participle, de_present, es_infinitive, es_past, es_present = rng.choice(
        _VERBS
    )
    if tense == "past":
        return past, "hat", participle, es_past
    if tense == "present":
        return present, de_present, "", es_present
    modal = _choose(_MODALS, rng)
    return f"{modal.english} {infinitive}", modal.german, de_infinitive, f"{modal.spanish} {es_infinitive}"


def _clause(tense: str, rng: random.Random, *, timed: bool = True) -> _Clause:
    """Somebody does something to a thing, perhaps at some time."""
    who, (english, finite, rest, spanish), what = _choose(_PERSONS, rng), _verb(tense, rng), _thing(rng)
    when = _time(tense, rng) if timed else _Phrase("", "", "")
    return _Clause(
        _join(who.english, english, what.english, when.english),
        who.german,
        finite,
        _join(what.german, when.german),
        rest,
        _join(who.spanish, spanish, what.spanish, when.spanish),
    )


def _any_clause(rng: random.Random) -> _Clause:
    return _clause(rng.choice(_TENSES), rng)


def _statement(rng: random.Random) -> _Phrase:
    one = _any_clause(rng)
    return _Phrase(one.english, f"{one.main}.", f"{one.spanish}.")


def _time_first(rng: random.Random) -> _Phrase:
    tense = rng.choice(_TENSES)
    when, one = _choose(_TIMES[tense], rng), _clause(tense, rng, timed=False)
    return _Phrase(f"{when.english} {one.english}", f"{when.german} {one.inverted}.", f"{when.spanish} {one.spanish}.")


def _report(rng: random.Random) -> _Phrase:
    who, says, one = _choose(_PERSONS, rng), _choose(_REPORTS, rng), _any_clause(rng)
    return _Phrase(
        f"{who.english} {says.english} that {one.english}",
        f"{who.german} {says.german}, dass {one.subordinate}.",
        f"{who.spanish} {says.spanish} que {one.spanish}.",
    )


def _reason(rng: random.Random) -> _Phrase:
    first, second = _clause("past", rng, timed=False), _any_clause(rng)
    return _Phrase(
        f"{first.english} because {second.english}",
        f"{first.main}, weil {second.subordinate}.",
        f"{first.spanish} porque {second.spanish}.",
    )


def _condition(rng: random.Random) -> _Phrase:
    first, second = _clause("present", rng, timed=False), _clause("modal", rng)
    return _Phrase(
        f"if {first.english} {second.english}",
        f"wenn {first.subordinate}, {second.inverted}.",
        f"si {first.spanish}, {second.spanish}.",
    )


def _concession(rng: random.Random) -> _Phrase:
    first, second = _clause("past", rng, timed=False), _clause("past", rng)
    return _Phrase(
        f"although {first.english} {second.english}",
        f"obwohl {first.subordinate}, {second.inverted}.",
        f"aunque {first.spanish}, {second.spanish}.",
    )


def _question(rng: random.Random) -> _Phrase:
    (english, finite, rest, spanish), what, when = _verb("past", rng), _thing(rng), _time("past", rng)
    return _Phrase(
        _join("who", english, what.english, when.english),
        f"{_join('wer', finite, what.german, when.german, rest)}?",
        f"¿{_join('Quién', spanish, what.spanish, when.spanish)}?",
    )


def _relative(rng: random.Random) -> _Phrase:
    """A thing that somebody did something to has a property."""
    noun, german, gender, es_noun, es_gender = rng.choice(_NOUNS)
    determiner = rng.choice(tuple(_DETERMINERS))
    who, (english, finite, rest, spanish) = _choose(_PERSONS, rng), _verb("past", rng)
    adjective, stem, *by_gender = rng.choice(_ADJECTIVES)
    of_case, spanish_forms = _DETERMINERS[determiner]
    subject = f"{_of_gender(of_case['nominative'], gender)} {german}"
    relative = _join(_of_gender(_RELATIVE, gender), who.german, rest, finite)
    es_subject = f"{_of_gender(spanish_forms, es_gender)} {es_noun}"
    es_adjective = _of_gender(" ".join(by_gender), es_gender)
    return _Phrase(
        f"{determiner} {noun} that {who.english} {english} is {adjective}",
        f"{subject}, {relative}, ist {stem}.",
        f"{es_subject} que {who.spanish} {spanish} es {es_adjective}.",
    )


_KINDS: tuple[Callable[[random.Random], _Phrase], ...] = (
    _statement,
    _time_first,
    _report,
    _reason,
    _condition,
    _concession,
    _question,
    _relative,
)


def draw_translated(rng: random.Random) -> Sentence:
    """A sentence with its translations."""
    phrase = rng.choice(_KINDS)(rng)
    german, spanish = (text[0].upper() + text[1:] for text in (phrase.german, phrase.spanish))
    return Sentence(phrase.english, {"de": german, "es": spanish})
