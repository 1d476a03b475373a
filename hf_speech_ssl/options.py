"""Options of commands and scripts: frozen dataclasses whose fields become flags of a command line.

An option has one field, with its default and its help; the classes below are those that several commands share. This
module imports nothing that takes time, because every command line is parsed with it.
"""

import dataclasses
import types
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def flag(default: Any, help: str, metavar: str | None = None, short: str | None = None) -> Any:
    """Make a dataclass field that is a flag, with its default, the text that `--help` shows, and a short form."""
    factory = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return dataclasses.field(metadata={"help": help, "metavar": metavar, "short": short}, **factory)


def required_flag(help: str) -> Any:
    """Make a dataclass field that is a flag which must be given. Its class must be `kw_only`."""
    return dataclasses.field(metadata={"help": help})


def argument(help: str, metavar: str) -> Any:
    """Make a dataclass field that is a positional argument. Its class must be `kw_only`."""
    return dataclasses.field(metadata={"help": help, "metavar": metavar, "positional": True})


@dataclass(frozen=True)
class LoadingOptions:
    """How a model is loaded."""

    revision: str | None = flag(None, "branch, tag or commit of the model on the Hub")
    trust_remote_code: bool = flag(False, "run the code that the model's repository brings")
    device: str | None = flag(None, "cpu, cuda, cuda:1, ...; a GPU if there is one by default")


@dataclass(frozen=True)
class ReadingOptions:
    """Which utterances of a data set are read, and how many at a time."""

    dataset_name: str = argument("Hub id, a local folder or file, or 'synthetic'", "DATASET")
    dataset_config_name: str | None = flag(None, "its configuration; for 'synthetic': 'sentences=500,seed=1'")
    split_name: str = flag("test", "its split")
    audio_column_name: str = flag("audio", "column with the audio")
    max_samples: int | None = flag(None, "the first so many utterances only")
    batch_seconds: float = flag(60.0, "seconds of padded audio in a batch; a longer utterance is a batch of its own")

    def __post_init__(self) -> None:
        if not self.batch_seconds > 0 or (self.max_samples is not None and self.max_samples < 1):
            raise ValueError(
                f"--batch_seconds and --max_samples must be above 0, got {self.batch_seconds} and {self.max_samples}."
            )


@dataclass(frozen=True)
class FrameOptions:
    """Which frames of an encoder are taken, and how long recordings are encoded."""

    layers: list[str] = flag(
        ["last"],
        "layers as `probe` numbers them, 0 the input and 1 the first block, or last; several are averaged, and all "
        "averages all blocks",
    )
    chunk_duration_ms: int = flag(0, "Chunk SSL: encode in chunks of this duration; 0 takes whole recordings")
    window_seconds: float = flag(
        30.0,
        "longer recordings are encoded in windows of this duration, of which the outer sixths only lend context, or "
        "chunk by chunk, which gives the same as the whole",
    )

    def __post_init__(self) -> None:
        if not 1 <= self.window_seconds < float("inf"):
            raise ValueError(f"--window_seconds must be a number of at least 1, got {self.window_seconds}.")


@dataclass(frozen=True)
class UnitOptions:
    """Which units frames become: clusters of k-means, or the labels that the model was pretrained on."""

    num_units: int = flag(100, "clusters of k-means, fitted on the chosen layers of this very split")
    kmeans_path: str | None = flag(None, "clusters of an earlier call, its kmeans.npz, instead of fitting some")
    labels: str | None = flag(
        None, "the model's own labels instead of k-means: anchor, enhanced, fsq, ..., or own if it has one kind"
    )
    deduplicate: bool = flag(False, "join neighboring frames of the same unit to one, with the times of all")
    max_training_frames: int = flag(200_000, "frames that k-means is fitted on, drawn from all")
    seed: int = flag(0, "of the draw and of k-means")

    def __post_init__(self) -> None:
        if self.labels is not None and self.kmeans_path is not None:
            raise ValueError("Units are labels or clusters: give --labels or --kmeans_path, not both.")
        if self.num_units < 1 or self.max_training_frames < self.num_units:
            raise ValueError(
                f"--num_units must be at least 1, and --max_training_frames at least as many, got {self.num_units} "
                f"and {self.max_training_frames}."
            )


@dataclass(frozen=True)
class DecodingOptions:
    """How a model's frames become text: by beam search with a language model or a lexicon, greedily without."""

    lm_path: str | Path | None = flag(None, "n-gram language model: ARPA (also .gz) or KenLM binary")
    lexicon_path: str | Path | None = flag(
        None,
        "decode these words only: one per line, or 'word<TAB>s p e l l i n g'; several lines for several spellings",
    )
    lm_weight: float = flag(1.0, "weight of the language model")
    word_bonus: float = flag(0.0, "added to the score for every word: above 0 for more words, below for fewer")
    beam_size: int | None = flag(
        None,
        "beam search: hypotheses kept after a frame; 50 by default, 8 with a transducer, which searches if given one",
    )


