"""Average checkpoints of a run from the command line."""

from pathlib import Path

from ..hub.short_card import short_card
from ..json_files import write_text
from ..run_folder import CARD_FILE
from ..training.averaging import average_checkpoints


def average(run_dir: str, output_dir: str, num_checkpoints: int = 3, by: str = "best") -> None:
    """Save the mean of checkpoints with a short card; see [`average_checkpoints`] for the arguments and the errors."""
    done = average_checkpoints(run_dir, output_dir, num_checkpoints, by)
    why = f"the lowest {done.metric}" if done.metric else "the newest ones of the run"
    names = ", ".join(done.checkpoints)
    text = f"The mean of the weights of {len(done.checkpoints)} checkpoints of one run, {why}: {names}. It has not "
    text += "been evaluated: the figures of the run's other models do not apply to it."
    card = short_card(Path(output_dir), f"Mean of {len(done.checkpoints)} checkpoints", text)
    write_text(Path(output_dir) / CARD_FILE, card)
    values = [f"  {done.metric} {value:.4g}" for value in done.values or []] or [""] * len(done.checkpoints)
    for name, value in zip(done.checkpoints, values, strict=True):
        print(name + value)
    print(f"Their mean is in {output_dir}.")
