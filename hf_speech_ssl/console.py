"""Runs commands and scripts as people expect of a command line.

Errors that a user can mend are one line and an exit code, `--verbose` shows where they come from, Ctrl-C and closed
pipes are no errors, and no file name or character is too foreign to be printed.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable

# What users can mend: AudioError is a ValueError, what the Hub raises an OSError.
MENDABLE = (OSError, ValueError, ImportError, FloatingPointError)
VERBOSE = "--verbose"


def run(name: str, call: Callable[[], object], verbose: bool = False) -> int:
    """Call a function and return the exit code of the process.

    Args:
        name: of the command, which stands before its errors.
        verbose: show the traceback of every error.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        call()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the output has enough. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MENDABLE as error:
        if verbose:
            traceback.print_exc()
        print(f"{name}: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if verbose:
            traceback.print_exc()
        print(f"{name}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT  # what shells give a command that Ctrl-C ended
    return 0
