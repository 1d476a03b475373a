"""From a finished run to a model on the Hub: results.json, training curves, the model card, the upload."""

import json
from pathlib import Path
from typing import Any

from .card import write_model_card
from .curves import draw_training_curves
from .push import check_login, push_folder
from .run_files import RESULTS_FILE

__all__ = ["check_login", "draw_training_curves", "publish", "push_folder", "write_model_card"]


def publish(
    folder: str | Path, results: dict[str, Any], push_to_hub: bool = False, hub_model_id: str | None = None
) -> None:
    """Write results.json, the training curves and the model card into a run's folder, and upload it if asked to."""
    folder = Path(folder)
    (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n")
    draw_training_curves(folder)
    write_model_card(folder)
    if push_to_hub:
        push_folder(folder, hub_model_id or folder.resolve().name)
