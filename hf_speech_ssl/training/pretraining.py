"""What all pretraining scripts share: the flags that choose a model, and the way from a model to a finished run."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_speech_ssl.run_folder import RunResults

from .building import load_feature_extractor
from .checkpoints import checkpoint_to_resume
from .corpus import Corpus, DataSettings
from .evaluators import LossEvaluator
from .loop import TrainingLoop
from .objectives import SelfSupervised
from .settings import TrainingSettings, flag
from .setup import estimate_normalization


@dataclass(frozen=True)
class PretrainingSettings:
    """Which model to pretrain."""

    config_name: str | None = flag(None, "Preset of the family, as birq-base, chunkssl-base or fsq-base.")
    config_overrides: str | None = flag(None, "Config fields, as 'hidden_size=128,num_hidden_layers=2'.")
    model_name_or_path: str | None = flag(None, "Pretrained model to continue from, instead of a preset.")
    normalization_seconds: float = flag(600.0, "Seconds of audio that the features' mean and variance come from.")


def pretrain(
    accelerator: Accelerator,
    model: PreTrainedModel,
    features_from: str | Path | None,
    choice: PretrainingSettings,
    data: DataSettings,
    settings: TrainingSettings,
    unit: str = "num_masked_frames",
) -> tuple[dict[str, float], RunResults]:
    """Pretrain a model and leave it in `output_dir`.

    Args:
        features_from: a saved model whose feature extractor to keep; a new one is fitted to the corpus if absent.
        unit: the field of the model's output that its loss is a mean over.

    Returns:
        The metrics of the last evaluation, and the run's results for its card.
    """
    resumed = checkpoint_to_resume(settings.output_dir, settings.resume_from_checkpoint)
    features = load_feature_extractor(resumed or features_from)
    corpus = Corpus.load(data, accelerator)
    if features.mean is None:
        sample = corpus.sample_batches(settings.seed).epoch(0)
        estimate_normalization(features, sample, choice.normalization_seconds, accelerator)

    objective = SelfSupervised(features, unit)
    batches = corpus.train_batches(accelerator, settings.seed)
    splits = corpus.eval_batches(accelerator)
    evaluator = LossEvaluator(accelerator, objective, splits, settings.seed) if splits else None
    max_steps = corpus.num_steps(settings, batches, accelerator)
    loop = TrainingLoop(accelerator, model, [features], objective, batches, settings, max_steps, evaluator)
    return loop.run(), loop.results()
