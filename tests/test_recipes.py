"""The recipes of docs/recipes.md run as they stand, on a tiny model, for two steps."""

import re
from pathlib import Path

import pytest
import soundfile
import torch
from helpers import speech_like, tiny_birq
from transformers import pipeline

from hf_speech_ssl import BiRQForPreTraining, SpeechSSLFeatureExtractor
from hf_speech_ssl.data.audio import AudioError
from hf_speech_ssl.data.collator import SpeechCollator
from hf_speech_ssl.data.corpora import load_corpus
from hf_speech_ssl.decoding import build_ctc_processor
from hf_speech_ssl.recognition import Recognizer

RECIPES = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", RECIPES, flags=re.DOTALL)
WORDS = ("bed", "cat", "bed", "happy")
EXTRACTOR = SpeechSSLFeatureExtractor(mean=[6.0] * 80, variance=[2.0] * 80)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pretrained model and a few commands."""
    folder = tmp_path_factory.mktemp("recipes")
    torch.manual_seed(3)
    BiRQForPreTraining(tiny_birq()).save_pretrained(folder / "outputs" / "birq")
    EXTRACTOR.save_pretrained(folder / "outputs" / "birq")
    (folder / "commands").mkdir()
    rows = ["file_name,text"]
    for number, word in enumerate(WORDS):
        soundfile.write(folder / "commands" / f"{number}.wav", speech_like(0.5 + number / 10, number), 16_000, "FLOAT")
        rows.append(f"{number}.wav,{word}")
    (folder / "commands" / "metadata.csv").write_text("\n".join(rows))
    return folder


def run_snippet(part: str, folder: Path, monkeypatch) -> dict:
    [snippet] = [one for one in SNIPPETS if part in one]
    assert snippet.count("max_steps=1000") == 1
    monkeypatch.chdir(folder)
    namespace: dict = {}
    shortened = snippet.replace("max_steps=1000", "max_steps=2, use_cpu=True, disable_tqdm=True")
    exec(compile(shortened, part, "exec"), namespace)
    return namespace


def test_classification_with_the_trainer(place, monkeypatch):
    found = run_snippet("AutoModelForAudioClassification", place, monkeypatch)
    pretrained = BiRQForPreTraining.from_pretrained("outputs/birq").encoder.state_dict()
    for name, values in found["model"].encoder.state_dict().items():
        assert torch.equal(values, pretrained[name]), name
    weights = found["model"].layer_weights
    assert weights.shape == (4,) and weights.std() > 0  # they are equal at first
    [first, *_] = pipeline("audio-classification", "outputs/commands")(speech_like(0.6))
    assert first["label"] in WORDS


def test_ctc_by_lora(place, monkeypatch):
    found = run_snippet("LoraConfig", place, monkeypatch)
    trained = {name for name, parameter in found["adapted"].named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name or "modules_to_save" in name for name in trained)
    recognizer = Recognizer.from_pretrained("outputs/lora", device="cpu")
    inputs = EXTRACTOR(speech_like(0.7), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        wanted = found["adapted"].eval()(**inputs).logits
        got = recognizer.model(**inputs).logits
        fresh = found["adapted"].get_base_model().encoder(**inputs).last_hidden_state
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
    assert fresh.isfinite().all()


def test_batches_of_the_collator(place):
    rows = list(load_corpus(str(place / "commands"), split="train"))
    processor = build_ctc_processor(WORDS, EXTRACTOR)
    batch = SpeechCollator(processor, text_column="text")(rows)
    for row, (features, mask, labels) in enumerate(zip(*batch.values(), strict=True)):
        alone = EXTRACTOR(speech_like(0.5 + row / 10, row), sampling_rate=16_000, return_tensors="pt").input_features
        torch.testing.assert_close(features[: int(mask.sum())], alone[0])
        assert labels[labels >= 0].tolist() == processor.tokenizer(WORDS[row]).input_ids
        assert (labels[len(WORDS[row]) :] == -100).all()
    names = {"bed": 0, "cat": 1, "happy": 2}
    assert SpeechCollator(EXTRACTOR, label_column="text", label2id=names)(rows)["labels"].tolist() == [0, 1, 0, 2]
    framed = [{**row, "frames": [number] * (number + 1)} for number, row in enumerate(rows[:2])]
    assert SpeechCollator(EXTRACTOR, label_column="frames")(framed)["labels"].tolist() == [[0, -100], [1, 1]]
    cut = SpeechCollator(EXTRACTOR)([{**rows[3], "offset": 0.2, "duration": 0.3}])["input_features"]
    assert cut.shape == (1, 28, 80)


def test_what_the_collator_refuses(place):
    rows = list(load_corpus(str(place / "commands"), split="train"))
    with pytest.raises(ValueError, match="'text' holds 'cat', which has no number in label2id"):
        SpeechCollator(EXTRACTOR, label_column="text", label2id={"bed": 0})(rows)
    with pytest.raises(ValueError, match="need a processor with a tokenizer.*SpeechSSLFeatureExtractor"):
        SpeechCollator(EXTRACTOR, text_column="text")
    with pytest.raises(ValueError, match="not both"):
        SpeechCollator(EXTRACTOR, text_column="text", label_column="text")
    broken = {**rows[0], "audio": {"path": "broken.wav", "bytes": b"RIFF"}}
    with pytest.raises(AudioError, match=r"broken\.wav"):
        SpeechCollator(EXTRACTOR)([broken])
