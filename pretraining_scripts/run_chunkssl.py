r"""Pretrain Chunk SSL on audio without transcripts, with the labels of a trained tokenizer.

    accelerate launch pretraining_scripts/run_fsq.py --dataset_name ... --config_name fsq-base --output_dir outputs/fsq
    accelerate launch pretraining_scripts/run_chunkssl.py --fsq_model_name_or_path outputs/fsq \
        --dataset_name ... --config_name chunkssl-base --output_dir outputs/chunkssl --mixed_precision bf16

The defaults are those of Tang and Tseng (arXiv 2509.15579): 400,000 updates with Adam's inverse square root schedule,
one sixteenth of them (25,000) warm-up to 3e-4. The paper's batches hold 16,000 seconds: set
`per_device_train_batch_seconds` and `gradient_accumulation_steps` so that they come to that together with the number
of processes. Labels of BEST-RQ need no tokenizer: `--config_overrides label_kind=random_projection`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from hf_speech_ssl import ChunkSSLConfig, ChunkSSLForPreTraining, FSQModel
from hf_speech_ssl.hub import check_push, publish
from hf_speech_ssl.training.building import load_model, make_config
from hf_speech_ssl.training.corpus import DataSettings
from hf_speech_ssl.training.pretraining import PretrainingSettings, pretrain
from hf_speech_ssl.training.settings import TrainingSettings, flag, parse_config_overrides, parse_settings
from hf_speech_ssl.training.setup import make_accelerator, write_arguments


@dataclass(frozen=True)
class ChunkSSLSettings(PretrainingSettings):
    """Which model to pretrain, and where its labels come from."""

    fsq_model_name_or_path: str | None = flag(None, "Trained tokenizer, from run_fsq.py; its sizes go to the config.")


def load_tokenizer(choice: ChunkSSLSettings) -> FSQModel | None:
    """The trained tokenizer, where the labels are its.

    Raises:
        ValueError: a fresh model with FSQ labels and no tokenizer, a tokenizer that would not be used, overrides of
            what the tokenizer says, or a model that is no tokenizer.
    """
    continues = choice.model_name_or_path is not None
    overrides = parse_config_overrides(choice.config_overrides, ChunkSSLConfig)
    random_projection = overrides.get("label_kind") == "random_projection"
    if choice.fsq_model_name_or_path is None:
        if not continues and not random_projection:
            raise ValueError(
                "--fsq_model_name_or_path is needed: the trained tokenizer that the labels come from. Train one with "
                "run_fsq.py, or take BEST-RQ's labels with --config_overrides label_kind=random_projection."
            )
        return None
    if continues or random_projection:
        raise ValueError(
            "--fsq_model_name_or_path goes with a fresh model and FSQ labels only: a pretrained Chunk SSL model holds "
            "its tokenizer, and random-projection labels need none."
        )
    if shared := sorted(set(overrides) & set(ChunkSSLForPreTraining.tokenizer_fields)):
        raise ValueError(f"{', '.join(shared)} come from the tokenizer; leave them out of --config_overrides.")
    source = choice.fsq_model_name_or_path
    return cast(FSQModel, load_model(FSQModel, make_config(None, source, None), source))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Pretrain; returns the metrics of the last evaluation."""
    recipe = {"max_steps": 400_000, "learning_rate": 3e-4, "lr_scheduler_type": "inverse_sqrt"}
    recipe |= {"warmup_steps": 25_000 / 400_000, "max_duration_in_seconds": 75.0}
    choice, data, settings = parse_settings(
        argv, __doc__, (ChunkSSLSettings, DataSettings, TrainingSettings), **recipe
    )
    tokenizer = load_tokenizer(choice)
    sizes = {} if tokenizer is None else tokenizer_sizes(tokenizer)
    pretrained = choice.model_name_or_path
    config = make_config(choice.config_name, pretrained, choice.config_overrides, **sizes)
    if settings.push_to_hub:
        check_push(settings.output_dir, settings.hub_model_id)
    accelerator = make_accelerator(settings)
    write_arguments(Path(settings.output_dir), accelerator, choice, data, settings)
    model = load_model(ChunkSSLForPreTraining, config, pretrained)
    if tokenizer is not None and isinstance(model, ChunkSSLForPreTraining):
        model.load_tokenizer(tokenizer)
    features_from = pretrained or choice.fsq_model_name_or_path
    metrics, results = pretrain(accelerator, model, features_from, choice, data, settings)
    if accelerator.is_main_process:
        publish(settings.output_dir, results, settings.push_to_hub, settings.hub_model_id)
    accelerator.end_training()
    return metrics


def tokenizer_sizes(tokenizer: FSQModel) -> dict[str, object]:
    """The fields of a tokenizer's config that the model around it must share."""
    return {name: getattr(tokenizer.config, name) for name in ChunkSSLForPreTraining.tokenizer_fields}


if __name__ == "__main__":
    main()
