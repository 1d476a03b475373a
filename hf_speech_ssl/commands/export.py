"""hf-speech-ssl export: a CTC model as graphs that run without this package."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..options import LoadingOptions, argument, flag
from ..paths import check_model_folder


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is exported, and how."""

    model_name_or_path: str = argument("folder or Hub id of a BiRQ or Chunk SSL CTC model", "MODEL")
    output_dir: str = argument("folder for the graphs and export.json, which says how to use them", "OUT")
    format: Literal["onnx", "torch"] = flag("onnx", "ONNX files, or programs for torch.export.load")
    chunk_duration_ms: int = flag(320, "Chunk SSL: duration of a streaming step's chunk")
    left_context_chunks: int | None = flag(
        None, "chunks that a stream remembers; by default as many as the model was made for, or those of 5.12 s"
    )
    int8: bool = flag(False, "8-bit integers in the linear layers (ONNX); measure the error rate with it")

    def __post_init__(self) -> None:
        if self.int8 and self.format != "onnx":
            raise ValueError(f"--int8 is for ONNX; leave out --format {self.format}.")
        if Path(self.output_dir).is_file():
            raise ValueError(f"{self.output_dir} is a file; name a folder for the graphs.")


def export(options: ExportOptions, loading: LoadingOptions) -> None:
    """Write the features, whole utterances and, for Chunk SSL, one streaming step as graphs.

    Raises:
        ImportError: the exporter is not installed.
        OSError: there is no such model, or the folder cannot be written.
        ValueError: the model is of another family, or has no such chunks.
    """
    if loading.device not in (None, "cpu"):
        raise ValueError(f"Graphs are made on the CPU and run anywhere; leave out --device {loading.device}.")
    check_model_folder(options.model_name_or_path)
    from ..export.writing import export_model
    from ..recognition.recognizer import Recognizer

    recognizer = Recognizer.from_pretrained(options.model_name_or_path, **asdict(loading) | {"device": "cpu"})
    manifest = export_model(
        recognizer,
        Path(options.output_dir),
        options.format,
        options.chunk_duration_ms,
        options.left_context_chunks,
        options.int8,
    )
    print(f"Wrote {', '.join(manifest['files'].values())} and export.json to {options.output_dir}.", file=sys.stderr)
