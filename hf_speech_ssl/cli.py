"""hf-speech-ssl: parse the command line and call one function.

Only what parses is imported here. The commands import torch and transformers themselves, when they begin.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import console
from .commands.average import AverageOptions, average
from .commands.card import CardOptions, card
from .commands.demo import DemoOptions, demo
from .commands.evaluate import EvaluateOptions, evaluate
from .commands.export import ExportOptions, export
from .commands.extract import ExtractOptions, features, units
from .commands.language_model import NGramOptions, TuneOptions, ngram, tune
from .commands.picture import PictureOptions, picture
from .commands.presets import PresetsOptions, presets
from .commands.probe import ProbeOptions, probe
from .commands.push import PushOptions, push
from .commands.serve import ServeOptions, serve
from .commands.stream import StreamOptions, stream
from .commands.transcribe import TranscribeOptions, transcribe
from .options import (
    DecodingOptions,
    EndpointOptions,
    FrameOptions,
    LoadingOptions,
    OptionParser,
    ReadingOptions,
    UnitOptions,
    add_options,
    make_options,
)

PROGRAM = "hf-speech-ssl"


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        call: takes an object of each of the option classes.
        help: a line on what it does.
        options: its option classes, in the order in which `--help` shows them.
        defaults: in place of those of the classes.
    """

    call: Callable[..., Any]
    help: str
    options: tuple[type, ...]
    defaults: dict[str, Any] = field(default_factory=dict)


COMMANDS = (
    Command(
        transcribe,
        "transcribe audio files to text, subtitles or JSON",
        (TranscribeOptions, LoadingOptions, DecodingOptions),
    ),
    Command(
        stream,
        "print a live transcript of a file or of standard input",
        (StreamOptions, LoadingOptions, DecodingOptions, EndpointOptions),
    ),
    Command(serve, "serve live streams and files of many clients", (ServeOptions, LoadingOptions)),
    Command(demo, "open a page to speak into", (DemoOptions, LoadingOptions)),
    Command(
        evaluate,
        "error rates with confidence intervals, worst utterances, speakers",
        (EvaluateOptions, ReadingOptions, LoadingOptions, DecodingOptions),
    ),
    Command(ngram, "make an n-gram language model from text", (NGramOptions,)),
    Command(
        tune,
        "choose language model weight and word bonus on a development set",
        (TuneOptions, ReadingOptions, LoadingOptions),
        {"split_name": "validation"},
    ),
    Command(
        probe,
        "measure what each layer of a pretrained encoder knows of phones",
        (ProbeOptions, ReadingOptions, LoadingOptions),
        {"split_name": "train"},
    ),
    Command(
        features,
        "write the frames of an encoder's layers, with times, as a data set",
        (ExtractOptions, FrameOptions, ReadingOptions, LoadingOptions),
        {"split_name": "train"},
    ),
    Command(
        units,
        "write units of recordings, clusters or the model's own labels, with times, as a data set",
        (ExtractOptions, UnitOptions, FrameOptions, ReadingOptions, LoadingOptions),
        {"split_name": "train"},
    ),
    Command(picture, "draw what pretraining masks and asks of a recording", (PictureOptions, LoadingOptions)),
    Command(export, "write a CTC model as graphs that run without this package", (ExportOptions, LoadingOptions)),
    Command(average, "average the best checkpoints of a run", (AverageOptions,)),
    Command(card, "write the model card and the curves of a run anew", (CardOptions,)),
    Command(presets, "print the page of the published configurations", (PresetsOptions,)),
    Command(push, "upload a model folder to the Hub", (PushOptions,)),
)


def parser() -> OptionParser:
    """The command line; a command's namespace has the [`Command`] as `command`."""
    top = OptionParser(prog=PROGRAM, description="BiRQ and Chunk SSL speech models.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        description = f"{command.help[0].upper()}{command.help[1:]}."
        sub_parser = commands.add_parser(command.call.__name__, help=command.help, description=description)
        add_options(sub_parser, command.options, command.defaults)
        sub_parser.add_argument(console.VERBOSE, action="store_true", help="show where an error comes from")
        sub_parser.set_defaults(command=command)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code of the process."""
    arguments = parser().parse_args(argv)
    command: Command = arguments.command
    return console.run(
        PROGRAM, lambda: command.call(*make_options(arguments, command.options)), verbose=arguments.verbose
    )


if __name__ == "__main__":
    sys.exit(main())
