"""hf-speech-ssl: parse the command line and call one function."""

import argparse
import importlib
import signal
import sys
from collections.abc import Callable
from typing import Any

RATE = 16_000  # Hz


def parser() -> argparse.ArgumentParser:
    """The command line, one sub-command per function; `call` of a command names that function."""
    top = argparse.ArgumentParser(
        prog="hf-speech-ssl", description="BiRQ and Chunk SSL speech models.", allow_abbrev=False
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add, help, call in (
        (_transcribe, "transcribe audio files to text, subtitles or JSON", "commands.transcribe:transcribe"),
        (_stream, "print a live transcript of a file or of standard input", "commands.stream:stream_to_terminal"),
        (_demo, "open a page to speak into", "commands.demo:demo"),
        (_evaluate, "error rates with confidence intervals, worst utterances, speakers", "commands.evaluate:evaluate"),
        (_ngram, "make an n-gram language model from text", "commands.language_model:make_language_model"),
        (_tune, "choose language model weight and word bonus on a dev set", "commands.language_model:tune"),
        (_probe, "see what each layer of a pretrained encoder knows of phones", "commands.probe:probe"),
        (_average, "average the best checkpoints of a run", "commands.average:average"),
        (_push, "upload a model folder to the Hub", "commands.push:push"),
    ):
        command = commands.add_parser(
            add.__name__[1:],
            help=help,
            description=help[0].upper() + help[1:] + ".",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        add(command)
        command.set_defaults(call=call)
    return top


def _transcribe(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "sources", nargs="+", metavar="FILE", help="audio files, folders of them with all sub-folders, or globs"
    )
    command.add_argument("--model_name_or_path", required=True, help="folder or Hub id of any CTC model")
    _loading_options(command)
    _batch_option(command)
    command.add_argument(
        "--format", choices=("text", "json", "srt", "vtt"), default="text", help="what is written; json has word times"
    )
    command.add_argument(
        "--output_dir",
        help="write NAME.txt (.json, .srt, .vtt) there, over older ones, in the sub-folders of a folder's files; "
        "standard output by default",
    )
    command.add_argument("--chunk_duration_ms", type=int, default=0, help="Chunk SSL: hear in chunks; 0 hears whole")
    command.add_argument(
        "--window_seconds",
        type=float,
        default=30.0,
        help="longer files are heard in windows of this duration, or in chunks that remember as much; shorter windows "
        "suit models trained on short utterances",
    )
    _decoding_options(command)
    command.add_argument(
        "--num_best", type=int, default=1, help="json: readings of each file, the others as its alternatives"
    )


def _stream(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source", metavar="FILE|-", help="an audio file, or - for raw 16-bit mono samples on standard input"
    )
    command.add_argument("--model_name_or_path", required=True, help="folder or Hub id of a Chunk SSL CTC model")
    command.add_argument(
        "--chunk_duration_ms", type=int, default=320, help="duration of a chunk; text is one to two chunks late"
    )
    command.add_argument(
        "--left_context_chunks",
        type=int,
        help="chunks that are remembered; by default as many as the model was made for, or all, and memory grows",
    )
    command.add_argument("--sampling_rate", type=int, default=RATE, help="of raw samples, in Hz")
    _loading_options(command)


def _demo(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model_name_or_path", metavar="MODEL", help="folder or Hub id of a CTC model, or of an encoder"
    )
    command.add_argument("--chunk_duration_ms", type=int, default=320, help="Chunk SSL: duration of a live chunk")
    command.add_argument("--labels_from", help="pretraining checkpoint or tokenizer whose labels the pictures show")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all")
    command.add_argument("--port", type=int, default=7860, help="port to listen at")
    _loading_options(command)
    command.add_argument("--space_dir", help="write the page as a Space folder there instead of opening it")


def _evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("model_name_or_path", metavar="MODEL", help="folder or Hub id of any CTC model")
    _dataset_options(command)
    command.add_argument("--text_column_name", default="text", help="column with the transcripts")
    command.add_argument("--speaker_column_name", default="speaker_id", help="column with the speakers, if there is")
    command.add_argument(
        "--chunk_durations_ms",
        type=int,
        nargs="+",
        default=[],
        metavar="MS",
        help="Chunk SSL: also in chunks of these",
    )
    command.add_argument("--no_normalize_text", dest="normalize", action="store_false", help="score texts as they are")
    command.add_argument("--num_worst", type=int, default=10, help="utterances shown with the most errors")
    command.add_argument("--num_resamples", type=int, default=1000, help="bootstrap resamples of the intervals")
    command.add_argument("--output_file", help="where the report is written as JSON")
    _loading_options(command)
    _decoding_options(command)


def _ngram(command: argparse.ArgumentParser) -> None:
    command.add_argument("text_files", nargs="+", metavar="TEXT", help="sentences, one per line")
    command.add_argument("--order", type=int, default=4, help="words in the longest n-gram")
    command.add_argument("--output_file", required=True, help="the ARPA file to write")
    command.add_argument("--no_normalize_text", dest="normalize", action="store_false", help="take texts as they are")


def _tune(command: argparse.ArgumentParser) -> None:
    command.add_argument("model_name_or_path", metavar="MODEL", help="folder or Hub id of any CTC model")
    _dataset_options(command, split="validation")
    command.add_argument("--text_column_name", default="text", help="column with the transcripts")
    command.add_argument("--lm_weights", type=float, nargs="+", default=[0.25, 0.5, 1.0, 1.5, 2.0, 3.0], metavar="W")
    command.add_argument("--word_bonuses", type=float, nargs="+", default=[-2.0, -1.0, 0.0, 1.0, 2.0], metavar="B")
    command.add_argument("--output_file", help="where the grid is written as JSON")
    _loading_options(command)
    command.add_argument("--lm_path", required=True, help="n-gram language model: ARPA or KenLM binary")
    command.add_argument("--lexicon_path", help="decode these words only: one per line, or 'word<TAB>s p e l l i n g'")
    command.add_argument("--beam_size", type=int, default=50, help="beam search: hypotheses kept after a frame")


def _probe(command: argparse.ArgumentParser) -> None:
    command.add_argument("model_name_or_path", metavar="MODEL", help="folder or Hub id of a pretrained encoder")
    _dataset_options(command, split="train")
    command.add_argument("--test_split_name", default="test", help="split to measure on")
    command.add_argument("--phone_column_name", default="phones", help="column with phones and their times")
    command.add_argument("--num_epochs", type=int, default=10, help="passes of the linear probes over the frames")
    command.add_argument("--seed", type=int, default=0, help="of the random weights and the probes' order")
    command.add_argument("--output_file", help="where the report is written as JSON")
    _loading_options(command)


def _average(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_dir", metavar="RUN", help="output folder of a run, with checkpoints in it")
    command.add_argument("--num_checkpoints", "-n", type=int, default=3, help="how many")
    command.add_argument("--by", default="best", choices=("best", "last"), help="the best ones, or the newest ones")
    command.add_argument("--output_dir", required=True, help="folder for the averaged model")


def _push(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", metavar="FOLDER", help="a run's output folder")
    command.add_argument("repo_id", metavar="REPO", help="user/name on the Hub")
    command.add_argument("--revision", help="branch to upload to, made if it is new; the main branch by default")
    command.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    command.add_argument("--dry_run", action="store_true", help="list what would go up, and upload nothing")


def _loading_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    command.add_argument(
        "--trust_remote_code", action="store_true", help="run code that the model's repository brings"
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")


def _batch_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--batch_seconds", type=float, default=60.0, help="seconds of padded audio in a batch")


def _dataset_options(command: argparse.ArgumentParser, split: str = "test") -> None:
    command.add_argument("dataset_name", metavar="DATASET", help="Hub id, a local folder or file, or 'synthetic'")
    command.add_argument("--dataset_config_name", help="its configuration; for 'synthetic': 'sentences=500,seed=1'")
    command.add_argument("--split_name", default=split, help="its split")
    command.add_argument("--audio_column_name", default="audio", help="column with the audio")
    command.add_argument("--max_samples", type=int, help="the first so many utterances only")
    _batch_option(command)


def _decoding_options(command: argparse.ArgumentParser) -> None:
    """Beam search is used where a language model or a lexicon is given, greedy decoding elsewhere."""
    command.add_argument("--lm_path", help="n-gram language model: ARPA or KenLM binary")
    command.add_argument("--lexicon_path", help="decode these words only: one per line, or 'word<TAB>s p e l l i n g'")
    command.add_argument("--lm_weight", type=float, default=1.0, help="weight of the language model")
    command.add_argument("--word_bonus", type=float, default=0.0, help="added to the score for every word")
    command.add_argument("--beam_size", type=int, default=50, help="beam search: hypotheses kept after a frame")


def find(call: str) -> Callable[..., Any]:
    """The function that a command names as "module:function"."""
    module, _, function = call.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"hf_speech_ssl.{module}"), function)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors that a user can mend and Ctrl-C are one line, not a traceback."""
    arguments = vars(parser().parse_args(argv))
    arguments.pop("command")
    try:
        find(arguments.pop("call"))(**arguments)  # torch loads only now, once the command line is right
    except (OSError, ValueError, ImportError) as error:  # AudioError is a ValueError, what the Hub raises an OSError
        print(f"hf-speech-ssl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hf-speech-ssl: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT  # what shells give a command that Ctrl-C ended
    return 0


if __name__ == "__main__":
    sys.exit(main())
