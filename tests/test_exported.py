"""Exported graphs compute what the model computes, step by step, and need nothing but their runtime."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import babbler, speech_like, tiny_birq, tiny_chunkssl
from test_streaming import speech

from hf_speech_ssl import BiRQForCTC, ChunkSSLForRNNT
from hf_speech_ssl.cli import main
from hf_speech_ssl.export import writing
from hf_speech_ssl.export.graphs import make_step_graph
from hf_speech_ssl.export.writing import export_model, write_graph
from hf_speech_ssl.modeling.cache import ConformerCache
from hf_speech_ssl.recognition.recognizer import Recognizer
from hf_speech_ssl.recognition.streaming import StreamingTranscriber

CLIENT = Path(__file__).parents[1] / "examples" / "onnx_client.py"
CHUNK_MS, PAST = 160, 3

pytestmark = pytest.mark.slow  # three graphs are exported: half a minute of one core


def save(one: Recognizer, folder: Path) -> str:
    one.model.save_pretrained(folder)
    one.processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def chunkssl() -> Recognizer:
    return babbler()


@pytest.fixture(scope="module")
def exported(chunkssl, tmp_path_factory) -> Path:
    """A Chunk SSL model as `hf-speech-ssl export` writes it."""
    folder = tmp_path_factory.mktemp("exported")
    arguments = ["--chunk_duration_ms", str(CHUNK_MS), "--left_context_chunks", str(PAST)]
    assert main(["export", save(chunkssl, folder / "model"), str(folder / "onnx"), *arguments]) == 0
    return folder / "onnx"


def run(folder: Path, graph: str, **inputs: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(folder / f"{graph}.onnx")).run(None, inputs)


def test_features_are_those_of_the_extractor(chunkssl, exported):
    extractor = chunkssl.processor.feature_extractor
    # Beside a loud tone, both round quiet bins.
    for signal, atol in (
        (speech_like, 2e-5),
        (speech, 1e-3),
        (lambda seconds, seed: np.zeros(1600, np.float32), 1e-6),
    ):
        for seconds in (0.025, 0.3, 2.31):
            samples = np.stack([signal(seconds, seed=1), signal(seconds, seed=2)])
            wanted, _ = extractor.extract(torch.from_numpy(samples), torch.tensor([samples.shape[1]] * 2))
            [features] = run(exported, "features", samples=samples)
            assert features.shape == wanted.shape
            np.testing.assert_allclose(features, wanted, atol=atol)


@torch.no_grad()
def test_200_steps_are_those_of_the_model(chunkssl, exported):
    """Two streams, of which one ends in the middle of a chunk and has no look-ahead there."""
    info = json.loads((exported / "export.json").read_text())["streaming"]
    session = onnxruntime.InferenceSession(str(exported / "step.onnx"))
    state = {one["name"]: np.zeros([2, *one["shape"]], one["dtype"]) for one in info["state"]}
    cache = ConformerCache(PAST * 4)
    chunk, wanted = info["chunk_frames"], info["chunk_frames"] + info["lookahead_frames"]
    assert (chunk, wanted, info["left_context_frames"]) == (16, 32, PAST * 4)
    features = torch.randn(2, 201 * chunk, 80)
    lengths = torch.tensor([201 * chunk, 200 * chunk - 6])
    largest = 0.0
    for step in range(200):
        inputs = features[:, step * chunk : (step + 2) * chunk]
        real = (lengths - step * chunk).clamp(0, wanted)
        mask = torch.arange(wanted) < real[:, None]
        output = chunkssl.model(
            inputs[:, :chunk],
            attention_mask=mask[:, :chunk],
            lookahead_features=inputs[:, chunk:],
            lookahead_attention_mask=mask[:, chunk:],
            past_key_values=cache,
        )
        log_probs, *new = session.run(None, {"features": inputs.numpy(), "num_frames": real.numpy(), **state})
        state = dict(zip(state, new, strict=True))
        frames = mask[:, :chunk:4] & mask[:, 3:chunk:4]
        difference = (torch.from_numpy(log_probs) - output.logits.log_softmax(-1))[frames]
        largest = max(largest, float(difference.abs().max()))
    assert largest < 1e-4
    assert state["positions"].tolist() == [800, 798] and state["valid"][0].all() and not state["valid"][1, -2:].any()


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.33, 3.0])
def test_the_example_client_writes_the_text_of_the_package(chunkssl, exported, seconds):
    samples = speech(seconds, seed=3)
    transcriber = StreamingTranscriber(chunkssl.model, chunkssl.processor, CHUNK_MS, PAST)
    transcriber.accept(samples)
    wanted = " ".join(transcriber.finish().split())
    assert len(wanted) > 5 or seconds < 1
    client = runpy.run_path(str(CLIENT))["Transcriber"](str(exported))
    for block in np.split(samples, range(700, len(samples), 700)):
        assert wanted.startswith(client.accept(block))
    assert client.accept(samples[:0], end=True) == wanted


def test_the_example_client_needs_onnxruntime_and_numpy_alone():
    others = {"torch", "transformers", "hf_speech_ssl"}
    script = f"import runpy, sys; runpy.run_path({str(CLIENT)!r}); assert not {others} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert len(CLIENT.read_text().splitlines()) <= 65


@pytest.mark.parametrize("family", ["chunkssl", "birq"])
@torch.no_grad()
def test_whole_utterances_of_any_length(family, chunkssl, exported, tmp_path):
    one, folder = chunkssl, exported
    if family == "birq":
        config = tiny_birq(num_hidden_layers=1, attention_window=6, vocab_size=chunkssl.model.config.vocab_size)
        one, folder = Recognizer(BiRQForCTC(config).eval(), chunkssl.processor), tmp_path / "onnx"
        assert main(["export", save(one, tmp_path / "model"), str(folder)]) == 0
        assert not (folder / "step.onnx").exists()
        assert json.loads((folder / "export.json").read_text())["streaming"] is None
    for lengths in ([61, 40, 33], [333]):
        features, frames = torch.randn(len(lengths), max(lengths), 80), torch.tensor(lengths)
        arguments = {"chunk_size": 0} if family == "chunkssl" else {}
        mask = torch.arange(max(lengths)) < frames[:, None]
        wanted = one.model(features, attention_mask=mask, **arguments).logits.log_softmax(-1)
        [log_probs] = run(folder, "utterance", features=features.numpy(), num_frames=frames.numpy())
        np.testing.assert_allclose(log_probs, wanted, atol=1e-4)


@torch.no_grad()
def test_programs_of_torch_give_the_same(chunkssl, exported, tmp_path):
    """Loaded where the package is not imported: a program takes and returns tensors only."""
    write_graph(make_step_graph(chunkssl.model, 4, PAST), tmp_path / "step.pt2", "torch")
    info = json.loads((exported / "export.json").read_text())
    features = torch.randn(3, 32, 80)
    frames = torch.tensor([32, 20, 9])
    state = {
        one["name"]: torch.zeros(3, *one["shape"], dtype=getattr(torch, one["dtype"]))
        for one in info["streaming"]["state"]
    }
    torch.save((features, frames, list(state.values())), tmp_path / "inputs.pt")
    script = (
        "import sys, torch; folder = sys.argv[1]; features, frames, state = torch.load(folder + '/inputs.pt');"
        "step = torch.export.load(folder + '/step.pt2').module();"
        "assert 'hf_speech_ssl' not in sys.modules;"
        "torch.save(list(step(features, frames, *state)), folder + '/outputs.pt')"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=tmp_path)
    inputs = {"features": features.numpy(), "num_frames": frames.numpy()}
    wanted = run(exported, "step", **inputs, **{name: tensor.numpy() for name, tensor in state.items()})
    for one, other in zip(torch.load(tmp_path / "outputs.pt"), wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_int8_is_near_float32(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "write_graph", lambda graph, file, *_: shutil.copy(exported / file.name, file))
    model = str(exported.parent / "model")
    arguments = ["--chunk_duration_ms", str(CHUNK_MS), "--left_context_chunks", str(PAST)]
    assert main(["export", model, str(tmp_path), "--int8", *arguments]) == 0
    assert json.loads((tmp_path / "export.json").read_text())["int8"]
    features, frames = np.random.default_rng(0).standard_normal((2, 99, 80), dtype=np.float32), np.array([99, 70])
    [wanted] = run(exported, "utterance", features=features, num_frames=frames)
    [got] = run(tmp_path, "utterance", features=features, num_frames=frames)
    assert not np.array_equal(got, wanted)
    assert np.abs(got - wanted)[0].mean() < 0.2 * np.abs(wanted)[0].mean()
    for name in ("utterance", "step"):
        nodes = onnx.load(tmp_path / f"{name}.onnx").graph.node
        integer = sum(node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul") for node in nodes)
        assert integer == 2 * 8  # the linear layers of two blocks; the projection of the input and the head stay


def test_what_cannot_be_exported_is_refused(chunkssl, tmp_path, capsys):
    model = save(chunkssl, tmp_path / "model")
    out = str(tmp_path / "out")
    for arguments, message in (
        (["--int8", "--format", "torch"], "leave out --format torch"),
        (["--chunk_duration_ms", "50"], "50"),
        (["--left_context_chunks", "0"], "at least 1"),
    ):
        assert main(["export", model, out, *arguments]) == 1
        assert message in capsys.readouterr().err
    config = tiny_chunkssl(vocab_size=chunkssl.model.config.vocab_size)
    with pytest.raises(ValueError, match="A ChunkSSLForRNNT cannot be exported"):
        export_model(Recognizer(ChunkSSLForRNNT(config), chunkssl.processor), tmp_path)
    (tmp_path / "file").touch()
    assert main(["export", model, str(tmp_path / "file")]) == 1
    assert "is a file" in capsys.readouterr().err
