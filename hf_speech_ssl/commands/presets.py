"""hf-speech-ssl presets: the cards of the published configurations."""

from dataclasses import dataclass
from pathlib import Path

from ..options import flag


@dataclass(frozen=True)
class PresetsOptions:
    """Where the cards go."""

    output_dir: str = flag("model_cards", "folder for NAME.md of each preset")


def presets(options: PresetsOptions) -> None:
    """Write the cards of all presets."""
    from ..hub.presets import preset_card, preset_names

    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name in preset_names():
        preset_card(name).save(folder / f"{name}.md")
        print(folder / f"{name}.md")
