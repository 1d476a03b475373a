"""Writes a CTC model as graphs for other runtimes, and the JSON file that says how to use them."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree
from transformers import PreTrainedTokenizerBase

from ..data.audio import SAMPLING_RATE
from ..decoding import is_transducer
from ..json_files import write_text
from ..modeling.configuration_conformer import HOP_LENGTH
from ..modeling.feature_extraction_speech_ssl import FRAME_LENGTH, SpeechSSLFeatureExtractor
from ..modeling.modeling_ctc import ConformerForCTC
from ..recognition.recognizer import Recognizer
from ..recognition.streaming import bounded_left_context
from .graphs import Graph, StepGraph, make_feature_graph, make_step_graph, make_utterance_graph

MANIFEST = "export.json"
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_IN_FLOAT32 = ("feature_projection", "ctc_head")

Format = Literal["onnx", "torch"]


def export_model(
    recognizer: Recognizer,
    folder: Path,
    format: Format = "onnx",
    chunk_duration_ms: int = 320,
    left_context_chunks: int | None = None,
    int8: bool = False,
) -> dict[str, Any]:
    """Write `features`, `utterance` and, for a model that streams, `step`; and `export.json`.

    Args:
        recognizer: of a BiRQ or Chunk SSL model, on the CPU.
        folder: is made if it is not there.
        chunk_duration_ms: duration of a streaming step's chunk.
        left_context_chunks: chunks that a stream remembers; as many as the model was made for if absent, or those of
            5.12 s.
        int8: store the weights of linear layers as 8-bit integers, and compute with them (ONNX only).

    Returns:
        What `export.json` holds.

    Raises:
        ImportError: onnx or onnxscript is not installed; onnxruntime, for int8.
        ValueError: the model is a transducer or of another family, int8 is asked of the torch format, or there are no
            such chunks.
    """
    extractor = recognizer.processor.feature_extractor
    if not isinstance(extractor, SpeechSSLFeatureExtractor) or not isinstance(recognizer.model, ConformerForCTC):
        raise ValueError(
            f"A {type(recognizer.model).__name__} cannot be exported; CTC models of BiRQ and Chunk SSL can."
        )
    if is_transducer(recognizer.model):
        raise ValueError(
            f"{type(recognizer.model).__name__} is a transducer, whose search is no graph; export a CTC model instead."
        )
    if int8 and format != "onnx":
        raise ValueError("int8 is for ONNX; give --format onnx with it.")
    if format == "onnx":
        _check_installed("onnx", "onnxscript", *(["onnxruntime"] if int8 else []))
    graphs = [make_feature_graph(extractor), make_utterance_graph(recognizer.model)]
    streaming = None
    if recognizer.works_in_chunks:
        step = _step_graph(recognizer, chunk_duration_ms, left_context_chunks)
        graphs.append(step)
        streaming = _describe_streaming(step, chunk_duration_ms)
    folder.mkdir(parents=True, exist_ok=True)
    files = {graph.name: graph.name + _SUFFIXES[format] for graph in graphs}
    for graph in graphs:
        write_graph(graph, folder / files[graph.name], format)
        if int8 and graph.name != "features":
            quantize(folder / files[graph.name])
    manifest = {
        "format": format,
        "int8": int8,
        "files": files,
        **_describe_audio(extractor),
        **_describe_text(recognizer.tokenizer, recognizer.model.config),
        "streaming": streaming,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def write_graph(graph: Graph, file: Path, format: Format) -> None:
    """Trace a graph and write it to a file."""
    program = graph.trace()
    if format == "torch":
        torch.export.save(program, file)
        return
    with _quiet():
        converted = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=list(graph.inputs), output_names=graph.outputs
        )
    assert converted is not None
    converted.save(str(file))


def quantize(file: Path) -> None:
    """Store an ONNX file's weights of products as int8, a scale per output; activations get theirs at each call.

    The first and the last product of the model stay in float32. Weights are unsigned: onnxruntime's sums of products
    with signed ones overflow on processors without VNNI.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(file)
    del model.graph.value_info[:]  # shapes of float products, which would contradict the quantized ones
    scopes = {node.name: str([one.value for one in node.metadata_props]) for node in model.graph.node}
    with _quiet():
        quantize_dynamic(
            model,
            file,
            per_channel=True,
            weight_type=QuantType.QUInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=[name for name, scope in scopes.items() if any(part in scope for part in _IN_FLOAT32)],
            extra_options={"MatMulConstBOnly": True},
        )


def _step_graph(recognizer: Recognizer, chunk_duration_ms: int, left_context_chunks: int | None) -> Graph:
    config = recognizer.model.config
    past = bounded_left_context(config, chunk_duration_ms, left_context_chunks)
    if past < 1:
        raise ValueError(f"left_context_chunks must be at least 1 in an exported step, got {past}.")
    return make_step_graph(recognizer.model, config.chunk_frames(chunk_duration_ms), past)


def _describe_audio(extractor: SpeechSSLFeatureExtractor) -> dict[str, Any]:
    return {
        "sampling_rate": extractor.sampling_rate,
        "frame_length": FRAME_LENGTH,
        "hop_length": HOP_LENGTH,
        "num_mel_bins": extractor.feature_size,
        "mean": extractor.mean,
        "variance": extractor.variance,
    }


def _describe_text(tokenizer: PreTrainedTokenizerBase, config: Any) -> dict[str, Any]:
    tokens = tokenizer.convert_ids_to_tokens(list(range(min(config.vocab_size, len(tokenizer)))))
    return {
        "frame_stacking": config.frame_stacking,
        "seconds_per_frame": config.inputs_to_logits_ratio / SAMPLING_RATE,
        "vocabulary": tokens,
        "blank_id": tokenizer.pad_token_id,
        "word_delimiter": getattr(tokenizer, "word_delimiter_token", None) or "\u2581",
    }


def _describe_streaming(graph: Graph, chunk_duration_ms: int) -> dict[str, Any]:
    step = graph.module
    assert isinstance(step, StepGraph)
    tensors = zip(step.state_names, pytree.tree_leaves(step.start(1)), strict=True)
    return {
        "chunk_duration_ms": chunk_duration_ms,
        "chunk_frames": step.chunk_frames,
        "lookahead_frames": step.lookahead_frames,
        "left_context_frames": step.left_context_frames,
        "state": [
            {"name": name, "shape": list(tensor.shape[1:]), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in tensors
        ],
    }


def _check_installed(*names: str) -> None:
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(f"Export needs {name}: pip install 'hf-speech-ssl[export]' ({error}).") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters say of their own parts and of the next versions of torch."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in loggers:
            one.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)