@dataclass(frozen=True)
class EndpointOptions:
    """When a segment of a live stream ends: the first of three rules that holds, each of them off by default."""

    silence_seconds: float | None = flag(None, "end a segment after so many seconds of silence behind speech")
    no_speech_seconds: float | None = flag(None, "tell after so many seconds of silence before any speech, once")
    max_segment_seconds: float | None = flag(None, "end a segment that is so long, behind its last whole word")
    voice_detector: Literal["none", "silero"] = flag(
        "none",
        "silence is what the model finds no words in; silero: what silero-vad finds no voice in, which is not "
        "transcribed, and costs next to nothing",
    )
    voice_threshold: float = flag(0.5, "silero: probability at which a voice begins; it ends 0.15 below")
    padding_seconds: float = flag(0.5, "silero: audio before a voice was noticed that is transcribed with it")

    def __post_init__(self) -> None:
        for name in ("silence_seconds", "no_speech_seconds", "max_segment_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise ValueError(f"--{name} must be above 0, got {seconds}; leave it out for no such rule.")
        if self.voice_detector != "none" and self.silence_seconds is None:
            raise ValueError(
                "A voice detector needs to know when speech is over: give --silence_seconds too, such as 0.8."
            )
        if not (0 <= self.voice_threshold <= 1 and 0 <= self.padding_seconds < float("inf")):
            raise ValueError(
                f"--voice_threshold must be between 0 and 1 and --padding_seconds at least 0, got "
                f"{self.voice_threshold} and {self.padding_seconds}."
            )


class OptionParser(ArgumentParser):
    """A parser whose help keeps the description's lines, and whose errors are one line."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help shows what there is.\n")


def add_options(parser: ArgumentParser, classes: Sequence[type], defaults: dict[str, Any]) -> None:
    """Add the fields of dataclasses to a parser, those of one class after those of another.

    Args:
        defaults: values that stand in place of the fields' own.

    Raises:
        TypeError: a field has a type that cannot be parsed.
    """
    fields = [(cls, field) for cls in classes for field in _options(cls)]
    bare_booleans = any("positional" in field.metadata for _, field in fields)
    for cls, field in fields:
        _add_option(parser, field, get_type_hints(cls)[field.name], bare_booleans)
    parser.set_defaults(**defaults)
    for action in parser._actions:
        if not (action.default is None or isinstance(action.default, bool) or action.default in ([], SUPPRESS)):
            action.help = f"{action.help} (default: {_as_typed(action.default)})"


def make_options(namespace: Namespace, classes: Sequence[type]) -> list[Any]:
    """Make an object of each class from what was parsed.

    Raises:
        ValueError: a class refuses a value.
    """
    values = vars(namespace)
    return [cls(**{field.name: values[field.name] for field in _options(cls)}) for cls in classes]


def parse_settings(argv: list[str] | None, description: str | None, classes: Sequence[type], **defaults: Any) -> Any:
    """Parse a script's command line: an object per dataclass.

    Args:
        argv: the words of the command line; those of the process by default.
        defaults: a recipe's values, in place of the dataclasses' own.
    """
    parser = OptionParser(description=description)
    add_options(parser, classes, defaults)
    return make_options(parser.parse_args(argv), classes)


def _options(cls: type) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if "help" in field.metadata]


def _add_option(parser: ArgumentParser, field: Any, annotation: Any, bare_booleans: bool) -> None:
    """Add one field.

    A boolean takes no value where there are positional arguments, which it would swallow. Elsewhere it takes "true"
    or "false", too, as the flags of Hugging Face's examples do.
    """
    kind, is_list, choices = _parsed_type(field.name, annotation)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    names = [name for name in (field.metadata.get("short"), f"--{field.name}") if name]
    settings = {"help": field.metadata["help"], "metavar": field.metadata.get("metavar")}
    if kind is bool:
        settings.pop("metavar")
        if bare_booleans:
            parser.add_argument(f"--{field.name}", action="store_true", default=default, **settings)
        else:
            settings |= {"type": _boolean, "nargs": "?", "const": True, "metavar": "true|false"}
            parser.add_argument(f"--{field.name}", default=default, **settings)
        if default is True:
            parser.add_argument(f"--no_{field.name}", action="store_false", dest=field.name, help=f"not {field.name}")
        return
    if is_list:
        settings["nargs"] = "+"
    settings |= {"type": kind, "choices": choices}
    if "positional" in field.metadata:
        parser.add_argument(field.name, **settings)
    elif default is MISSING:
        parser.add_argument(*names, required=True, **settings)
    else:
        parser.add_argument(*names, default=default, **settings)


def _parsed_type(name: str, annotation: Any) -> tuple[type, bool, tuple[str, ...] | None]:
    """The type of one word, whether there are several words, and the values to choose from."""
    if get_origin(annotation) in (Union, types.UnionType):
        present = [one for one in get_args(annotation) if one not in (type(None), Path)]
        annotation = present[0] if len(present) == 1 else annotation
    if get_origin(annotation) is Literal:
        return str, False, get_args(annotation)
    is_list = get_origin(annotation) is list
    kind = get_args(annotation)[0] if is_list else annotation
    if kind not in (str, int, float, bool):
        raise TypeError(f"Option {name} has type {annotation}, which no word of a command line can be.")
    return kind, is_list, None


def _boolean(word: str) -> bool:
    if word.lower() not in _BOOLEANS:
        raise ValueError
    return _BOOLEANS[word.lower()]


def _as_typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
