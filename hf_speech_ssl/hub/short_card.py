"""Cards beside those of finished runs: of checkpoints and averages, and a card's copy that names its repository."""

import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from ..families import family_of
from ..json_files import read_json
from ..run_folder import CONFIG_FILE, TrainingState
from .card import AUTO_CLASSES, OUR_TAG, common_metadata, duration_text, head_kind


def short_card(folder: Path, title: str, text: str) -> str:
    """A card without figures, for weights that have not been evaluated."""
    config = read_json(folder / CONFIG_FILE)
    kind, name = head_kind((config.get("architectures") or [""])[0]) or "encoder", folder.resolve().name
    auto = AUTO_CLASSES.get(kind, "AutoModel")
    metadata = ModelCardData(model_name=name, **common_metadata(kind, family_of(config.get("model_type"))))
    use = f"from transformers import {auto}\n\n"
    use += f'model = {auto}.from_pretrained("{name}", trust_remote_code=True)'
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n# {title}\n\n{text}\n\n```python\n{use}\n```\n"))


def checkpoint_card(folder: Path) -> str:
    """The card of a checkpoint of a run that may still go on."""
    state = TrainingState.read(folder)
    after = f"after {state.step:,} update{'s' * (state.step != 1)}"
    text = f"Weights as they were {after} ({duration_text(state.audio_seconds / 3600)} of audio), in the middle of a "
    text += "training run. The figures of the run's final model do not apply to them."
    return short_card(folder, f"Checkpoint {after}", text)


def addressed(card: str, repo_id: str, revision: str | None = None) -> str:
    """The card with snippets that load the model from a repository, or from a branch of it.

    A card is written with the name that the run had. A card that this package did not write is not changed.
    """
    if OUR_TAG not in card:
        return card
    try:
        data = ModelCard(card).data
    except (ValueError, YAMLError):
        return card  # the Hub's own message says what is wrong with its head
    if OUR_TAG not in (data.get("tags") or []):
        return card
    name = str(data.get("model_name"))
    word = re.escape(name)
    branch = revision if revision != "main" else None
    in_python = f'"{repo_id}"' + (f', revision="{branch}"' if branch else "")
    in_terminal = repo_id + (f" --revision {branch}" if branch else "")
    card = card.replace(f'"{name}"', in_python)
    card = re.sub(rf"(`hf-speech-ssl [^`]*(?:name_or_path|demo) ){word}(?=[ `])", rf"\g<1>{in_terminal}", card)
    return re.sub(rf"(\.py --(?:fsq_)?model_name_or_path ){word}(?= )", rf"\g<1>{repo_id}", card)
