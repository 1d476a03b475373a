"""From a training run to a stranger's process by way of a Hub: pushed by one process, loaded by another that has
transformers alone. And what a Hub that fails in the middle leaves behind."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from families import FAMILIES, example_batch, run
from helpers import speech_like
from hub_server import TOKEN, HubServer
from test_pipeline import save_recognizer
from test_remote_code import HIDE_THE_PACKAGE
from transformers import pipeline

ROOT = Path(__file__).parent.parent
SIZES = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32"
# Two steps with a checkpoint after each, pushed by the script; then the first checkpoint, as a branch.
TRAIN = """
import run_ctc
from hf_speech_ssl.cli import main
folder = sys.argv[1]
run_ctc.main([*sys.argv[2:], "--output_dir", folder, "--push_to_hub"])
assert main(["push", folder + "/checkpoint-1", "me/asr", "--revision", "step-1"]) == 0
"""
# Transformers' own way from a model in memory to the Hub.
PUSH_TO_HUB = """
from hf_speech_ssl import SpeechSSLFeatureExtractor
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoProcessor
for name in sys.argv[1:]:
    AutoModelForCTC.from_pretrained(name).push_to_hub("me/" + name)
    AutoProcessor.from_pretrained(name).push_to_hub("me/" + name)
    AutoFeatureExtractor.from_pretrained(name).push_to_hub("me/features-" + name)
