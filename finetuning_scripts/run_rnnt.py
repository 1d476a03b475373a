r"""Fine-tune a pretrained encoder with a transducer on transcribed audio, or train the same architecture from scratch.

    accelerate launch finetuning_scripts/run_rnnt.py --model_name_or_path outputs/chunkssl-base \
        --dataset_name openslr/librispeech_asr --train_split_name train.clean.100+train.clean.360+train.other.500 \
        --eval_split_name validation.clean,validation.other --text_column_name text \
        --eval_chunk_durations_ms 160 320 640 1280 --output_dir outputs/chunkssl-base-rnnt
    hf-speech-ssl average outputs/chunkssl-base-rnnt -n 10 --output_dir outputs/chunkssl-base-rnnt-mean

The defaults are those of Tang and Tseng (arXiv 2509.15579) for 960 hours: 101,000 updates, of which the first 1 %
warms up to 2e-3 with the encoder frozen, 39.6 % hold it and the others divide it by sqrt(2) ten times (the paper does
not say how it anneals); SpecAugment with 2 masks of up to 27 mel bins and 10 of up to 5 % of the utterance; the mean
of the best 10 checkpoints, for which --save_total_limit is 30. For 10 hours: `--max_steps 20000 --warmup_steps 2000
--freeze_encoder_steps 2000 --hold_steps 8000 --learning_rate 3e-5 --config_overrides
num_feature_masks=1,max_feature_mask_width=34,max_time_mask_share=0.02`.

The tokenizer is built from the transcripts: 1,024 unigram pieces unless `--vocabulary_size` and `--vocabulary_kind`
say otherwise; `model` takes that of the CTC model that the run goes on from. `--normalize_text false` keeps case and
punctuation. A transducer keeps its own tokenizer, unless `--new_vocabulary` is given. `--config_overrides
ctc_loss_weight=0.3` adds a CTC loss, and the model then loads as a CTC model too.

A Chunk SSL model draws for every update whether it processes whole utterances or chunks.

`--task translate` learns to write another language, the texts of `--translation_column_name`, with their case and
punctuation, by a prediction network of two layers; BLEU marks the best checkpoints (extra `translation`). The paper's
English to German, from MuST-C as it is unpacked:

    accelerate launch finetuning_scripts/run_rnnt.py --task translate --model_name_or_path outputs/chunkssl-base \
        --dataset_name MUSTC/en-de --translation_column_name de --eval_split_name validation \
        --eval_chunk_durations_ms 320 --output_dir outputs/chunkssl-base-en-de
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from transformers import AutoModelForRNNT, PreTrainedConfig, Wav2Vec2Processor

from hf_speech_ssl.decoding import build_ctc_processor, build_piece_processor
from hf_speech_ssl.options import flag, parse_settings
from hf_speech_ssl.run_folder import TRANSLATE
from hf_speech_ssl.scripts import call, publish_run, training_run
from hf_speech_ssl.training.fine_tuning import FineTuningSettings, Head, fine_tune
from hf_speech_ssl.training.settings import DataSettings, TrainingSettings
from hf_speech_ssl.training.transcription import TranscriptEvaluator, TranslationEvaluator

SPEC_AUGMENT = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "num_time_masks": 10, "max_time_mask_share": 0.05}
SPEC_AUGMENT |= {"num_feature_masks": 2, "max_feature_mask_width": 27}


@dataclass(frozen=True)
class ModelSettings(FineTuningSettings):
    """Which model to fine-tune, and how texts become labels."""

    task: Literal["transcribe", "translate"] = flag("transcribe", "Write what is said, or another language.")
    translation_column_name: str | None = flag(
        None, "Column with the translations, instead of the transcripts; 'translation' by default."
    )
    normalize_text: bool = flag(
        None,
        "Lower-case texts and take out punctuation, in training and evaluation; by default of transcripts, not of "
        "translations.",
    )
    vocabulary_kind: Literal["unigram", "bpe", "character", "model"] = flag(
        "unigram", "What a new tokenizer's tokens are; 'model' keeps that of a CTC model."
    )
    vocabulary_size: int = flag(1024, "Tokens of a new unigram or BPE tokenizer.")

    def __post_init__(self) -> None:
        if self.translation_column_name is not None and not self.translates:
            raise ValueError(
                f"--translation_column_name {self.translation_column_name} is for translations: give --task "
                f"translate, too."
            )
        if self.normalize_text is None:
            object.__setattr__(self, "normalize_text", not self.translates)

    @property
    def translates(self) -> bool:
        """Whether the model writes another language."""
        return self.task == TRANSLATE

    @property
    def label_column_name(self) -> str:
        """The column with the texts that the model learns to write."""
        return (self.translation_column_name or "translation") if self.translates else self.text_column_name


def build_processor(settings: ModelSettings, texts: Sequence[str], feature_extractor: Any) -> Wav2Vec2Processor:
    """The processor with a new tokenizer.

    Raises:
        ValueError: the transcripts do not have so many pieces, or there is no tokenizer to keep.
    """
    if settings.vocabulary_kind == "model":
        raise ValueError(
            f"--vocabulary_kind model keeps the tokenizer of a CTC model; {settings.model_name_or_path} is none, or "
            f"--new_vocabulary is given. Build one with --vocabulary_kind unigram, bpe or character."
        )
    if settings.vocabulary_kind == "character":
        return build_ctc_processor(texts, feature_extractor)
    return build_piece_processor(texts, feature_extractor, settings.vocabulary_size, settings.vocabulary_kind)


def frames_needed(labels: Sequence[int], config: PreTrainedConfig) -> int:
    """Frames that decoding needs to emit some labels."""
    return max(1, math.ceil(len(labels) / config.max_symbols_per_step))


def make_head(settings: ModelSettings) -> Head:
    """The transducer head."""
    keeps = ("ForCTC",) if settings.vocabulary_kind == "model" else ()
    build = partial(build_processor, settings)
    recipe = SPEC_AUGMENT | ({"num_decoder_layers": 2} if settings.translates else {})
    evaluator = TranslationEvaluator if settings.translates else TranscriptEvaluator
    return Head(AutoModelForRNNT, "ForRNNT", build, frames_needed, recipe, keeps, evaluator)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fine-tune; returns the metrics of the final model."""
    recipe: dict[str, Any] = {"max_steps": 101_000, "learning_rate": 2e-3, "weight_decay": 0.0}
    recipe |= {"lr_scheduler_type": "tri_stage", "warmup_steps": 1 / 101, "freeze_encoder_steps": 1 / 101}
    recipe |= {"hold_steps": 40 / 101, "num_anneals": 10, "save_total_limit": 30}
    recipe |= {"eval_split_name": "validation", "load_best_model_at_end": True}
    classes = (ModelSettings, DataSettings, TrainingSettings)
    model_settings, data, settings = parse_settings(argv, __doc__, classes, **recipe)
    with training_run(settings, model_settings, data) as run:
        return publish_run(run, fine_tune(run, model_settings, data, make_head(model_settings)))


if __name__ == "__main__":
    call(main)
