r"""Pretrain BiRQ, or BEST-RQ with `--config_overrides enhanced_loss_weight=0`, on audio without transcripts.

    accelerate launch pretraining_scripts/run_birq.py \
        --dataset_name openslr/librispeech_asr --dataset_config_name all --train_split_name train.clean.100 \
        --config_name birq-base --output_dir outputs/birq-base --mixed_precision bf16

The defaults are those of Jiang et al. (arXiv 2509.15430) for C1: 100 epochs, AdamW at 2e-4 (1e-4 for C2 and C3). The
paper says nothing of a schedule; ours warms up linearly over the first 5 % of the updates and stays there. The paper's
batches hold 100 utterances, about 1,200 seconds in all: set `per_device_train_batch_seconds` and
`gradient_accumulation_steps` so that they come to that together with the number of processes.
"""

from pathlib import Path

from hf_speech_ssl import BiRQForPreTraining
from hf_speech_ssl.hub import check_push, publish
from hf_speech_ssl.training.building import load_model, make_config
from hf_speech_ssl.training.corpus import DataSettings
from hf_speech_ssl.training.pretraining import PretrainingSettings, pretrain
from hf_speech_ssl.training.settings import TrainingSettings, parse_settings
from hf_speech_ssl.training.setup import make_accelerator, write_arguments


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Pretrain; returns the metrics of the last evaluation."""
    recipe = {"num_train_epochs": 100.0, "learning_rate": 2e-4, "warmup_steps": 0.05}
    choice, data, settings = parse_settings(
        argv, __doc__, (PretrainingSettings, DataSettings, TrainingSettings), **recipe
    )
    pretrained = choice.model_name_or_path
    config = make_config(choice.config_name, pretrained, choice.config_overrides)
    if settings.push_to_hub:
        check_push(settings.output_dir, settings.hub_model_id)
    accelerator = make_accelerator(settings)
    write_arguments(Path(settings.output_dir), accelerator, choice, data, settings)
    model = load_model(BiRQForPreTraining, config, pretrained)
    metrics, results = pretrain(accelerator, model, pretrained, choice, data, settings)
    if accelerator.is_main_process:
        publish(settings.output_dir, results, settings.push_to_hub, settings.hub_model_id)
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
