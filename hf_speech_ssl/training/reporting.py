"""What a run tells: a progress bar, log lines, Accelerate's trackers and train_log.jsonl."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_speech_ssl.run_folder import OFFLINE, MetricName, append_to_log, cut_log_after

SHOWN_OF_LABELS = ("label_perplexity", "top_label_share")
SHOWN_IF_ANY = ("skipped_updates", "empty_updates", "left_out_utterances")
SHOWN = ("loss", "wer", "cer", "accuracy", "learning_rate", "audio_seconds_per_second")  # in log lines, if present

# Trackers that show pictures, and what their `log_images` takes beside a batch of them.
PICTURES: dict[str, dict[str, str]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}


class RunLog:
    """The log of one run. Only the main process writes; every process may call.

    Args:
        output_dir: where `train_log.jsonl` grows, one JSON object per report. Lines of updates that a resumed run
            makes again are dropped first.
        step, max_steps: updates made so far, and in all.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, step: int, max_steps: int):
        self.accelerator = accelerator
        self.max_steps = max_steps
        self.output_dir = output_dir
        self.bar = tqdm(
            total=max_steps,
            initial=step,
            unit="update",
            dynamic_ncols=True,
            disable=None if accelerator.is_main_process else True,  # None: only where there is a terminal
        )
        self._first_step = step
        self._busy = 0.0  # seconds spent on updates, without pauses
        self._reported_at = 0.0
        self._resumed_at = time.perf_counter()
        if accelerator.is_main_process:
            output_dir.mkdir(parents=True, exist_ok=True)
            cut_log_after(output_dir, step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    @property
    def busy_seconds(self) -> float:
        """Wall-clock seconds since the run began or was resumed, evaluations and checkpoints left out."""
        return self._busy + time.perf_counter() - self._resumed_at

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here is no training time."""
        self._busy = self.busy_seconds
        try:
            yield
        finally:
            self._resumed_at = time.perf_counter()

    def seconds_since_last_report(self) -> float:
        """Training seconds since this was last asked."""
        seconds, self._reported_at = self.busy_seconds - self._reported_at, self.busy_seconds
        return seconds

    def time_left(self, step: int) -> timedelta:
        """Training time to the last update, at the rate of this run so far."""
        made = max(1, step - self._first_step)
        return timedelta(seconds=round(self.busy_seconds / made * (self.max_steps - step)))

    def write(self, values: dict[str, float], step: int, metric: str = "") -> None:
        """One report: a line on the terminal, one in the file, and every value to the trackers.

        The terminal gets what is `SHOWN`, all WER and BLEU, the value named `metric` and updates that failed.
        """
        self.accelerator.log({_tracker_name(name): value for name, value in values.items()}, step=step)
        if not self.accelerator.is_main_process:
            return
        append_to_log(self.output_dir, step, values)
        shown = {name: value for name, value in values.items() if name == metric or _is_shown(name, value)}
        words = " | ".join(f"{name} {_short(value)}" for name, value in shown.items())
        self.say(f"step {step}/{self.max_steps} | {words} | {self.time_left(step)} left")
        if "loss" in values:
            self.bar.set_postfix(loss=_short(values["loss"]), refresh=False)  # more would not fit into 80 columns

    @property
    def takes_pictures(self) -> bool:
        """Whether a tracker of this process shows pictures."""
        return self.accelerator.is_main_process and any(one.name in PICTURES for one in self.accelerator.trackers)

    def write_picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """A picture, (height, width, 3) RGB, to the trackers that show some."""
        for tracker in self.accelerator.trackers:
            if tracker.name in PICTURES:
                tracker.log_images({name: picture[None]}, step, **PICTURES[tracker.name])

    def say(self, text: str) -> None:
        """A line on the main process's terminal that leaves the progress bar whole."""
        if self.accelerator.is_main_process:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # a terminal may know fewer characters
            tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _is_shown(name: str, value: float) -> bool:
    evaluated = MetricName.parse(name)
    if evaluated is None:
        return name in SHOWN or name.endswith(SHOWN_OF_LABELS) or (name in SHOWN_IF_ANY and value > 0)
    if evaluated.metric in ("wer", "bleu"):
        return True
    return evaluated.metric in SHOWN and evaluated.split == "" and evaluated.mode == OFFLINE


def _tracker_name(name: str) -> str:
    """`eval_loss` -> `eval/loss`, `loss` -> `train/loss`: the groups that TensorBoard shows."""
    return name.replace("_", "/", 1) if MetricName.parse(name) else f"train/{name}"


def _short(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
