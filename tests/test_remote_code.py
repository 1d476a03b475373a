"""A saved folder loads where the package is not installed, gives the same outputs there, and saves itself again."""

import copy
import filecmp
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import HEADS, Family, every_family, example_batch, run
from helpers import speech_like, tiny_birq
from test_pipeline import save_recognizer
from transformers import AutoModel, AutoModelForCTC, AutoModelForPreTraining, AutoProcessor, pipeline

from hf_speech_ssl import BiRQForPreTraining, FSQConfig, FSQModel, SpeechSSLFeatureExtractor

# An editable install has a finder of its own, so the package is hidden from all finders.
HIDE_THE_PACKAGE = """
import sys

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("hf_speech_ssl", "modeling"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden)
try:
    import hf_speech_ssl
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the package can be imported")
"""
# Loads every head from one pretraining checkpoint in the folder argv[1], and saves what it loaded to argv[2].
PROGRAM = """
from pathlib import Path
import torch
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoModelForAudioFrameClassification,
    AutoModelForCTC, AutoModelForPreTraining, AutoModelForRNNT, AutoProcessor, pipeline
)

source, target = map(Path, sys.argv[1:])
features, mask, wave = torch.load(source / "inputs.pt", weights_only=False)
trust = {"trust_remote_code": True}
outputs = {}
AUTO = {
    "base": AutoModel, "ctc": AutoModelForCTC, "rnnt": AutoModelForRNNT,
    "classification": AutoModelForAudioClassification, "frame_classification": AutoModelForAudioFrameClassification,
    "pretraining": AutoModelForPreTraining,
}
for head, auto in AUTO.items():
    torch.manual_seed(3)  # for the weights of a new head
    model = auto.from_pretrained(source / "pretrained", **trust)
    assert type(model.config).__module__.startswith("transformers_modules."), type(model.config)
    torch.manual_seed(12)  # for the mask of a pretraining step
    with torch.no_grad():
        output = model(features, attention_mask=mask)
    outputs[head] = output.last_hidden_state if head == "base" else output.logits
model.save_pretrained(target / "pretrained")

extractor = AutoFeatureExtractor.from_pretrained(source / "pretrained", **trust)
outputs["features"] = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features
extractor.save_pretrained(target / "pretrained")

processor = AutoProcessor.from_pretrained(source / "ctc", **trust)
outputs["processor"] = processor(wave, sampling_rate=16_000, return_tensors="pt").input_features
processor.save_pretrained(target / "ctc")
transcribe = pipeline("automatic-speech-recognition", str(source / "ctc"), **trust)
outputs["text"] = transcribe(wave, return_timestamps="word")
transcribe.model.save_pretrained(target / "ctc")
parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
written = pipeline("automatic-speech-recognition", str(source / "rnnt"), **parts, **trust)
assert type(written.model).__name__.endswith("ForRNNT"), type(written.model)
outputs["transducer's text"] = written(wave)
written.model.save_pretrained(target / "rnnt")
torch.save((features, mask, wave), target / "inputs.pt")
torch.save(outputs, target / "outputs.pt")
"""


TOKENIZER_PROGRAM = """
from pathlib import Path
import torch
from transformers import AutoFeatureExtractor, AutoModel

source, target = map(Path, sys.argv[1:])
model = AutoModel.from_pretrained(source, trust_remote_code=True)
model.save_pretrained(target)
AutoFeatureExtractor.from_pretrained(source, trust_remote_code=True).save_pretrained(target)
features, mask = torch.load(source / "inputs.pt")
torch.save({"digits": model.tokenize(features, mask)}, target / "outputs.pt")
"""


def update_twice(model, features, mask):
    """Two updates; its text is also part of the program below."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    for seed in range(2):
        torch.manual_seed(seed)
        model(features, attention_mask=mask).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


LEARNING_PROGRAM = (
    """
from pathlib import Path
import torch
from transformers import AutoModelForPreTraining
"""
    + inspect.getsource(update_twice)
    + """
