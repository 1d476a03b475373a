r"""Fine-tune a pretrained encoder with CTC on transcribed audio, or train the same architecture from scratch.

    accelerate launch finetuning_scripts/run_ctc.py --model_name_or_path outputs/birq-base \
        --dataset_name openslr/librispeech_asr --dataset_config_name clean --train_split_name train.100 \
        --eval_split_name validation,test --text_column_name text --output_dir outputs/birq-base-ctc

The defaults are those of Jiang et al. (arXiv 2509.15430): 30 epochs, of which 10 warm up linearly to 1e-3, 10 hold it
and 10 divide it by sqrt(2) each; no weight decay. The final model is the one with the lowest WER on the first of the
evaluation splits. A character tokenizer is built from the transcripts; a CTC model keeps its own, unless
`--new_vocabulary` is given.

A Chunk SSL model draws for every update whether it processes whole utterances or chunks, and
`--eval_chunk_durations_ms 160 320 640 1280` evaluates at these durations too. Tang and Tseng (arXiv 2509.15579)
fine-tune theirs, with a transducer, for 101,000 updates: `--max_steps 101000 --learning_rate 2e-3 --warmup_steps 1000
--freeze_encoder_steps 1000 --hold_steps 40000`.
"""

from dataclasses import dataclass

from transformers import AutoModelForCTC, PreTrainedConfig, PreTrainedModel, Wav2Vec2Processor

from hf_speech_ssl.decoding import build_ctc_processor
from hf_speech_ssl.evaluation import normalize_text
from hf_speech_ssl.options import flag, parse_settings
from hf_speech_ssl.run_folder import OFFLINE, mode_name
from hf_speech_ssl.scripts import call, publish_run, training_run
from hf_speech_ssl.training.building import (
    is_ctc_model,
    load_feature_extractor,
    load_model,
    load_with_new_head,
    make_config,
)
from hf_speech_ssl.training.corpus import Corpus, estimate_normalization
from hf_speech_ssl.training.loop import TrainingLoop
from hf_speech_ssl.training.processes import decided_by_main_process
from hf_speech_ssl.training.run import Run
from hf_speech_ssl.training.settings import DataSettings, TrainingSettings
from hf_speech_ssl.training.transcription import (
    TranscriptEvaluator,
    Transcription,
    check_letters,
    letters_in_words,
)


@dataclass(frozen=True)
class ModelSettings:
    """Which model to fine-tune, and how texts become labels."""

    model_name_or_path: str | None = flag(None, "Pretrained model, or a CTC model to go on with.")
    from_scratch: bool = flag(False, "Take the architecture and features of that model, but random weights.")
    config_name: str | None = flag(None, "Preset to train from scratch, instead of a saved model.")
    config_overrides: str | None = flag(None, "Config fields, as 'final_dropout=0.1,mask_time_prob=0.1'.")
    text_column_name: str = flag("text", "Column with the transcripts.")
    new_vocabulary: bool = flag(False, "Give a CTC model a new head, for the letters of these transcripts.")
    normalize_text: bool = flag(True, "Lower-case transcripts and take out punctuation, in training and evaluation.")
    freeze_feature_projection: bool = flag(False, "Do not train the first projection.")
    freeze_encoder: bool = flag(False, "Train the head alone; see freeze_encoder_steps to do so at the start only.")
    eval_chunk_durations_ms: list[int] | None = flag(
        None, "Chunk SSL: chunk durations in ms to evaluate at beside offline, as 160 320 640 1280."
    )
    normalization_seconds: float = flag(600.0, "Audio for the features' mean and variance, where no model has them.")


