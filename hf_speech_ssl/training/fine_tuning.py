"""Fine-tuning on transcribed audio, whatever the head: tokenizer, model, evaluation modes, the run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, Wav2Vec2Processor

from hf_speech_ssl.evaluation import normalize_text
from hf_speech_ssl.options import flag
from hf_speech_ssl.run_folder import OFFLINE, mode_name

from .building import (
    architecture_of,
    load_feature_extractor,
    load_model,
    load_with_new_head,
    make_config,
    writes_text,
)
from .corpus import Corpus, estimate_normalization
from .loop import TrainingLoop
from .processes import decided_by_main_process
from .run import Run
from .settings import DataSettings
from .transcription import TranscriptEvaluator, Transcription, check_letters, letters_in_words


@dataclass(frozen=True)
class FineTuningSettings:
    """Which model to fine-tune, and how texts become labels."""

    model_name_or_path: str | None = flag(None, "Pretrained model, or a fine-tuned one to go on with.")
    from_scratch: bool = flag(False, "Take the architecture and features of that model, but random weights.")
    config_name: str | None = flag(None, "Preset to train from scratch, instead of a saved model.")
    config_overrides: str | None = flag(None, "Config fields, as 'final_dropout=0.1,mask_time_prob=0.1'.")
    text_column_name: str = flag("text", "Column with the transcripts.")
    new_vocabulary: bool = flag(False, "Give a fine-tuned model a new head, for these transcripts.")
    normalize_text: bool = flag(True, "Lower-case transcripts and take out punctuation, in training and evaluation.")
    freeze_feature_projection: bool = flag(False, "Do not train the first projection.")
    freeze_encoder: bool = flag(False, "Train the head alone; see freeze_encoder_steps to do so at the start only.")
    eval_chunk_durations_ms: list[int] | None = flag(
        None, "Chunk SSL: chunk durations in ms to evaluate at beside offline, as 160 320 640 1280."
    )
    normalization_seconds: float = flag(600.0, "Audio for the features' mean and variance, where no model has them.")

    @property
    def normalize(self) -> Callable[[str], str]:
        """What is done to every transcript first."""
        return normalize_text if self.normalize_text else str

    @property
    def label_column_name(self) -> str:
        """The column with the texts that the model learns to write."""
        return self.text_column_name


@dataclass(frozen=True)
class Head:
    """What fine-tuning must know of a head.

    Args:
        auto_class: loads models with it.
        ending: of the names of its model classes.
        build_processor: from the training transcripts and a feature extractor.
        frames_needed: the least number of encoder frames for labels and a model's configuration.
        recipe: config fields of a new head, where `--config_overrides` says nothing else.
        keeps_vocabulary_of: ends of the names of the models whose tokenizer the head takes over.
        evaluator: scores the texts during the run.
    """

    auto_class: Any
    ending: str
    build_processor: Callable[[Sequence[str], Any], Wav2Vec2Processor]
    frames_needed: Callable[[Sequence[int], PreTrainedConfig], int]
    recipe: dict[str, Any] = field(default_factory=dict)
    keeps_vocabulary_of: tuple[str, ...] = ()
    evaluator: type[TranscriptEvaluator] = TranscriptEvaluator

    def keeps_vocabulary(self, run: Run, settings: FineTuningSettings) -> bool:
        """Whether the tokenizer is that of the model or checkpoint that the run begins with."""
        source = run.checkpoint or settings.model_name_or_path
        if source is None or (settings.new_vocabulary and run.checkpoint is None):
            return False
        return architecture_of(source).endswith((self.ending, *self.keeps_vocabulary_of))


def make_processor(run: Run, settings: FineTuningSettings, corpus: Corpus, head: Head) -> Wav2Vec2Processor:
    """The processor of a fine-tuned model, or a new one for the corpus' texts over a pretrained model's features.

    Raises:
        ValueError: the vocabulary does not have the letters of the transcripts, or these have none.
    """
    source = run.checkpoint or settings.model_name_or_path
    found = corpus.transcripts(corpus.train, settings.normalize)
    texts = found.texts
    if remark := found.remark():
        run.accelerator.print(f"{corpus.settings.train_split_name}: {remark}.")
    if source is not None and head.keeps_vocabulary(run, settings):
        processor = Wav2Vec2Processor.from_pretrained(source)
    else:
        processor = head.build_processor(texts, load_feature_extractor(source))
        run.accelerator.print(f"{letters_in_words(texts)} It has {len(processor.tokenizer)} tokens.")

    def check() -> None:
        check_letters(texts, processor.tokenizer, corpus.settings.train_split_name)
        for name, split in corpus.evaluation.items():
            try:
                check_letters(corpus.transcripts(split, settings.normalize).texts, processor.tokenizer, name)
            except ValueError as error:
                raise ValueError(f"--eval_split_name {name}: {error}") from error

    decided_by_main_process(run.accelerator, check)
    return processor


def make_model(run: Run, settings: FineTuningSettings, processor: Wav2Vec2Processor, head: Head) -> PreTrainedModel:
    """The encoder, with a head for the processor's tokens."""
    source = run.source_of(settings.model_name_or_path)
    keeps_vocabulary = head.keeps_vocabulary(run, settings)
    has_head = source is not None and architecture_of(source).endswith(head.ending)
    config = make_config(
        settings.config_name,
        source,
        settings.config_overrides,
        recipe={} if has_head and keeps_vocabulary else head.recipe,
        vocab_size=len(processor.tokenizer),
        pad_token_id=processor.tokenizer.pad_token_id,
        ctc_loss_reduction="mean",  # the loop's mean over utterances builds on it
        ctc_zero_infinity=True,  # and on losses of 0 where a transcript is longer than its audio
    )
    replaced = source is not None and writes_text(source) and not keeps_vocabulary
    if source is not None and replaced and not settings.from_scratch:
        model = load_with_new_head(head.auto_class, config, source)
    else:
        model = load_model(head.auto_class, config, None if settings.from_scratch else source)
    if settings.freeze_encoder:
        model.base_model.requires_grad_(False)
    if settings.freeze_feature_projection:
        model.base_model.feature_projection.requires_grad_(False)
    return model


