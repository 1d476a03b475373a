"""What int8 costs in word error rate: exported in float32 and in int8, the same model on the same utterances.

    python benchmarks/int8.py outputs/chunkssl-ctc synthetic [--dataset_config_name sentences=500,seed=9]
    python benchmarks/int8.py outputs/birq-ctc an4/test-speakers.jsonl --split_name train --name an4

Whole utterances, and, for a model that streams, chunks of 320 ms through the example client. The gate: int8 may add
0.2 points to the error rate in percent. Intervals of the difference come from a bootstrap over the same utterances.
"""

import argparse
import copy
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import machine, markdown, write_results

PRECISIONS, GATE = ("float32", "int8"), 0.2  # percent points
CLIENT = Path(__file__).parents[1] / "examples" / "onnx_client.py"


def whole(folder: Path, tokenizer) -> Callable[[np.ndarray], str]:
    """Transcribes utterances with the graphs of a folder."""
    import onnxruntime

    from hf_speech_ssl.decoding import ctc_text, greedy_ctc

    features, utterance = (
        onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in ("features", "utterance")
    )

    def transcribe(samples: np.ndarray) -> str:
        [frames] = features.run(None, {"samples": samples[None]})
        [log_probs] = utterance.run(None, {"features": frames, "num_frames": np.array([frames.shape[1]])})
        return ctc_text(greedy_ctc(log_probs, blank_token_id=tokenizer.pad_token_id)[0], tokenizer)

    return transcribe


def chunked(folder: Path) -> Callable[[np.ndarray], str]:
    """Transcribes them as streams."""
    client = runpy.run_path(str(CLIENT))["Transcriber"](str(folder))

    def transcribe(samples: np.ndarray) -> str:
        stream = copy.copy(client)  # a fresh stream with the same sessions
        stream.tokens = []
        return stream.accept(samples, end=True)

    return transcribe


def transcripts(recognizer, reader, folder: Path) -> list:
    """References and hypotheses of all utterances, in every way."""
    from hf_speech_ssl.evaluation import normalize_text
    from hf_speech_ssl.evaluation.scores import Transcript
    from hf_speech_ssl.export.writing import export_model, quantize

    files = export_model(recognizer, folder / "float32")["files"]
    shutil.copytree(folder / "float32", folder / "int8")
    for name in files.keys() - {"features"}:
        quantize(folder / "int8" / files[name])
    ways = {}
    for precision in PRECISIONS:
        ways["whole", precision] = whole(folder / precision, recognizer.tokenizer)
        if recognizer.works_in_chunks:
            ways["320 ms", precision] = chunked(folder / precision)
    found = []
    for batch in reader:
        for one in batch:
            hypotheses = {name: normalize_text(way(one.waveform)) for name, way in ways.items()}
            found.append(Transcript(one.name, one.index, one.seconds, normalize_text(one.text), hypotheses, None))
            print(f"\r{len(found)} of {len(reader)}", end="", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_name_or_path")
    parser.add_argument("dataset_name")
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--split_name", default="test")
    parser.add_argument("--name", default="synthetic", help="of the data, in the name of the report")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    from hf_speech_ssl.data.reading import UtteranceReader
    from hf_speech_ssl.evaluation.scores import Scores
    from hf_speech_ssl.options import ReadingOptions
    from hf_speech_ssl.recognition.recognizer import Recognizer

    where = machine(1)
    recognizer = Recognizer.from_pretrained(options.model_name_or_path, device="cpu")
    reading = ReadingOptions(
        dataset_name=options.dataset_name,
        dataset_config_name=options.dataset_config_name,
        split_name=options.split_name,
    )
    with tempfile.TemporaryDirectory() as folder:
        found = transcripts(recognizer, UtteranceReader(reading, "text"), Path(folder))
    rows, results = [], {}
    for way in dict.fromkeys(way for way, _ in found[0].hypotheses):
        paired = [replace(one, hypotheses={name: one.hypotheses[way, name] for name in PRECISIONS}) for one in found]
        modes = results[way] = Scores(paired, 1000, 0).by_mode()
        plain, small = (100 * modes[precision]["wer"]["value"] for precision in PRECISIONS)
        change = {name: 100 * value for name, value in modes["int8"]["wer_change"].items()}
        difference = f"{change['value']:+.2f} ({change['low']:+.2f} to {change['high']:+.2f})"
        passed = "passed" if change["value"] <= GATE else "missed"
        rows.append([way, f"{plain:.2f} %", f"{small:.2f} %", difference, passed])
    sections = [
        f"{recognizer.model.config.model_type}, {recognizer.model.num_parameters() / 1e6:.1f} M parameters, on "
        f"{Path(options.dataset_name).name} ({options.split_name}).",
        markdown(["transcribed", "WER, float32", "WER, int8", "difference, points", f"gate of {GATE}"], rows),
    ]
    write_results(options.output_dir, f"int8_{options.name}", where, sections, results)


if __name__ == "__main__":
    main()
