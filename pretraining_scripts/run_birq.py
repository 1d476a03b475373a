r"""Pretrain BiRQ, or BEST-RQ with `--config_overrides enhanced_loss_weight=0`, on audio without transcripts.

    accelerate launch pretraining_scripts/run_birq.py \
        --dataset_name openslr/librispeech_asr --dataset_config_name all --train_split_name train.clean.100 \
        --config_name birq-base --output_dir outputs/birq-base --mixed_precision bf16

The defaults are those of Jiang et al. (arXiv 2509.15430) for C1: 100 epochs, AdamW at 2e-4 (1e-4 for C2 and C3). The
paper says nothing of a schedule; ours warms up linearly over the first 5 % of the updates and stays there. The paper's
batches hold 100 utterances, about 1,200 seconds in all: set `per_device_train_batch_seconds` and
`gradient_accumulation_steps` so that they come to that together with the number of processes.
"""

from hf_speech_ssl import BiRQForPreTraining
from hf_speech_ssl.options import parse_settings
from hf_speech_ssl.scripts import call, pretrain, publish_run, training_run
from hf_speech_ssl.training.building import load_model, make_config
from hf_speech_ssl.training.settings import DataSettings, PretrainingSettings, TrainingSettings


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Pretrain; returns the metrics of the last evaluation."""
    recipe = {"num_train_epochs": 100.0, "learning_rate": 2e-4, "warmup_steps": 0.05}
    choice, data, settings = parse_settings(
        argv, __doc__, (PretrainingSettings, DataSettings, TrainingSettings), **recipe
    )
    with training_run(settings, choice, data) as run:
        source = run.source_of(choice.model_name_or_path)
        config = make_config(choice.config_name, source, choice.config_overrides)
        model = load_model(BiRQForPreTraining, config, source)
        return publish_run(run, pretrain(run, model, source, choice, data))


if __name__ == "__main__":
    call(main)
