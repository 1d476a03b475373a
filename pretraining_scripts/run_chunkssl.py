"""Pretrain Chunk SSL on audio without transcripts, with the labels of a trained tokenizer.

    accelerate launch pretraining_scripts/run_fsq.py --dataset_name ... --config_name fsq-base --output_dir outputs/fsq
    accelerate launch pretraining_scripts/run_chunkssl.py --fsq_model_name_or_path outputs/fsq \
        --dataset_name ... --config_name chunkssl-base --output_dir outputs/chunkssl --mixed_precision bf16

The defaults are those of Tang and Tseng (arXiv 2509.15579): 400,000 updates with Adam's inverse square root schedule,
25,000 of them warm-up to 3e-4. The paper's batches hold 16,000 seconds: set `per_device_train_batch_seconds` and
`gradient_accumulation_steps` so that they come to that together with the number of processes. Labels of BEST-RQ need no
tokenizer: `--config_overrides label_kind=random_projection`.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_speech_ssl import ChunkSSLConfig, ChunkSSLForPreTraining, FSQConfig, FSQModel
from hf_speech_ssl.hub import publish
from hf_speech_ssl.training.building import load_feature_extractor, load_model, make_config
from hf_speech_ssl.training.checkpoints import checkpoint_to_resume
from hf_speech_ssl.training.corpus import Corpus, DataSettings
from hf_speech_ssl.training.evaluators import LossEvaluator
from hf_speech_ssl.training.loop import TrainingLoop
from hf_speech_ssl.training.objectives import SelfSupervised
from hf_speech_ssl.training.settings import TrainingSettings, flag, parse_settings
from hf_speech_ssl.training.setup import estimate_normalization, make_accelerator, write_arguments
