"""hf-speech-ssl card: the model card of a run, and its training curves, are written anew."""

from dataclasses import dataclass

from ..options import argument, flag
from ..paths import check_folder


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """Whose cards are written, and what no file of a run tells."""

    run_dirs: list[str] = argument("output folders of finished runs", "RUN")
    license: str = flag("apache-2.0", "of the weights, as the Hub abbreviates it")
    language: list[str] | None = flag(None, "languages of the audio, as ISO 639 codes: en de")


def card(options: CardOptions) -> None:
    """Write curves and card of each run, as after an evaluation of it.

    Raises:
        OSError, ValueError: a folder lacks a file of a run, or holds one that cannot be read.
    """
    for folder in options.run_dirs:
        check_folder(folder)
    from ..hub import draw_training_curves, write_model_card

    for folder in options.run_dirs:
        draw_training_curves(folder)
        write_model_card(folder, options.license, options.language)
