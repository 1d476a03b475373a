r"""Train the tokenizer of Chunk SSL, a finite scalar quantizer, on audio without transcripts.

    accelerate launch pretraining_scripts/run_fsq.py \
        --dataset_name openslr/librispeech_asr --dataset_config_name all --train_split_name train.clean.100 \
        --config_name fsq-base --output_dir outputs/fsq-base --mixed_precision bf16

The defaults are those of Tang and Tseng (arXiv 2509.15579): 180,000 updates at 2e-4 with exponential decay. The paper
does not say how far it decays; ours ends at a tenth. Its batches hold 3,200 seconds: set
`per_device_train_batch_seconds` and `gradient_accumulation_steps` so that they come to that together with the number
of processes. In the logs `explained_variance` says how much of the features the tokens keep, `level_perplexity`
whether the levels are in use.
"""

from hf_speech_ssl import FSQModel
from hf_speech_ssl.options import parse_settings
from hf_speech_ssl.scripts import call, pretrain, publish_run, training_run
from hf_speech_ssl.training.building import load_model, make_config
from hf_speech_ssl.training.settings import DataSettings, PretrainingSettings, TrainingSettings


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train; returns the metrics of the last evaluation."""
    recipe = {"max_steps": 180_000, "learning_rate": 2e-4, "lr_scheduler_type": "exponential"}
    recipe |= {"max_duration_in_seconds": 75.0}
    choice, data, settings = parse_settings(
        argv, __doc__, (PretrainingSettings, DataSettings, TrainingSettings), **recipe
    )
    with training_run(settings, choice, data) as run:
        source = run.source_of(choice.model_name_or_path)
        config = make_config(choice.config_name, source, choice.config_overrides)
        model = load_model(FSQModel, config, source)
        return publish_run(run, pretrain(run, model, source, choice, data, unit="num_frames"))


if __name__ == "__main__":
    call(main)
