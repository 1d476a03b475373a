"""Pretrain BiRQ, or BEST-RQ with `--config_overrides enhanced_loss_weight=0`, on audio without transcripts.

    accelerate launch pretraining_scripts/run_birq.py \
        --dataset_name openslr/librispeech_asr --dataset_config_name all --train_split_name train.clean.100 \
        --config_name birq-base --output_dir outputs/birq-base --mixed_precision bf16

The defaults are those of Jiang et al. (arXiv 2509.15430) for C1: 100 epochs, AdamW at 2e-4 (1e-4 for C2 and C3). The
paper says nothing of a schedule; ours warms up linearly over the first 5 % of the updates and stays there. The paper's
batches hold 100 utterances, about 1,200 seconds in all: set `per_device_train_batch_seconds` and
`gradient_accumulation_steps` so that they come to that together with the number of processes.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_speech_ssl import BiRQForPreTraining
from hf_speech_ssl.hub import publish
from hf_speech_ssl.training.building import load_feature_extractor, load_model, make_config
from hf_speech_ssl.training.checkpoints import checkpoint_to_resume
from hf_speech_ssl.training.corpus import Corpus, DataSettings
from hf_speech_ssl.training.evaluators import LossEvaluator
from hf_speech_ssl.training.loop import TrainingLoop
from hf_speech_ssl.training.objectives import SelfSupervised
from hf_speech_ssl.training.settings import TrainingSettings, flag, parse_settings
from hf_speech_ssl.training.setup import estimate_normalization, make_accelerator, write_arguments


@dataclass(frozen=True)
class ModelSettings:
    """Which model to pretrain."""

    config_name: str | None = flag(None, "Preset: birq-tiny, birq-base, birq-c1, birq-c2 or birq-c3.")
    config_overrides: str | None = flag(None, "Config fields, as 'hidden_size=128,num_hidden_layers=2'.")
    model_name_or_path: str | None = flag(None, "Pretrained BiRQ to continue from, instead of a preset.")
    normalization_seconds: float = flag(600.0, "Seconds of audio that the features' mean and variance come from.")


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Pretrain; returns the metrics of the last evaluation."""
    recipe = {"num_train_epochs": 100.0, "learning_rate": 2e-4, "warmup_steps": 0.05}
    model_settings, data, settings = parse_settings(
        argv, __doc__, (ModelSettings, DataSettings, TrainingSettings), **recipe
    )
    resumed = checkpoint_to_resume(settings.output_dir, settings.resume_from_checkpoint)
    pretrained = model_settings.model_name_or_path
    config = make_config(model_settings.config_name, pretrained, model_settings.config_overrides)

    accelerator = make_accelerator(settings)
    write_arguments(Path(settings.output_dir), accelerator, model_settings, data, settings)
    model = load_model(BiRQForPreTraining, config, pretrained)
    features = load_feature_extractor(resumed or pretrained)
    corpus = Corpus.load(data, accelerator)
    if features.mean is None:
        sample = corpus.sample_batches(settings.seed).epoch(0)
        estimate_normalization(features, sample, model_settings.normalization_seconds, accelerator)

    objective = SelfSupervised(features)
    batches = corpus.train_batches(accelerator, settings.seed)
    splits = corpus.eval_batches(accelerator)
    evaluator = LossEvaluator(accelerator, objective, splits, settings.seed) if splits else None
    max_steps = corpus.num_steps(settings, batches, accelerator)
    loop = TrainingLoop(accelerator, model, [features], objective, batches, settings, max_steps, evaluator)
    metrics, results = loop.run(), loop.results()
    if accelerator.is_main_process:
        publish(settings.output_dir, results, settings.push_to_hub, settings.hub_model_id)
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    main()