"""
# What a user of another's model runs: argv holds the repository, inputs.pt and outputs.pt.
LOAD = """
import torch
from transformers import AutoFeatureExtractor, AutoModelForCTC, pipeline
name, inputs, outputs, *revisions = sys.argv[1:]
features, mask, wave = torch.load(inputs, weights_only=False)
logits = []
for revision in revisions or ["main"]:
    model = AutoModelForCTC.from_pretrained(name, revision=revision, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        logits.append(model(features, attention_mask=mask).logits)
transcribe = pipeline("automatic-speech-recognition", name, trust_remote_code=True)
torch.save((logits, transcribe(wave, return_timestamps="word")), outputs)
"""
# Copies the snippets of the card argv[1] as they stand, beside a speech.wav.
SNIPPETS = """
import re
for snippet in re.findall(r"```python\\n(.*?)```", open(sys.argv[1]).read(), flags=re.DOTALL):
    exec(snippet, {})
"""
# Each of argv is "repository,revision,token", or "repository,revision,local" for the cache alone; prints what comes of
# loading it, a line each.
TRY = """
import os, time
import torch
from transformers import AutoModelForCTC
time.sleep = lambda seconds: None  # the pauses between retries
for attempt in sys.argv[1:]:
    name, revision, token = attempt.split(",")
    try:
        access = {"local_files_only": True} if token == "local" else {"token": token or None}
        model = AutoModelForCTC.from_pretrained(name, revision=revision, trust_remote_code=True, **access)
        print("loaded", float(sum(p.double().abs().sum() for p in model.state_dict().values())))
    except OSError as error:
        print("OSError", " ".join(str(error).split()))
"""


def client(
    hub: HubServer, home: Path, program: str, *arguments: object, package: bool = False, **variables: str
) -> str:
    """What a process with an empty past prints; `package=False` hides this package from it."""
    ours = [str(ROOT / "finetuning_scripts"), str(ROOT)]  # this checkout, whichever is installed
    start = f"import sys\nsys.path[:0] = {ours}\n" if package else HIDE_THE_PACKAGE
    result = subprocess.run(
        [sys.executable, "-I", "-c", start + program, *map(str, arguments)],
        cwd=home.parent,
        env={**hub.environment(home), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def load_elsewhere(hub: HubServer, tmp_path: Path, name: str, *revisions: str):
    """Logits per revision, and the transcript, from a process that knows the name on the Hub alone."""
    torch.save((*example_batch(), speech_like(1.0)), tmp_path / "inputs.pt")
    client(hub, tmp_path / "stranger", LOAD, name, tmp_path / "inputs.pt", tmp_path / "outputs.pt", *revisions)
    return torch.load(tmp_path / "outputs.pt", weights_only=False)


@pytest.mark.slow
def test_train_push_load(hub, tmp_path):
    pytest.importorskip("espeakng_loader")
    flags = (
        f"--config_name birq-tiny --config_overrides {SIZES} --dataset_name synthetic --max_steps 2 --save_steps 1 "
    )
    flags += "--dataset_config_name sentences=12,eval_sentences=3 --normalization_seconds 20 --logging_steps 1 "
    flags += "--eval_split_name validation --eval_steps 1 --per_device_train_batch_seconds 12"
    cache = {"HF_SPEECH_SSL_CACHE": str(tmp_path / "cache")}
    folder = tmp_path / "of_ann" / "asr"  # the repository is named after it, and told so by a relative path
    client(hub, tmp_path / "author", TRAIN, folder.relative_to(tmp_path), *flags.split(), package=True, **cache)

    files = hub.files("models/me/asr")
    found = {"model.safetensors", "README.md", "results.json", "train_log.jsonl", "modeling_birq.py"}
    assert found | {"training_curves.png", "run_arguments.json", "processor_config.json"} <= files.keys()
    assert any(name.startswith("runs/") for name in files)
    private = [b"of_ann", str(tmp_path).encode(), TOKEN.encode(), os.uname().nodename.encode() + b"."]
    assert not [
        (name, word) for name, data in files.items() for word in private if word in data or word in name.encode()
    ]

    logits, text = load_elsewhere(hub, tmp_path, "me/asr", "main", "step-1")
    for got, saved in zip(logits, (folder, folder / "checkpoint-1"), strict=True):
        assert torch.equal(got, run(FAMILIES["birq"].ctc.from_pretrained(saved).eval()))
    assert not torch.equal(*logits)
    assert text == pipeline("automatic-speech-recognition", str(folder))(speech_like(1.0), return_timestamps="word")

    soundfile.write(tmp_path / "speech.wav", speech_like(1.0), 16_000, "FLOAT")
    for branch, card in (("main", files["README.md"]), ("step-1", hub.files("models/me/asr", "step-1")["README.md"])):
        (tmp_path / f"{branch}.md").write_bytes(card)
        printed = client(hub, tmp_path / "stranger", SNIPPETS, tmp_path / f"{branch}.md")
        assert printed.startswith(str(text)) if branch == "main" else 'revision="step-1"' in card.decode()


@pytest.mark.slow
def test_transformers_own_push_to_hub_brings_weights_code_and_features(hub, tmp_path):
    """For both families, in one process of the author's and one stranger's each."""
    models = {name: save_recognizer(family, tmp_path / name)[0] for name, family in FAMILIES.items()}
    client(hub, tmp_path / "author", PUSH_TO_HUB, *FAMILIES, package=True)
    for name, model in models.items():
        files, features = hub.files(f"models/me/{name}"), hub.files(f"models/me/features-{name}")
        assert {"model.safetensors", f"modeling_{name}.py", "processor_config.json"} <= files.keys()
        assert {"preprocessor_config.json", "feature_extraction_speech_ssl.py"} <= features.keys()
        assert not [path for path in files if path.endswith((".bin", ".pt"))]
        (logits,), text = load_elsewhere(hub, tmp_path, f"me/{name}")
        assert torch.equal(logits, run(model))
        expected = pipeline("automatic-speech-recognition", str(tmp_path / name))
        assert text == expected(speech_like(1.0), return_timestamps="word")
        (tmp_path / "outputs.pt").unlink()


def add_model(hub: HubServer, tmp_path: Path, name: str = "me/asr"):
    """A model that is on the Hub from the start; the size of its weights in bytes."""
    save_recognizer(FAMILIES["birq"], tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.add(f"models/{name}", files)
    return len(files["model.safetensors"])


@pytest.mark.slow
def test_a_download_that_breaks_leaves_nothing_that_loads(hub, tmp_path):
    size = add_model(hub, tmp_path)
    hub.break_after, hub.broken_downloads = size // 3, 10**6
    home, attempt, from_cache = tmp_path / "home", "me/asr,main,", "me/asr,main,local"
    for answer in client(hub, home, TRY, attempt, from_cache).splitlines():
        assert answer.startswith("OSError"), answer
    cached = [path for path in (home / "hub").rglob("*") if path.is_file() and ".locks" not in path.parts]
    assert not [path for path in cached if path.name == "model.safetensors"]
    assert all(path.suffix == ".incomplete" for path in cached if path.stat().st_size > size // 4), cached

    hub.broken_downloads = 1  # a break that the client gets over by itself
    loaded = client(hub, home, TRY, attempt, from_cache).splitlines()
    wanted = FAMILIES["birq"].ctc.from_pretrained(tmp_path / "model").state_dict().values()
    total = float(sum(value.double().abs().sum() for value in wanted))
    assert [answer.split()[0] for answer in loaded] == ["loaded", "loaded"]
    assert [float(answer.split()[1]) for answer in loaded] == pytest.approx([total, total])


def test_what_is_not_there_is_said(hub, tmp_path):
    add_model(hub, tmp_path)
    hub.repositories["models/me/asr"].private = True
    attempts = ["me/asr,step-7,", "me/none,main,", "me/asr,main,hf_wrong", "me/asr,main,"]
    revision, repository, token, good = client(hub, tmp_path / "home", TRY, *attempts).splitlines()
    assert "step-7 is not a valid git identifier" in revision
    assert "me/none is not a local folder" in repository
    assert "OSError" in token and "loaded" in good


def wav(seconds: float, seed: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speech_like(seconds, seed), 16_000, format="wav")
    return file.getvalue()


DATA = """
import json, datasets
from hf_speech_ssl.data.audio import load_audio
from hf_speech_ssl.data.corpora import load_corpus
datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).push_to_hub("me/table", split="test")
found = [datasets.load_dataset("me/table", split="test")["text"][:]]
for name, streaming in (("me/folder", False), ("me/folder", True), ("me/parquet", False), ("me/parquet", True)):
    corpus = load_corpus(name, split="train", streaming=streaming)
    found.append([[example["text"], len(load_audio(example["audio"]))] for example in corpus])
