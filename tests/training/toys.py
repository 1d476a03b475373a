"""Small stand-ins for the training tests: batches of noise, a model whose loss is a mean over uneven counts."""

import socket

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from hf_speech_ssl.data.batch import Batch, DataPosition, collate
from hf_speech_ssl.modeling.configuration_birq import BiRQConfig
from hf_speech_ssl.modeling.feature_extraction_speech_ssl import SpeechSSLFeatureExtractor
from hf_speech_ssl.modeling.modeling_birq import BiRQForPreTraining
from hf_speech_ssl.training.settings import TrainingSettings
from hf_speech_ssl.training.updates import SelfSupervised, TrainStep

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_kernel_size": 3,
    "codebook_size": 16,
    "codebook_dim": 4,
    "mask_length": 4,
    "mask_start_prob": 0.3,  # in evaluation the features' last bits decide the mask: none must be an empty one
}


def noise(*lengths: int, seed: int = 0, position: int = 0) -> Batch:
    """Utterances of noise, padded together; of no utterance, the placeholder of a batch of bad files."""
    generator = torch.Generator().manual_seed(seed)
    waveforms = [0.1 * torch.randn(length, generator=generator).numpy() for length in lengths]
    return collate(waveforms, None, [""] * len(lengths), DataPosition(epoch=position))


class ToyBatches:
    """Batch number i is always the same; the position's epoch is the number of the next batch."""

    skipped = ()

    def infinite_batches(self, start=None):
        index = start.epoch if start else 0
        while True:
            yield noise(4000, 3000 + 160 * (index % 7), seed=index, position=index + 1)
            index += 1

    def epoch(self, epoch, start=None):
        for index in range(2):
            yield noise(4000, 3200, seed=1000 + index, position=index + 1)


class ToyModel(PreTrainedModel):
    """A linear map whose loss is the mean of its squared output over the frames with positive energy."""

    config_class = PreTrainedConfig
    main_input_name = "input_features"
    base_model_prefix = "encoder"

    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.Linear(80, 3)
        self.head = nn.Linear(3, 1)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_features, attention_mask):
        counted = attention_mask & (input_features.mean(-1) > input_features.mean(-1)[:, :1])
        errors = self.head(torch.tanh(self.encoder(input_features / 10))).squeeze(-1).square()
        count = counted.sum()
        loss = (errors * counted).sum() / count.clamp_min(1)
        return ModelOutput(loss=loss, num_masked_frames=count, twice_the_loss=2 * loss.detach())


def toy_model() -> ToyModel:
    torch.manual_seed(1)
    return ToyModel(PreTrainedConfig())


def tiny_birq(**fields) -> BiRQForPreTraining:
    torch.manual_seed(1)
    return BiRQForPreTraining(BiRQConfig(**{**TINY, **fields}))


class GradientRecorder(TrainStep):
    """Keeps the gradients that the optimizer was given."""

    def average_gradients(self, units):
        norm = super().average_gradients(units)
        self.gradients = {name: p.grad.clone() for name, p in self.bare_model.named_parameters()}
        return norm


def gradients_of_update(accelerator, batches, **settings):
    """Gradients and sums of one update of the toy model on `batches`."""
    settings = TrainingSettings(output_dir="unused", max_grad_norm=0.0, **settings)
    objective = SelfSupervised(SpeechSSLFeatureExtractor())
    learner = GradientRecorder(accelerator, toy_model(), objective, settings, lambda step: 1.0)
    sums = learner.update(1, batches)
    return learner.gradients, sums


def free_port() -> int:
    """A port for the processes of a test to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
