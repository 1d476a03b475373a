"""Publishes a finished run: results.json, training curves, the model card, the upload to the Hub."""

from pathlib import Path

from ..run_folder import RunResults
from .card import write_model_card
from .curves import draw_training_curves
from .push import check_login, check_name, push_folder

__all__ = ["check_push", "draw_training_curves", "publish", "push_folder", "write_model_card"]


def publish(
    folder: str | Path, results: RunResults, push_to_hub: bool = False, hub_model_id: str | None = None
) -> None:
    """Write results.json, the training curves and the model card into a run's folder, and upload it if asked to."""
    folder = Path(folder)
    results.write(folder)
    draw_training_curves(folder)
    write_model_card(folder)
    if push_to_hub:
        push_folder(folder, _repository(folder, hub_model_id))


def check_push(folder: str | Path, hub_model_id: str | None = None) -> None:
    """Raise an error if a run's folder could not be pushed; called before training, which would else be in vain.

    Raises:
        ValueError: no repository can be called so.
        OSError: there is no token to push with.
    """
    check_name(_repository(Path(folder), hub_model_id))
    check_login()


def _repository(folder: Path, hub_model_id: str | None) -> str:
    return hub_model_id or folder.resolve().name
