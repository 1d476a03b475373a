"""Keeps what a C library writes to standard error away from the terminal, without touching other threads' messages."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")

_STDERR = 2
_CLOSE_RANGE, _UNSHARE = 436, 1 << 1  # the system call's number, the same on all architectures, and its flag
_LIBMPG123 = re.compile(r"^(?:\[src/libmpg123/\S+\] \w+:|Warning:|Note:|mpg123) *(.*)\n?", re.MULTILINE)


def without_libmpg123(function: Callable[[], Result]) -> tuple[Result, list[str]]:
    """Call a function that libsndfile does its work in, and catch what libmpg123 writes to standard error.

    libsndfile has no switch for it, and redirecting the descriptor of the process would hide what other threads write
    meanwhile. So the call is made in a short-lived thread with a table of descriptors of its own, whose standard error
    is a file in memory; what is not libmpg123's is passed on. Linux since 5.9 has such threads; elsewhere the function
    is called as it is, and the messages stay.

    Returns:
        What the function returns, and libmpg123's messages.

    Raises:
        Whatever the function raises.
    """
    if not hasattr(os, "memfd_create"):
        return function(), []
    call = _Call(function)
    thread = threading.Thread(target=call, name="libsndfile", daemon=True)
    interrupted: BaseException | None = None
    try:
        thread.start()
    except BaseException as error:  # Ctrl-C may come while the thread starts
        if call.is_cancelled():
            raise
        interrupted = error
    while not call.ended.is_set() or thread.is_alive():  # nobody may close the sound file while it is read there
        try:
            call.ended.wait()
            thread.join()
        except BaseException as error:  # noqa: BLE001 - Ctrl-C, raised again below
            interrupted = error
    if others := _LIBMPG123.sub("", call.written).strip("\n"):
        os.write(_STDERR, f"{others}\n".encode(errors="surrogateescape"))
    if interrupted is not None:
        raise interrupted
    if call.error is not None:
        raise call.error
    return call.results[0], _LIBMPG123.findall(call.written)


class _Call(Generic[Result]):
    """A call in a thread of its own.

    Attributes:
        ended: is set when all of the others are.
        results: holds what the function returned, if it returned.
        error: what it raised.
        written: what was written to standard error by C code and by Python meanwhile.
    """

    def __init__(self, function: Callable[[], Result]):
        self._function = function
        self._begins = threading.Lock()  # taken once, by the call that begins or by who cancels it
        self.ended = threading.Event()
        self.results: list[Result] = []
        self.error: BaseException | None = None
        self.written = ""

    def is_cancelled(self) -> bool:
        """Whether the call has not begun; then it never will."""
        return self._begins.acquire(blocking=False)

    def __call__(self) -> None:
        if not self._begins.acquire(blocking=False):
            return
        try:
            caught = _catch_stderr()
            try:
                self.results.append(self._function())
            finally:
                if caught is not None:
                    self.written = os.pread(caught, 1 << 20, 0).decode(errors="surrogateescape")
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self.error = error
        self.ended.set()


def _catch_stderr() -> int | None:
    """Replace this thread's standard error by a file in memory; the table of descriptors ends with the thread."""
    libc = ctypes.CDLL(None)
    if libc.syscall(_CLOSE_RANGE, _STDERR, _STDERR, _UNSHARE) != 0:
        return None
    file = os.memfd_create("stderr")
    if file != _STDERR:
        os.dup2(file, _STDERR)
    return file
