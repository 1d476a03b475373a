"""Transcribes a WAV file live with an exported model: onnxruntime and numpy, nothing else.

hf-speech-ssl export outputs/chunkssl-ctc exported
python examples/onnx_client.py exported talk.wav  # 16 kHz, 16 bits, mono
"""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime


class Transcriber:
    """One stream. Samples come at any time; the text so far goes out."""

    def __init__(self, folder: str):
        onnxruntime.disable_telemetry_events()
        self.info = json.loads((Path(folder) / "export.json").read_text(encoding="utf-8"))
        files = {name: str(Path(folder) / file) for name, file in self.info["files"].items()}
        self.features, self.step = (onnxruntime.InferenceSession(files[name]) for name in ("features", "step"))
        state = self.info["streaming"]["state"]
        self.state = {one["name"]: np.zeros([1, *one["shape"]], dtype=one["dtype"]) for one in state}
        self.samples, self.tokens, self.last = np.zeros(0, dtype=np.float32), [], -1

    def accept(self, samples: np.ndarray, end: bool = False) -> str:
        """Take float32 samples at 16 kHz in [-1, 1]; `end` says that no others will come."""
        self.samples = np.concatenate([self.samples, samples])
        streaming, window, hop = self.info["streaming"], self.info["frame_length"], self.info["hop_length"]
        wanted = streaming["chunk_frames"] + streaming["lookahead_frames"]
        while True:
            frames = min(wanted, max(0, (len(self.samples) - window) // hop + 1))
            if frames < (self.info["frame_stacking"] if end else wanted):
                return self.text()
            used = self.samples[None, : (frames - 1) * hop + window]
            [features] = self.features.run(None, {"samples": used})
            features = np.pad(features, ((0, 0), (0, wanted - frames), (0, 0)))
            inputs = {"features": features, "num_frames": np.array([frames]), **self.state}
            log_probs, *state = self.step.run(None, inputs)
            self.state = dict(zip(self.state, state, strict=True))
            self.samples = self.samples[streaming["chunk_frames"] * hop :]
            for token in log_probs[0, : frames // self.info["frame_stacking"]].argmax(-1).tolist():
                if token not in (self.last, self.info["blank_id"]):
                    self.tokens.append(self.info["vocabulary"][token])
                self.last = token

    def text(self) -> str:
        """The text so far, with one space between words."""
        return " ".join("".join(self.tokens).replace(self.info["word_delimiter"], " ").split())


if __name__ == "__main__":
    with wave.open(sys.argv[2]) as file:
        audio = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768
    transcriber = Transcriber(sys.argv[1])
    for block in np.split(audio, range(1600, len(audio), 1600)):  # 0.1 s at a time, as from a microphone
        print(transcriber.accept(block))
    print(transcriber.accept(audio[:0], end=True))
