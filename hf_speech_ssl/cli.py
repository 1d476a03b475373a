"""hf-speech-ssl: parse the command line and call one function."""

import argparse
import sys

from .data.audio import AudioError


def parser() -> argparse.ArgumentParser:
    """The command line, one sub-command per function."""
    top = argparse.ArgumentParser(
        prog="hf-speech-ssl", description="BiRQ and Chunk SSL speech models.", allow_abbrev=False
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    stream = commands.add_parser(
        "stream",
        help="print a live transcript of a file or of standard input",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    stream.add_argument("source", metavar="FILE|-", help="an audio file, or - for raw 16-bit mono samples")
    stream.add_argument("--model_name_or_path", required=True, help="folder or Hub id of a Chunk SSL CTC model")
    stream.add_argument("--chunk_duration_ms", type=int, default=320, help="duration of a chunk")
    stream.add_argument("--sampling_rate", type=int, default=16_000, help="of raw samples, in Hz")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line, not a traceback."""
    arguments = parser().parse_args(argv)
    from .live import stream_to_terminal  # torch loads only once the command line is right

    try:
        stream_to_terminal(
            arguments.model_name_or_path, arguments.source, arguments.chunk_duration_ms, arguments.sampling_rate
        )
    except (AudioError, OSError, ValueError) as error:
        print(f"hf-speech-ssl: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