for name, revision in (("me/none", None), ("me/parquet", "v7")):
    try:
        load_corpus(name, revision=revision)
    except FileNotFoundError as error:
        found.append(str(error))
print("FOUND", json.dumps(found))
"""


def test_data_sets_come_from_it(hub, tmp_path):
    """A folder of audio, parquet as most data sets on the Hub are, and a table that `datasets` itself has pushed."""
    sounds = {"one": wav(0.5, 1), "two": wav(0.25, 2)}
    lines = [json.dumps({"file_name": f"{name}.wav", "text": name}) for name in sounds]
    folder = {f"train/{name}.wav": sound for name, sound in sounds.items()}
    hub.add("datasets/me/folder", {**folder, "train/metadata.jsonl": "\n".join(lines).encode()})
    cells = {"audio": [{"bytes": sound, "path": None} for sound in sounds.values()], "text": list(sounds)}
    Dataset.from_dict(cells).cast_column("audio", Audio()).to_parquet(tmp_path / "table.parquet")
    hub.add("datasets/me/parquet", {"data/train-00000-of-00001.parquet": (tmp_path / "table.parquet").read_bytes()})
    found = json.loads(client(hub, tmp_path / "home", DATA, package=True).partition("FOUND ")[2])
    table, *corpora, nothing, no_revision = found
    assert table == ["a", "b", "c"] and corpora == [[["one", 8000], ["two", 4000]]] * 4
    assert "'me/none' is no folder, nor found on the Hub" in nothing and "v7" in no_revision
