"""From a finished run to a model on the Hub: results.json, the model card, the upload."""

import json
from pathlib import Path
from typing import Any

from .card import RESULTS_FILE, write_model_card
from .push import push_folder

__all__ = ["publish", "push_folder", "write_model_card"]


def publish(
    folder: str | Path, results: dict[str, Any], push_to_hub: bool = False, hub_model_id: str | None = None
) -> None:
    """Write results.json and the model card into a run's folder, and upload it if asked to."""
    folder = Path(folder)
    (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n")
    write_model_card(folder)
    if push_to_hub:
        push_folder(folder, hub_model_id or folder.name)
