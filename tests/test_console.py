"""The command line answers at once, in one line, and into whatever is connected to it."""

import os
import signal
import subprocess
import sys

import pytest

from hf_speech_ssl import cli, console
from hf_speech_ssl.commands.push import push

# What is wrong with a command line, or not there, is known without torch: the exit code, and words of the message.
MODEL = "--model_name_or_path ./none"
ANSWERS = {
    "--help": (0, ""),
    "transcribe --help": (0, ""),
    "transcibe": (2, "invalid choice: 'transcibe'"),
    "stream": (2, "the following arguments are required: FILE|-, --model_name_or_path"),
    "push folder": (2, "the following arguments are required: REPO"),
    f"transcribe a.wav {MODEL} --format doc": (2, "invalid choice: 'doc'"),
    f"transcribe a.wav {MODEL} --beam 3": (2, "unrecognized arguments: --beam 3"),
    f"transcribe a.wav {MODEL} --num_best two": (2, "invalid int value: 'two'"),
    f"transcribe a.wav {MODEL}": (1, "a.wav: there is no such file"),
    f"transcribe a.wav {MODEL} --num_best 2": (1, "give --format json"),
    f"transcribe {__file__} {MODEL}": (1, "There is no model folder './none'"),
    f"stream a.wav {MODEL}": (1, "There is no model folder './none'"),
    "evaluate ./none synthetic": (1, "There is no model folder './none'"),
    "evaluate m synthetic --num_resamples 7": (1, "num_resamples 0 (no intervals) or at least 100"),
    "tune m synthetic --lm_path none.arpa": (1, "There is no file 'none.arpa'"),
    "probe m synthetic --num_epochs 0": (1, "num_epochs must be at least 1"),
    "ngram none.txt --output_file a.arpa": (1, "There is no file 'none.txt'"),
    "average none --output_dir out": (1, "There is no folder 'none'"),
    "card none": (1, "There is no folder 'none'"),
    "push none user/name": (1, "There is no folder 'none'"),
    "demo ./none": (1, "There is no model folder './none'"),
}
ANSWER_ALL = """
import contextlib, io, sys
from hf_speech_ssl.cli import main
for line, (code, message) in {answers!r}.items():
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            found = main(line.split())
        except SystemExit as end:
            found = end.code
    lines = errors.getvalue().splitlines()
    assert (found, len(lines)) == (code, bool(code)) and message in errors.getvalue(), (line, found, lines)
    assert bool(output.getvalue()) == (code == 0)
    assert not {{"torch", "transformers"}} & set(sys.modules), line
"""


def test_help_and_mistakes_are_answered_in_one_line_before_torch_is_imported(tmp_path) -> None:
    command = [sys.executable, "-c", ANSWER_ALL.format(answers=ANSWERS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_verbose_shows_where_an_error_comes_from(tmp_path, capsys) -> None:
    line = ["push", str(tmp_path / "none"), "user/name"]
    assert cli.main(line) == 1 and "Traceback" not in capsys.readouterr().err
    assert cli.main([*line, "--verbose"]) == 1
    error = capsys.readouterr().err
    assert (
        "Traceback" in error and push.__name__ in error and error.splitlines()[-1].startswith("hf-speech-ssl: There")
    )


@pytest.mark.parametrize("size", [10, 1_000_000])  # complete before the reader is gone, and not
def test_a_closed_pipe_is_quiet(size: int) -> None:
    """As of `hf-speech-ssl transcribe talks | head`."""
    program = (
        f"import sys\nfrom hf_speech_ssl import console\nsys.exit(console.run('it', lambda: print('x' * {size})))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 128 + signal.SIGPIPE)


def test_every_text_can_be_printed() -> None:
    program = "from hf_speech_ssl import console\nconsole.run('it', lambda: print('caf\\udce9 \u4e2d'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("caf\\udce9 \\u4e2d\n", "")


def test_an_error_without_words_has_a_name(capsys) -> None:
    def fail() -> None:
        raise ValueError

    assert console.run("it", fail) == 1
    assert capsys.readouterr().err == "it: ValueError\n"
