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
fine-tune theirs with a transducer: see `run_rnnt.py`.
"""

from transformers import AutoModelForCTC

from hf_speech_ssl.decoding import build_ctc_processor
from hf_speech_ssl.options import parse_settings
from hf_speech_ssl.scripts import call, publish_run, training_run
from hf_speech_ssl.training.fine_tuning import FineTuningSettings, Head, fine_tune
from hf_speech_ssl.training.settings import DataSettings, TrainingSettings
from hf_speech_ssl.training.transcription import ctc_frames_needed

CTC = Head(AutoModelForCTC, "ForCTC", build_ctc_processor, lambda labels, config: ctc_frames_needed(labels))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Fine-tune; returns the metrics of the final model."""
    recipe = {"num_train_epochs": 30.0, "learning_rate": 1e-3, "weight_decay": 0.0, "lr_scheduler_type": "tri_stage"}
    recipe |= {"warmup_steps": 1 / 3, "hold_steps": 1 / 3, "num_anneals": 10}
    recipe |= {"eval_split_name": "validation", "load_best_model_at_end": True}
    model_settings, data, settings = parse_settings(
        argv, __doc__, (FineTuningSettings, DataSettings, TrainingSettings), **recipe
    )
    with training_run(settings, model_settings, data) as run:
        return publish_run(run, fine_tune(run, model_settings, data, CTC))


if __name__ == "__main__":
    call(main)
