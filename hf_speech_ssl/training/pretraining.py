"""What all pretraining scripts share: the flags that choose a model, and the way from a model to a finished run."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from ..options import flag
from .building import load_feature_extractor
from .corpus import Corpus, DataSettings, estimate_normalization
from .evaluators import LossEvaluator
from .loop import TrainingLoop
from .objectives import SelfSupervised
from .run import Run


@dataclass(frozen=True)
class PretrainingSettings:
    """Which model to pretrain."""

    config_name: str | None = flag(None, "Preset of the family, as birq-base, chunkssl-base or fsq-base.")
    config_overrides: str | None = flag(None, "Config fields, as 'hidden_size=128,num_hidden_layers=2'.")
    model_name_or_path: str | None = flag(None, "Pretrained model to continue from, instead of a preset.")
    normalization_seconds: float = flag(600.0, "Seconds of audio that the features' mean and variance come from.")


def pretrain(
    run: Run,
    model: PreTrainedModel,
    features_from: str | Path | None,
    choice: PretrainingSettings,
    data: DataSettings,
    unit: str = "num_masked_frames",
) -> TrainingLoop:
    """Pretrain a model and leave it in the output folder.

    Args:
        features_from: a saved model whose feature extractor to keep; a new one is fitted to the corpus if absent.
        unit: the field of the model's output that its loss is a mean over.
    """
    accelerator, settings = run.accelerator, run.settings
    features = load_feature_extractor(run.checkpoint or features_from)
    corpus = Corpus.load(data, accelerator)
    if features.mean is None:
        sample = corpus.sample_batches(settings.seed).epoch(0)
        estimate_normalization(features, sample, choice.normalization_seconds, accelerator)

    objective = SelfSupervised(features, unit)
    batches = corpus.train_batches(accelerator, settings.seed)
    splits = corpus.eval_batches(accelerator)
    evaluator = LossEvaluator(accelerator, objective, splits, settings.seed) if splits else None
    max_steps = corpus.num_steps(settings, batches, accelerator)
    loop = TrainingLoop(run, model, [features], objective, batches, max_steps, evaluator)
    loop.run()
    return loop
