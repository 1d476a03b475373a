"""The model card: from a run's own files alone, with snippets that run and metadata that the Hub understands."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import soundfile
import torch
import yaml
from helpers import speech_like, tiny_birq, tiny_chunkssl
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

from hf_speech_ssl import (
    BiRQForCTC,
    BiRQForPreTraining,
    BiRQForSequenceClassification,
    ChunkSSLForAudioFrameClassification,
    ChunkSSLForCTC,
    ChunkSSLForPreTraining,
    FSQConfig,
    FSQModel,
    SpeechSSLFeatureExtractor,
)
from hf_speech_ssl.cli import main
from hf_speech_ssl.decoding import build_ctc_processor
from hf_speech_ssl.hub import write_model_card

RESULTS = {
    "eval_validation_wer": 0.1234,
    "eval_validation_cer": 0.05,
    "eval_test_wer": 0.2,
    "eval_test_loss": 1.5,
    "updates": 10,
    "skipped_files": 2,
    "audio_hours": 5.0,
    "training_hours": 0.5,
    "num_parameters": 137_000_000,
    "num_processes": 4,
    "device": "CPU",
}
ARGUMENTS = {
    "dataset_name": "openslr/librispeech_asr",
    "dataset_config_name": "clean",
    "train_split_name": "train.100",
    "eval_split_name": "validation,test",
    "model_name_or_path": "someone/birq-base",
    "normalize_text": True,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "mixed_precision": "no",
}


def rate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


ERRORS = {"substitutions": rate(0.03, 0.02, 0.04), "deletions": rate(0.01), "insertions": rate(0.0112)}
EVALUATION = {
    "model": "/data/ana/outputs/ctc",
    "dataset": "openslr/librispeech_asr",
    "split": "test",
    "modes": {"offline": {"wer": rate(0.0512, 0.048, 0.0549), "cer": rate(0.02, 0.018, 0.022), **ERRORS}},
    "speakers": [],
    "worst": [{"reference": "a private sentence"}],
    "settings": {
        "decoder": "greedy decoding",
        "lm_path": None,
        "beam_size": 50,
        "num_resamples": 1000,
        "resampled": "speakers",
        "confidence": 0.95,
        "dataset_config_name": "clean",
        "max_samples": None,
    },
}
STREAMED = {"wer": rate(0.08, 0.07, 0.09), "cer": rate(0.03, 0.02, 0.04), **ERRORS, "latency_ms": 640}


def folder_of_run(folder, architecture="BiRQForCTC", model_type="birq", results=RESULTS, evaluation=None, **arguments):
    folder.mkdir(exist_ok=True)
    if not (folder / "config.json").exists():
        config = {"architectures": [architecture], "model_type": model_type, "hidden_size": 512, "frame_stacking": 2}
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "run_arguments.json").write_text(json.dumps({**ARGUMENTS, **arguments}))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def text_of(folder):
    return (folder / "README.md").read_text()


def test_the_card_of_a_ctc_model(tmp_path):
    write_model_card(folder_of_run(tmp_path))
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("automatic-speech-recognition", "transformers")
    assert card.data.base_model == "someone/birq-base" and card.data.datasets == ["openslr/librispeech_asr"]
    assert card.data.metrics == ["wer", "cer"] and card.data.license == "apache-2.0" and card.data.language is None
    found = {(r.dataset_split, r.metric_type, r.metric_value) for r in card.data.eval_results}
    assert found == {("validation", "wer", 12.34), ("validation", "cer", 5.0), ("test", "wer", 20.0)}
    words = ["137.0 million", "12.34 %", "2 files", "4 x CPU, 30.0 minutes", "10.0 seconds of audio per second"]
    words += [
        "on the splits `validation` and `test`; no confidence intervals were computed",
        "| `weight_decay` | 0.0 |",
        "| `hidden_size` | 512 |",
    ]
    words += ["2509.15430", "2509.15579", "5.0 hours of audio", "Precision: float32", "fine-tuned from `someone/birq"]
    for word in words:
        assert word in card.text, word
    assert "{{" not in card.text.split("```bibtex")[0] and "None" not in card.text
    assert "training_curves.png" not in card.text, "no picture is there"


def test_the_card_of_an_encoder_on_local_data_claims_no_hub_data(tmp_path):
    folder = folder_of_run(
        tmp_path, "BiRQForPreTraining", dataset_name="my_audio", model_name_or_path=None, eval_split_name=None
    )
    (folder / "training_curves.png").write_bytes(b"")
    write_model_card(folder, license="cc-by-4.0", language=["de", "fr"])
    metadata = yaml.safe_load(text_of(folder).split("---")[1])
    assert metadata["pipeline_tag"] == "feature-extraction" and not {"datasets", "base_model"} & set(metadata)
    assert (metadata["license"], metadata["language"]) == ("cc-by-4.0", ["de", "fr"])
    assert "![Training curves](training_curves.png)" in text_of(folder) and "cc-by-4.0. The training" in text_of(
        folder
    )


VERDICT = {
    "labels": [
        {
            "kind": "anchor",
            "codebook_size": 1024,
            "entries_used": 900,
            "perplexity": 312.4,
            "commonest_share": 0.0512,
            "accuracy": 0.321,
            "loudness": 0.4567,
            "of_next_year": 1,
        },
        {"kind": "", "entries_used": 2, "perplexity": 1.5, "commonest_share": 1.0},
    ],
    "layers": [{"layer": 0, "effective_rank": 20.04}, {"layer": 1, "effective_rank": 5.0, "random_effective_rank": 9}],
    "remarks": ["Masked prediction is far better than the commonest label."],
}


def test_the_verdict_of_pretraining_is_on_the_card(tmp_path):
    write_model_card(folder_of_run(tmp_path, "BiRQForPreTraining", results={**RESULTS, "verdict": VERDICT}))
    text = text_of(tmp_path)
    assert "| anchor | 900 of 1,024 | 312 | 5.1 % | 32.1 % | 45.7 % |" in text
    assert "| all | 2 | 2 | 100.0 % |  |  |" in text
    assert "| input | 20.0 |  |\n| 1 | 5.0 | 9.0 |\n" in text and VERDICT["remarks"][0] in text
    assert "{'" not in text and "None" not in text


def test_without_a_verdict_the_log_tells_of_the_labels(tmp_path):
    statistics = {"labels_used": 40.0, "label_perplexity": 12.6, "top_label_share": 0.25, "label_loudness": 0.1}
    early = {f"anchor_{name}": value / 2 for name, value in statistics.items()}
    late = {f"anchor_{name}": value for name, value in statistics.items()}
    late |= {f"enhanced_{name}": 2 * value for name, value in statistics.items()}
    lines = [
        {"step": 1, **early},
        {"step": 2, "accuracy": 0.5, **late},
        {"step": 2, **{f"eval_{name}": 0.9 for name in statistics}},
    ]
    folder = folder_of_run(tmp_path, "BiRQForPreTraining")
    (folder / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_model_card(folder)
    rows = ["| anchor | 40 | 13 | 25.0 % | 50.0 % | 10.0 % |", "| enhanced | 80 | 25 | 50.0 % |  | 20.0 % |"]
    assert "\n".join(rows) in text_of(folder)
    line = {"step": 2, "frame_accuracy": 0.5, "accuracy": 0.9, **statistics}
    (folder / "train_log.jsonl").write_text(json.dumps(line))
    write_model_card(folder)
    assert "| all | 40 | 13 | 25.0 % | 50.0 % | 10.0 % |" in text_of(folder)


def test_synthetic_data_is_no_data_set_of_the_hub(tmp_path):
    write_model_card(folder_of_run(tmp_path, dataset_name="synthetic"))
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.datasets is None and data.language == "en"
    for result in data.eval_results:
        with pytest.raises(HFValidationError):
            validate_repo_id(result.dataset_type)
    assert "does not know real speech" in text_of(tmp_path)


def evaluated(settings=None, **modes):
    return {
        **EVALUATION,
        "modes": {**EVALUATION["modes"], **modes},
        "settings": {**EVALUATION["settings"], **(settings or {})},
    }


def rates_on_the_hub(folder):
    found = ModelCard.load(folder / "README.md").data.eval_results
    return {(result.dataset_split, result.metric_name): result.metric_value for result in found}


def test_results_have_the_intervals_of_the_evaluations(tmp_path):
    evaluation = evaluated(**{"320 ms": STREAMED})
    folder = folder_of_run(tmp_path, "ChunkSSLForCTC", "chunkssl", evaluation=evaluation)
    write_model_card(folder)
    text, errors = text_of(folder), "3.00 % [2.00, 4.00] | 1.00 % | 1.12 %"
    assert f"| offline | 5.12 % [4.80, 5.49] | 2.00 % [1.80, 2.20] | {errors} |  |" in text
    assert f"| 320 ms | 8.00 % [7.00, 9.00] | 3.00 % [2.00, 4.00] | {errors} | 640 ms |" in text
    assert "95 % bootstrap intervals from 1,000 resamples of the speakers" in text
    assert "No confidence intervals" not in text and "private sentence" not in text
    rates = rates_on_the_hub(folder)
    assert rates["test", "WER"] == 5.12, "what was evaluated afterwards stands for the split, not training's last"
    assert rates["test", "WER, chunks of 320 ms"] == 8.0 and rates["validation", "WER"] == 12.34


def test_evaluations_of_other_kinds_stand_beside_it(tmp_path):
    folder = folder_of_run(tmp_path, evaluation=evaluated())
    search = {"decoder": "beam search", "lm_path": "/data/ana/4gram.arpa"}
    (folder / "evaluation-lm.json").write_text(json.dumps(evaluated(search)))
    part = evaluated({"max_samples": 10, "num_resamples": 0})
    part["modes"] = {"offline": {name: rate(0.5) for name in ("wer", "cer", *ERRORS)}}
    (folder / "evaluation_part.json").write_text(json.dumps(part))
    write_model_card(folder)
    assert "Beam search (50 hypotheses) with language model `4gram.arpa`." in text_of(folder)
    assert "the first 10 utterances only" in text_of(folder)
    assert "| 50.00 % | 50.00 % |" in text_of(folder) and "No confidence intervals" in text_of(folder)
    rates = rates_on_the_hub(folder)
    assert rates["test", "WER"] == rates["test", "WER, beam search"] == 5.12, "part of a split is no figure of it"


def test_evaluations_of_training_on_part_of_a_split_say_so(tmp_path):
    write_model_card(folder_of_run(tmp_path, eval_split_name="test", max_eval_samples=1200))
    assert "on the split `test`, the first 1,200 utterances only; no conf" in text_of(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.eval_results is None


def test_streaming_error_rates_of_training_are_told_apart(tmp_path):
    results = {**RESULTS, "eval_validation_320ms_wer": 0.3, "eval_test_320ms_wer": 0.4}
    write_model_card(folder_of_run(tmp_path, results=results, eval_chunk_durations_ms=[320]))
    found = ModelCard.load(tmp_path / "README.md").data.eval_results
    values = {(r.dataset_split, r.metric_name): r.metric_value for r in found}
    assert values["test", "WER"] == 20.0 and values["test", "WER, chunks of 320 ms"] == 40.0


def test_nothing_private_is_on_a_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for made in ("data/calls", "outputs/pretrained"):
        (tmp_path / made).mkdir(parents=True)
    places = {"dataset_name": "data/calls", "model_name_or_path": "outputs/pretrained"}
    evaluation = {**EVALUATION, "dataset": "/data/ana/calls"}
    folder = folder_of_run(tmp_path / "run", evaluation=evaluation, output_dir="/data/ana/run", **places)
    write_model_card(folder)
    text = text_of(folder)
    assert "`calls`" in text and "fine-tuned from `pretrained`" in text
    for private in ("ana", "data/calls", "outputs/pretrained", str(tmp_path)):
        assert not re.search(rf"\b{private}\b", text), private
    data = ModelCard.load(folder / "README.md").data
    assert data.datasets is None and data.base_model is None
    write_model_card(folder_of_run(folder, dataset_name="C:\\Users\\ana\\calls", model_name_or_path="../ana/model"))
    assert not re.search(r"\bana\b", text_of(folder)) and "`model`" in text_of(folder) and "`calls`" in text_of(folder)


# What the Hub's own validation holds of the fields that our cards have (its endpoint is not to be reached in tests).
def complaints(metadata):
    if metadata.get("pipeline_tag") not in ("automatic-speech-recognition", "feature-extraction"):
        yield '"pipeline_tag" must be a known task'
    for name in ("base_model", "datasets"):
        values = metadata.get(name) or []
        for value in [values] if isinstance(values, str) else values:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
                yield f'"{name}" with value "{value}" is not valid'
    languages = metadata.get("language") or []
    for code in [languages] if isinstance(languages, str) else languages:
        if not re.fullmatch("[a-z]{2,3}", code):
            yield f'"language" with value "{code}" is not an ISO 639 code'
    for model in metadata.get("model-index", []):
        for result in model["results"]:
            if not {"type", "name"} <= set(result["dataset"]) or not result["task"]["type"] or not model["name"]:
                yield '"model-index" lacks a required field'
            for metric in result["metrics"]:
                if not isinstance(metric["value"], float | int) or not metric["type"]:
                    yield '"model-index" holds a metric without a number'


@pytest.fixture
def validator(monkeypatch):
    """A server on loopback where huggingface_hub asks whether a card is valid."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/api/validate-yaml" and body["repoType"] == "model"
            found = list(complaints(yaml.safe_load(body["content"].split("---\n")[1])))
            answer = "\n".join(found).encode()
            self.send_response(400 if found else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("dataset", ["openslr/librispeech_asr", "synthetic", "my_audio"])
@pytest.mark.parametrize("after_training", [True, False])
def test_the_hubs_validation_takes_the_metadata(tmp_path, validator, dataset, after_training):
    evaluation = {**evaluated(**{"320 ms": STREAMED}), "dataset": dataset} if after_training else None
    folder = folder_of_run(tmp_path, dataset_name=dataset, evaluation=evaluation)
    write_model_card(folder)
    ModelCard.load(folder / "README.md").validate()
    metadata = metadata_load(folder / "README.md")
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == tmp_path.name and len(results) == (6 if after_training else 3)
    assert ModelCard.load(folder / "README.md").data.to_dict() == metadata, "what is read back is what was written"


def test_the_validation_of_the_tests_finds_something(tmp_path, validator):
    write_model_card(folder_of_run(tmp_path), language="English")
    with pytest.raises(ValueError, match="ISO 639"):
        ModelCard.load(tmp_path / "README.md").validate()


def test_what_is_missing_is_named(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        write_model_card(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no config.json"):
        write_model_card(tmp_path)
    folder = folder_of_run(tmp_path)
    for name in ("results.json", "run_arguments.json"):
        content = (folder / name).read_text()
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"no {name}"):
            write_model_card(folder)
        (folder / name).write_text(content[:-5])
        with pytest.raises(ValueError, match=f"{name} is no JSON"):
            write_model_card(folder)
        (folder / name).write_text("[]")
        with pytest.raises(ValueError, match=f"{name} holds a list"):
            write_model_card(folder)
        (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=f"{name} has no "):
            write_model_card(folder)
        (folder / name).write_text(content)
    assert not (folder / "README.md").exists(), "no half card"
    assert main(["card", str(tmp_path / "nowhere")]) == 1 and "no folder" in capsys.readouterr().err
    assert main(["card", str(folder), "--language", "en"]) == 0 and metadata_load(folder / "README.md")[
        "language"
    ] == ["en"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"model_type": "bert"}, "type 'bert'"),
        ("config.json", {"model_type": "birq", "hidden_size": "wide"}, "config.json is no configuration of BiRQ"),
        ("evaluation.json", {"dataset": "x", "split": "test"}, "evaluation.json has no modes"),
        (
            "evaluation-2.json",
            {"dataset": "x", "split": "test", "modes": {"offline": {"wer": 0.5}}},
            "no value, low and high for the wer of 'offline'",
        ),
        ("evaluation.json", {"dataset": "x", "split": "test", "modes": [1]}, "no value, low and high for the wer"),
        ("evaluation.json", {"dataset": "x", "split": "test", "modes": {"offline": 1}}, "no value, low and high"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, file, content, message):
    folder = folder_of_run(tmp_path)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        write_model_card(folder)


TEXTS = ["what is said in the recording"]


def save_encoder(folder, model):
    model.save_pretrained(folder)
    SpeechSSLFeatureExtractor(mean=[0.0] * 80, variance=[1.0] * 80).save_pretrained(folder)


def save_ctc(folder, model_class, config):
    processor = build_ctc_processor(TEXTS, SpeechSSLFeatureExtractor(mean=[0.0] * 80, variance=[1.0] * 80))
    config.vocab_size, config.pad_token_id = len(processor.tokenizer), processor.tokenizer.pad_token_id
    model_class(config).save_pretrained(folder)
    processor.save_pretrained(folder)


MODELS = {
    "encoder": lambda folder: save_encoder(folder, BiRQForPreTraining(tiny_birq())),
    "chunkssl-encoder": lambda folder: save_encoder(folder, ChunkSSLForPreTraining(tiny_chunkssl())),
    "ctc": lambda folder: save_ctc(folder, BiRQForCTC, tiny_birq()),
    "chunkssl-ctc": lambda folder: save_ctc(folder, ChunkSSLForCTC, tiny_chunkssl()),
    "classes": lambda folder: save_encoder(folder, BiRQForSequenceClassification(tiny_birq(id2label={0: "bed"}))),
    "chunkssl-classes-of-frames": lambda folder: save_encoder(
        folder, ChunkSSLForAudioFrameClassification(tiny_chunkssl(id2label={0: "silence"}))
    ),
    "tokenizer": lambda folder: save_encoder(
        folder, FSQModel(FSQConfig(fsq_levels=[3, 5], fsq_hidden_size=16, fsq_num_hidden_layers=2))
    ),
}
SAYS = {
    "encoder": "torch.Size([1, 99, 32])",
    "chunkssl-encoder": "torch.Size([1, 49, 32])",
    "ctc": "chunks",
    "chunkssl-ctc": "chunks",
    "classes": "bed",
    "chunkssl-classes-of-frames": "silence",
    "tokenizer": "of the variance",
}


@pytest.mark.parametrize("kind", MODELS)
def test_all_snippets_of_a_card_run(kind, tmp_path, monkeypatch, capsys):
    """Copied as they stand, beside the model's folder and a recording."""
    MODELS[kind](tmp_path / kind)
    write_model_card(folder_of_run(tmp_path / kind, dataset_name="synthetic"))
    soundfile.write(tmp_path / "speech.wav", speech_like(2.0), 16_000)
    monkeypatch.chdir(tmp_path)
    text, classes = text_of(tmp_path / kind), "classes" in kind
    assert text.count("needs the package") == (kind != "ctc" and not classes)
    assert ("pipeline_tag: audio-classification" in text) == classes
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == (1 if classes else 3)
    for snippet in snippets:
        namespace = {}
        exec(compile(snippet, f"{kind} card", "exec"), namespace)
        if "loss" in namespace:
            assert torch.isfinite(namespace["loss"])
    printed = capsys.readouterr().out.strip()
    assert printed
    assert SAYS[kind] in printed or (SAYS[kind] == "chunks" and "'text'" in printed)