source, target = map(Path, sys.argv[1:])
model = AutoModelForPreTraining.from_pretrained(source, trust_remote_code=True)
update_twice(model, *torch.load(source / "inputs.pt"))
model.save_pretrained(target)
torch.save(dict(model.quantizer.named_buffers()), target / "outputs.pt")
"""
)


def run_without_the_package(source: Path, target: Path, program: str = PROGRAM) -> dict:
    """What `program` found, in a process with an empty cache of remote code."""
    target.mkdir()
    result = subprocess.run(
        [sys.executable, "-I", "-c", HIDE_THE_PACKAGE + program, str(source), str(target)],
        cwd=target,
        env={"HF_HOME": str(target / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(target / "outputs.pt", weights_only=False)


@every_family
def test_remote_code(family: Family, tmp_path):
    first, second = (tmp_path / name for name in ("first", "second"))
    family.build("pretraining").save_pretrained(first / "pretrained")
    extractor = SpeechSSLFeatureExtractor(mean=[6.0] * 80, variance=[2.0] * 80)
    extractor.save_pretrained(first / "pretrained")
    _, processor = save_recognizer(family, first / "ctc")
    family.rnnt.from_pretrained(first / "ctc").save_pretrained(first / "rnnt")
    wave = speech_like(1.0)
    torch.save((*example_batch(), wave), first / "inputs.pt")

    wanted = {
        "features": extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features,
        "processor": processor(wave, sampling_rate=16_000, return_tensors="pt").input_features,
    }
    for head in HEADS:
        torch.manual_seed(3)
        wanted[head] = run(getattr(family, head).from_pretrained(first / "pretrained"))
    text = pipeline("automatic-speech-recognition", str(first / "ctc"))(wave.copy(), return_timestamps="word")
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    transducers_text = pipeline("automatic-speech-recognition", str(first / "rnnt"), **parts)(wave.copy())

    got = run_without_the_package(first, second)
    assert got.pop("text") == text
    assert got.pop("transducer's text") == transducers_text
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        assert torch.equal(got[name], values), name

    # What was saved there loads there as well: it is what it was loaded from, and what transformers adds of its own.
    saved = [str(file.relative_to(first)) for file in first.rglob("*") if file.is_file()]
    _, changed, missing = filecmp.cmpfiles(first, second, saved, shallow=False)
    assert (changed, missing) == (["ctc/tokenizer_config.json"], [])

    # Back where the package is installed, its own classes win.
    assert type(AutoModelForCTC.from_pretrained(second / "pretrained")) is family.ctc
    assert type(AutoProcessor.from_pretrained(second / "ctc").feature_extractor) is SpeechSSLFeatureExtractor


def test_remote_code_of_the_tokenizer(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    model = FSQModel(FSQConfig(fsq_levels=[5, 3, 3], fsq_hidden_size=16, fsq_num_hidden_layers=2)).eval()
    model.save_pretrained(first)
    SpeechSSLFeatureExtractor(mean=[6.0] * 80, variance=[2.0] * 80).save_pretrained(first)
    torch.save(example_batch(), first / "inputs.pt")
    digits = run_without_the_package(first, second, TOKENIZER_PROGRAM)["digits"]
    assert torch.equal(digits, model.tokenize(*example_batch()))
    again = AutoModel.from_pretrained(second)  # what was saved there
    assert type(again) is FSQModel and torch.equal(digits, again.tokenize(*example_batch()))
    assert {file.name for file in second.glob("*.py")} == {file.name for file in first.glob("*.py")}


@pytest.mark.parametrize(
    "moves",
    [
        {"codebook_refinements": 1, "codebook_refinement_interval": 2},
        {"distillation_loss_weight": 0.5, "codebook_replacements": [3], "second_codebook_size": 10},
    ],
    ids=["refined", "distilled"],
)
def test_remote_code_goes_on_learning_its_labels(moves: dict, tmp_path):
    """The folder is saved between the estimate of the projection and the one move of the entries."""
    first, second = tmp_path / "first", tmp_path / "second"
    fields = {"projection_kind": "whitened", "projection_updates": 1, "label_encoder_decay": 0.9}
    enhanced = {"enhanced_label_kind": "clusters", "enhanced_refinement_interval": 2}
    model = BiRQForPreTraining(tiny_birq(**fields, **enhanced, **moves))
    update_twice(model, *example_batch())
    model.save_pretrained(first)
    torch.save(example_batch(), first / "inputs.pt")
    saved = copy.deepcopy(dict(model.quantizer.named_buffers()))
    update_twice(model, *example_batch())
    wanted = dict(model.quantizer.named_buffers())
    got = run_without_the_package(first, second, LEARNING_PROGRAM)
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(got[name], values, rtol=1e-4, atol=1e-4, msg=name)
    assert torch.equal(got["projection"], saved["projection"]) and not torch.equal(got["codebook"], saved["codebook"])
    again = AutoModelForPreTraining.from_pretrained(second)  # what was saved there
    assert type(again) is BiRQForPreTraining
    for name, values in again.quantizer.named_buffers():
        assert torch.equal(values, got[name]), name
