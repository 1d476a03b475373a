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
from typing import Any, cast

from hf_speech_ssl import ChunkSSLConfig, ChunkSSLForPreTraining, FSQConfig, FSQModel
from hf_speech_ssl.options import flag, parse_settings
from hf_speech_ssl.scripts import call, pretrain, publish_run, training_run
from hf_speech_ssl.training.building import load_model, make_config, parse_config_overrides
from hf_speech_ssl.training.settings import DataSettings, PretrainingSettings, TrainingSettings


@dataclass(frozen=True)
class ChunkSSLSettings(PretrainingSettings):
    """Which model to pretrain, and where its labels come from."""

    fsq_model_name_or_path: str | None = flag(None, "Trained tokenizer, from run_fsq.py; its sizes go to the config.")


def check_labels(choice: ChunkSSLSettings) -> None:
    """Raise a ValueError unless the flags say where the labels come from, and once.

    Raises:
        ValueError: a fresh model with FSQ labels and no tokenizer, a tokenizer that would not be used, or overrides of
            what the tokenizer says.
    """
    continues = choice.model_name_or_path is not None
    overrides = parse_config_overrides(choice.config_overrides, ChunkSSLConfig)
    preset = None if choice.config_name is None else make_config(choice.config_name, None, choice.config_overrides)
    random_projection = getattr(preset, "label_kind", "") == "random_projection"
    if choice.fsq_model_name_or_path is None:
        if not continues and not random_projection:
            raise ValueError(
                "--fsq_model_name_or_path is needed: the trained tokenizer that the labels come from. Train one with "
                "run_fsq.py, or take labels that need none: those of --config_name chunkssl-learned-tiny, or "
                "BEST-RQ's with --config_overrides label_kind=random_projection."
            )
        return
    if continues or random_projection:
        raise ValueError(
            "--fsq_model_name_or_path goes with a fresh model and FSQ labels only: a pretrained Chunk SSL model holds "
            "its tokenizer, and labels of projections, random or learned, need none."
        )
    if shared := sorted(set(overrides) & set(ChunkSSLForPreTraining.tokenizer_fields)):
        raise ValueError(f"{', '.join(shared)} come from the tokenizer; leave them out of --config_overrides.")


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Pretrain; returns the metrics of the last evaluation."""
    recipe = {"max_steps": 400_000, "learning_rate": 3e-4, "lr_scheduler_type": "inverse_sqrt"}
    recipe |= {"warmup_steps": 25_000 / 400_000, "max_duration_in_seconds": 75.0}
    choice, data, settings = parse_settings(
        argv, __doc__, (ChunkSSLSettings, DataSettings, TrainingSettings), **recipe
    )
    check_labels(choice)
    with training_run(settings, choice, data) as run:
        source = run.source_of(choice.model_name_or_path)
        labels_from = run.source_of(choice.fsq_model_name_or_path)
        sizes: dict[str, Any] = {} if labels_from is None else tokenizer_sizes(labels_from)
        config = make_config(choice.config_name, source, choice.config_overrides, **sizes)
        model = load_model(ChunkSSLForPreTraining, config, source)
        if labels_from is not None and run.checkpoint is None and isinstance(model, ChunkSSLForPreTraining):
            tokenizer_config = make_config(None, labels_from, None)
            model.load_tokenizer(cast("FSQModel", load_model(FSQModel, tokenizer_config, labels_from)))
        return publish_run(run, pretrain(run, model, source or labels_from, choice, data))


def tokenizer_sizes(source: str) -> dict[str, Any]:
    """The fields of a tokenizer's config that the model around it shares, from the one or the other."""
    config = make_config(None, source, None)
    wanted = (FSQConfig, ChunkSSLConfig)
    if not isinstance(config, wanted):
        raise ValueError(
            f"--fsq_model_name_or_path needs a tokenizer, an FSQModel from run_fsq.py, got a {type(config).__name__}."
        )
    return {name: getattr(config, name) for name in ChunkSSLForPreTraining.tokenizer_fields}


if __name__ == "__main__":
    call(main)