def evaluation_modes(config: PreTrainedConfig, durations_ms: list[int] | None) -> dict[str, dict[str, int]]:
    """Offline, and streaming with chunks of each of these durations.

    Raises:
        ValueError: the model has no chunks, or no whole number of frames in one of the durations.
    """
    if durations_ms and not hasattr(config, "chunk_frames"):
        raise ValueError(
            f"--eval_chunk_durations_ms needs a model that works in chunks (Chunk SSL), this is {config.model_type}."
        )
    offline = {"chunk_size": 0} if hasattr(config, "chunk_frames") else {}
    chunked = {mode_name(duration): {"chunk_size": config.chunk_frames(duration)} for duration in durations_ms or []}
    return {OFFLINE: offline, **chunked}


def fine_tune(run: Run, settings: FineTuningSettings, data: DataSettings, head: Head) -> TrainingLoop:
    """Fine-tune a model and leave it in the output folder."""
    accelerator, training = run.accelerator, run.settings
    corpus = Corpus.load(data, accelerator, text_column=settings.label_column_name)
    processor = make_processor(run, settings, corpus, head)
    if processor.feature_extractor.mean is None:
        sample = corpus.sample_batches(training.seed)
        estimate_normalization(processor.feature_extractor, sample, settings.normalization_seconds, accelerator)
    model = make_model(run, settings, processor, head)

    def frames_needed(labels: Sequence[int]) -> int:
        return head.frames_needed(labels, model.config)

    objective = Transcription(processor, model.config.frame_stacking, settings.normalize, frames_needed)
    batches = corpus.train_batches(accelerator, training.seed)
    splits = corpus.eval_batches(accelerator)
    modes = evaluation_modes(model.config, settings.eval_chunk_durations_ms)
    evaluator = head.evaluator(accelerator, objective, splits, modes) if splits else None
    max_steps = corpus.num_steps(training, batches, accelerator)
    loop = TrainingLoop(run, model, processor, objective, batches, max_steps, evaluator)
    loop.run()
    return loop
