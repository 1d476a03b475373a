"""The frame of the four training scripts: what comes before and after a run, and errors as one line."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from . import console
from .hub import check_push, publish
from .modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from .modeling.modeling_conformer import ConformerModel
from .probing.collapse import effective_ranks
from .probing.encoders import ConformerEncoder, pretraining_encoder
from .run_folder import read_log
from .training.building import load_feature_extractor
from .training.corpus import Corpus, estimate_normalization
from .training.diagnostics import label_warnings
from .training.evaluators import LossEvaluator
from .training.loop import TrainingLoop
from .training.run import Run, started_run
from .training.settings import DataSettings, PretrainingSettings, TrainingSettings
from .training.updates import SelfSupervised
from .verdict import LabelUse, LayerRank, Verdict

JUDGED_SECONDS = 60.0  # of audio that the layers are measured on
COLLAPSED_RANK = 0.3  # of the rank that random weights give
LOST_PROCESS = re.compile(r"gloo|NCCL|Connection (reset|closed)|remote process exited")  # in torch's error messages


@contextmanager
def training_run(settings: TrainingSettings, *other_settings: Any) -> Iterator[Run]:
    """A run whose folder nobody else writes into; whether it can be pushed at its end is known before it begins.

    Args:
        other_settings: dataclasses whose values go into run_arguments.json as well.

    Raises:
        ValueError, OSError: see `started_run` and `check_push`.
    """
    if settings.push_to_hub:
        check_push(settings.output_dir, settings.hub_model_id)
    with started_run(settings, *other_settings) as run:
        yield run


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
        sample = corpus.sample_batches(settings.seed)
        estimate_normalization(features, sample, choice.normalization_seconds, accelerator)

    objective = SelfSupervised(features, unit)
    batches = corpus.train_batches(accelerator, settings.seed)
    splits = corpus.eval_batches(accelerator)
    evaluator = LossEvaluator(accelerator, objective, splits, settings.seed) if splits else None
    max_steps = corpus.num_steps(settings, batches, accelerator)
    loop = TrainingLoop(run, model, features, objective, batches, max_steps, evaluator)
    if choice.picture_steps and loop.log.takes_pictures:
        loop.draw, loop.picture_steps = labels_in_picture(features, corpus, settings.seed), choice.picture_steps
    loop.run()
    loop.verdict = judge(run, model, features, corpus)
    return loop


def labels_in_picture(
    features: SpeechSSLFeatureExtractor, corpus: Corpus, seed: int
) -> Callable[[PreTrainedModel], NDArray[np.uint8]]:
    """What draws mask and labels of one training utterance, always the same, by a pretraining model as it is."""
    waveform = corpus.sample_waveforms(seed, 0.0)[0]

    def draw(model: PreTrainedModel) -> NDArray[np.uint8]:
        from .demo.masked_prediction import PretrainingTask
        from .demo.pictures import draw_pretraining

        encoder = pretraining_encoder(model, features)
        return draw_pretraining(waveform, PretrainingTask(model.config, features, encoder)(waveform, seed))

    return draw


def judge(run: Run, model: PreTrainedModel, features: SpeechSSLFeatureExtractor, corpus: Corpus) -> Verdict | None:
    """Judge what a pretraining run has come to, and say so: labels, their prediction, and what the layers have left.

    The effective rank of the layers is measured on some of the training audio, beside that of random weights.
    """
    if not run.accelerator.is_main_process:
        return None
    log = [entry.values for entry in read_log(run.settings.output_dir)]
    verdict = Verdict.from_log(log) or Verdict()
    layers: list[LayerRank] = []
    if isinstance(encoder := getattr(model, "encoder", None), ConformerModel):
        waveforms = corpus.sample_waveforms(run.settings.seed, JUDGED_SECONDS)
        layers = effective_ranks(ConformerEncoder(encoder, features), waveforms, run.settings.seed)
    if not verdict.labels and not layers:  # a label tokenizer
        return None
    verdict = Verdict(verdict.labels, layers, remarks_on(verdict.labels, layers))
    for remark in verdict.remarks:
        run.accelerator.print(remark)
    return verdict


def remarks_on(uses: Sequence[LabelUse], layers: Sequence[LayerRank]) -> list[str]:
    """The verdict in sentences."""
    remarks = [
        f"Predicted {100 * use.accuracy:.1f} % of the masked frames' {use.kind} labels; always naming the commonest "
        f"one gives {100 * use.commonest_share:.1f} %."
        for use in uses
        if use.accuracy is not None
    ]
    remarks += label_warnings(uses).values()
    if layers and layers[-1].random_effective_rank:
        last, random = layers[-1].effective_rank, layers[-1].random_effective_rank
        remarks.append(
            f"The frames of the last layer have an effective rank of {last:.1f}; with random weights {random:.1f}."
        )
        if last < COLLAPSED_RANK * random:
            remarks.append("The last layer has collapsed: its frames hardly differ. Pretrain with other labels.")
    return remarks


def publish_run(run: Run, loop: TrainingLoop) -> dict[str, float]:
    """Write the results and the model card of a finished run, push it if asked to, and return its last metrics."""
    results, settings = replace(loop.results(), verdict=loop.verdict), run.settings
    if run.accelerator.is_main_process:
        publish(settings.output_dir, results, settings.push_to_hub, settings.hub_model_id)
    return loop.metrics


def call(main: Callable[[], object]) -> None:
    """Run a script and end the process: an error that a user can mend is one line, unless --verbose is given."""
    name, world = os.path.basename(sys.argv[0]), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        name += f" (process {os.environ.get('RANK')} of {world})"

    def run_together() -> None:
        try:
            main()
        except RuntimeError as error:
            if world == 1 or not LOST_PROCESS.search(str(error)):
                raise
            raise ConnectionError(f"another process of the run has ended: {error}") from error

    sys.exit(console.run(name, run_together, console.VERBOSE in sys.argv))
