"""From flags to a model: presets, overrides of config fields, weights to continue from."""

import ast
import difflib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from hf_speech_ssl.families import family_of_preset
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor

logger = logging.getLogger(__name__)


def make_config(
    config_name: str | None,
    model_name_or_path: str | None,
    config_overrides: str | None,
    recipe: Mapping[str, Any] | None = None,
    **fields: Any,
) -> PreTrainedConfig:
    """The configuration of a preset, or of a saved model, with overrides and further fields.

    Args:
        recipe: fields that overrides may replace.

    Raises:
        ValueError: neither or both of preset and model, an unknown preset, a misspelt or senseless field.
    """
    if (config_name is None) == (model_name_or_path is None):
        raise ValueError(
            f"Say which model, by one of --config_name (a preset) and --model_name_or_path (a saved model); got "
            f"{config_name!r} and {model_name_or_path!r}."
        )
    if model_name_or_path is None:
        assert config_name is not None
        config_class = family_of_preset(config_name).config_class
        overrides = parse_config_overrides(config_overrides, config_class)
        return config_class.from_preset(config_name, **{**(recipe or {}), **overrides, **fields})
    config_class = type(AutoConfig.from_pretrained(model_name_or_path))
    overrides = parse_config_overrides(config_overrides, config_class)
    return config_class.from_pretrained(model_name_or_path, **{**(recipe or {}), **overrides, **fields})


def load_feature_extractor(source: str | Path | None) -> SpeechSSLFeatureExtractor:
    """The feature extractor of a saved model, or a new one whose mean and variance are still to be estimated."""
    return SpeechSSLFeatureExtractor.from_pretrained(source) if source else SpeechSSLFeatureExtractor()


def load_model(model_class: Any, config: PreTrainedConfig, pretrained: str | None) -> PreTrainedModel:
    """A model with the weights of `pretrained`, or with random ones; in float32 however it was saved.

    Args:
        model_class: a model class of this package, or an Auto class.

    Raises:
        ValueError: the configuration is another family's.
    """
    wanted = getattr(model_class, "config_class", None)
    if wanted is not None and not isinstance(config, wanted):
        raise ValueError(
            f"{model_class.__name__} needs a preset or a saved model of its own family, a {wanted.__name__}, got a "
            f"{type(config).__name__}."
        )
    if pretrained is not None:
        with _own_words():
            model, loading = model_class.from_pretrained(
                pretrained, config=config, dtype=torch.float32, output_loading_info=True
            )
        if os.environ.get("RANK", "0") == "0" and (remark := loading_in_words(loading)):
            logger.warning("%s from %s: %s.", type(model).__name__, pretrained, remark)
        return model
    from_config = getattr(model_class, "from_config", None) or model_class._from_config
    return from_config(config, dtype=torch.float32)


def loading_in_words(loading: Mapping[str, Any]) -> str:
    """What transformers' loading info tells of weights that the model or the checkpoint does not have."""
    parts = [
        f"{what} ({', '.join(sorted(names))})"
        for what, names in (
            ("new weights, random until they are trained", loading["missing_keys"]),
            ("weights of the checkpoint that the model does not use", loading["unexpected_keys"]),
        )
        if names
    ]
    return "; ".join(parts)


@contextmanager
def _own_words() -> Iterator[None]:
    """Hold transformers' table of new weights back, unless loading fails."""
    theirs, held = logging.getLogger("transformers.modeling_utils"), list[logging.LogRecord]()

    def passes(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            held.append(record)
        return not is_report

    theirs.addFilter(passes)
    try:
        yield
    except BaseException:
        theirs.removeFilter(passes)
        for record in held:
            theirs.handle(record)
        raise
    finally:
        theirs.removeFilter(passes)


def load_with_new_head(model_class: Any, config: PreTrainedConfig, pretrained: str) -> PreTrainedModel:
    """A model with the encoder of `pretrained` and a head of random weights, whatever head that has."""
    model = load_model(model_class, config, None)
    model.base_model.load_state_dict(load_model(AutoModel, config, pretrained).state_dict())
    return model


def architecture_of(source: str | Path) -> str:
    """Name of the class that a saved model, here or on the Hub, was saved from; empty if it does not say."""
    return str((AutoConfig.from_pretrained(source).architectures or [""])[0])


def writes_text(source: str | Path) -> bool:
    """Whether a saved model has a head that writes text, so that a processor lies beside it."""
    return architecture_of(source).endswith(("ForCTC", "ForRNNT"))


def parse_config_overrides(text: str | None, config_class: type) -> dict[str, Any]:
    """Config fields from `"hidden_size=128,label_layer=None"`; the config itself checks types and ranges.

    Raises:
        ValueError: a part without `=`, or a name that is no field of `config_class` (with the nearest one).
    """
    overrides: dict[str, Any] = {}
    names = [field.name for field in fields(config_class)]
    # A comma separates two fields only before the next `name=`, so that lists may hold commas.
    for part in re.split(r",(?=\s*\w+\s*=)", text or ""):
        if not part.strip():
            continue
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator:
            raise ValueError(f"--config_overrides needs name=value pairs separated by commas, got {part!r}.")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"{config_class.__name__} has no field '{name}' to override.{hint}")
        overrides[name] = _typed(value)
    return overrides


def _typed(value: str) -> Any:
    """A Python literal (numbers, lists, None, True, also in lower case), anything else as the string it is."""
    literal = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(value.lower(), value)
    try:
        return ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        return value
