"""hf-speech-ssl average: the mean of a run's checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..options import argument, flag, required_flag
from ..paths import check_folder


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Which checkpoints are averaged."""

    run_dir: str = argument("output folder of a run, with checkpoints in it", "RUN")
    num_checkpoints: int = flag(3, "how many", short="-n")
    by: Literal["best", "last"] = flag("best", "the best ones, or the newest ones")
    output_dir: str = required_flag("folder for the averaged model")


def average(options: AverageOptions) -> None:
    """Save the mean of checkpoints with a short card; errors as in [`average_checkpoints`]."""
    check_folder(options.run_dir)
    from ..hub.short_card import short_card
    from ..json_files import write_text
    from ..run_folder import CARD_FILE
    from ..training.averaging import average_checkpoints

    output_dir = Path(options.output_dir)
    done = average_checkpoints(options.run_dir, output_dir, options.num_checkpoints, options.by)
    why = f"the lowest {done.metric}" if done.metric else "the newest ones of the run"
    names = ", ".join(done.checkpoints)
    text = f"The mean of the weights of {len(done.checkpoints)} checkpoints of one run, {why}: {names}. It has not "
    text += "been evaluated: the figures of the run's other models do not apply to it."
    card = short_card(output_dir, f"Mean of {len(done.checkpoints)} checkpoints", text)
    write_text(output_dir / CARD_FILE, card)
    values = [f"  {done.metric} {value:.4g}" for value in done.values or []] or [""] * len(done.checkpoints)
    for name, value in zip(done.checkpoints, values, strict=True):
        print(name + value)
    print(f"Their mean is in {output_dir}.")
