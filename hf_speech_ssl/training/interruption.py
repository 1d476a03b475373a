"""Ctrl-C and SIGTERM end a run after the current update, on all processes at the same one."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IMPATIENCE = 1.0  # seconds after which a second Ctrl-C is meant; launchers and terminals may both deliver the first


class Interrupted(SystemExit):
    """A run was asked to end. Uncaught, the process exits with 128 + the signal's number (130 Ctrl-C, 143 SIGTERM)."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)
        self.signal_name = signal.Signals(signal_number).name


class Interruption:
    """Notes a signal instead of dying of it; a second Ctrl-C leaves at once.

    Signals reach the processes of a distributed run at different moments, if they reach all of them: `meet` makes
    them a common decision.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._noted_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python refuses handlers elsewhere
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal_number:
            self.signal_number, self._noted_at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._noted_at > IMPATIENCE:
            raise KeyboardInterrupt

    def meet(self, accelerator: Accelerator, busy: bool = True) -> bool:
        """Whether any process is busy. A collective call: every process makes it at the same point.

        Raises:
            Interrupted: on every process with the same signal, if any of them got one.
        """
        number = self.signal_number
        if accelerator.num_processes > 1:
            mine = torch.tensor([[number, busy]], device=accelerator.device)
            number, busy = accelerator.gather(mine).amax(0).tolist()
        if number:
            raise Interrupted(number)
        return bool(busy)