def make_processor(run: Run, model_settings: ModelSettings, corpus: Corpus) -> Wav2Vec2Processor:
    """The processor of a CTC model, or a new one for the corpus' letters over a pretrained model's features.

    Raises:
        ValueError: the vocabulary does not have the letters of the transcripts, or these have none.
    """
    normalize = normalize_text if model_settings.normalize_text else str
    source = run.checkpoint or model_settings.model_name_or_path
    found = corpus.transcripts(corpus.train, normalize)
    texts = found.texts
    if remark := found.remark():
        run.accelerator.print(f"{corpus.settings.train_split_name}: {remark}.")
    if source is not None and is_ctc_model(source) and not has_new_head(run, model_settings):
        processor = Wav2Vec2Processor.from_pretrained(source)
    else:
        processor = build_ctc_processor(texts, load_feature_extractor(source))
        run.accelerator.print(letters_in_words(texts))

    def check() -> None:
        check_letters(texts, processor.tokenizer, corpus.settings.train_split_name)
        for name, split in corpus.evaluation.items():
            try:
                check_letters(corpus.transcripts(split, normalize).texts, processor.tokenizer, name)
            except ValueError as error:
                raise ValueError(f"--eval_split_name {name}: {error}") from error

    decided_by_main_process(run.accelerator, check)
    return processor


def has_new_head(run: Run, model_settings: ModelSettings) -> bool:
    """Whether the head of the model named is left behind; a checkpoint of this run has the new one."""
    return model_settings.new_vocabulary and run.checkpoint is None


def make_model(run: Run, model_settings: ModelSettings, processor: Wav2Vec2Processor) -> PreTrainedModel:
    """The encoder, with a head for the processor's letters."""
    source = run.source_of(model_settings.model_name_or_path)
    config = make_config(
        model_settings.config_name,
        source,
        model_settings.config_overrides,
        vocab_size=len(processor.tokenizer),
        pad_token_id=processor.tokenizer.pad_token_id,
        ctc_loss_reduction="mean",  # the loop's mean over utterances builds on it
        ctc_zero_infinity=True,  # and on losses of 0 where a transcript is longer than its audio
    )
    if source is not None and has_new_head(run, model_settings) and not model_settings.from_scratch:
        model = load_with_new_head(AutoModelForCTC, config, source)
    else:
        model = load_model(AutoModelForCTC, config, None if model_settings.from_scratch else source)
    if model_settings.freeze_encoder:
        model.base_model.requires_grad_(False)
    if model_settings.freeze_feature_projection:
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


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fine-tune; returns the metrics of the final model."""
    recipe = {"num_train_epochs": 30.0, "learning_rate": 1e-3, "weight_decay": 0.0, "lr_scheduler_type": "tri_stage"}
    recipe |= {"warmup_steps": 1 / 3, "hold_steps": 1 / 3, "num_anneals": 10}
    recipe |= {"eval_split_name": "validation", "load_best_model_at_end": True}
    model_settings, data, settings = parse_settings(
        argv, __doc__, (ModelSettings, DataSettings, TrainingSettings), **recipe
    )
    with training_run(settings, model_settings, data) as run:
        return publish_run(run, fine_tune(run, model_settings, data))


def fine_tune(run: Run, model_settings: ModelSettings, data: DataSettings) -> TrainingLoop:
    """Fine-tune a model and leave it in the output folder."""
    accelerator, settings = run.accelerator, run.settings
    corpus = Corpus.load(data, accelerator, text_column=model_settings.text_column_name)
    processor = make_processor(run, model_settings, corpus)
    if processor.feature_extractor.mean is None:
        sample = corpus.sample_batches(settings.seed)
        estimate_normalization(processor.feature_extractor, sample, model_settings.normalization_seconds, accelerator)
    model = make_model(run, model_settings, processor)

    normalize = normalize_text if model_settings.normalize_text else str
    objective = Transcription(processor, model.config.frame_stacking, normalize)
    batches = corpus.train_batches(accelerator, settings.seed)
    splits = corpus.eval_batches(accelerator)
    modes = evaluation_modes(model.config, model_settings.eval_chunk_durations_ms)
    evaluator = TranscriptEvaluator(accelerator, objective, splits, modes) if splits else None
    max_steps = corpus.num_steps(settings, batches, accelerator)
    loop = TrainingLoop(run, model, processor, objective, batches, max_steps, evaluator)
    loop.run()
    return loop


if __name__ == "__main__":
    call(main)
