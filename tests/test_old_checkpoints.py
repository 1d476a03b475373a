"""Checkpoints that were saved before load today and give the outputs that they gave then.

The folders of tests/checkpoints were saved by version 0.1.0 on transformers 5.23 with `save_pretrained`, their copies
of the code removed. Their weights are random, and so are the buffers that a seed would otherwise give.
`outputs.safetensors` holds a batch and what each model made of it.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForCTC, AutoModelForPreTraining

import hf_speech_ssl

CHECKPOINTS = Path(__file__).parent / "checkpoints"
LABELS = torch.tensor([[3, 4, 5], [2, -100, -100]])
# By folder: the Auto class, the class, and the calls whose outputs are stored, by name.
CASES = {
    "birq_pretraining": (AutoModelForPreTraining, "BiRQForPreTraining", {"masked": {}}),
    "birq_ctc": (AutoModelForCTC, "BiRQForCTC", {"offline": {"labels": LABELS}}),
    "chunkssl_pretraining": (AutoModelForPreTraining, "ChunkSSLForPreTraining", {"masked": {"chunk_size": 4}}),
    "chunkssl_ctc": (
        AutoModelForCTC,
        "ChunkSSLForCTC",
        {"offline": {"labels": LABELS}, "chunks": {"labels": LABELS, "chunk_size": 4}},
    ),
    "fsq": (AutoModel, "FSQModel", {"plain": {}}),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_gives_the_same_outputs(name: str):
    auto_class, class_name, calls = CASES[name]
    model, info = auto_class.from_pretrained(CHECKPOINTS / name, output_loading_info=True)
    assert type(model) is getattr(hf_speech_ssl, class_name)
    assert not any(info.values()), info
    stored = load_file(CHECKPOINTS / name / "outputs.safetensors")
    given = ("input_features", "attention_mask", "mask_time_indices")
    batch = {key: value for key, value in stored.items() if key in given}
    compared = 0
    for call, arguments in calls.items():
        outputs = model(**batch, **arguments)
        for key, wanted in stored.items():
            if key.startswith(f"{call}."):
                torch.testing.assert_close(outputs[key.removeprefix(f"{call}.")], wanted, msg=key)
                compared += 1
    assert compared == len(stored) - len(batch)


def test_an_old_feature_extractor_loads():
    extractor = AutoFeatureExtractor.from_pretrained(CHECKPOINTS / "birq_ctc")
    assert type(extractor) is hf_speech_ssl.SpeechSSLFeatureExtractor
    assert (extractor.feature_size, extractor.mean, extractor.variance) == (8, [6.0] * 8, [2.0] * 8)
