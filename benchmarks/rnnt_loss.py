"""The transducer loss: audio seconds per second and peak memory of a training step, beside the CTC step.

    python benchmarks/rnnt_loss.py [--threads 2] [--repeats 5] [--quick]

A step is forward and backward of 8 utterances of 10 s with 50 tokens each, vocabulary 1,024, joint width 1,024, on the
encoder that all benchmarks share. `loss alone` leaves the encoder out. Memory is the largest resident size of the
process, less that before the first step. `whole lattice` computes the joint logits of all frames at once. torchaudio,
whose loss transformers uses, has no build for the CPU torch of constraints.txt; where it is installed, it is measured
on the logits that it needs.
"""

import itertools
import time

from common import (
    DECODER_SIZES,
    SIZES,
    argument_parser,
    machine,
    markdown,
    peak_mib,
    serve,
    spread,
    take_turns,
    write_results,
)

BATCH, SECONDS, TOKENS, VOCABULARY = 8, 10.0, 50, 1024
HEADS = {
    "CTC step": {"head": "ctc"},
    "transducer step, 16 frames at once": {"head": "rnnt", "chunk_frames": 16},
    "transducer step, 4 frames at once": {"head": "rnnt", "chunk_frames": 4},
    "transducer loss alone, 16 frames at once": {"head": "loss", "chunk_frames": 16},
    "transducer loss alone, whole lattice": {"head": "loss", "chunk_frames": 250},
    "torchaudio's loss, with its logits": {"head": "torchaudio"},
}


class Step:
    """Training steps of one head; `run` makes one."""

    def __init__(self, head: str, seconds: float, batch: int, chunk_frames: int = 16):
        import torch

        from hf_speech_ssl import ChunkSSLConfig, ChunkSSLForCTC, ChunkSSLForRNNT

        self.head, self.audio = head, seconds * batch
        settings = {"vocab_size": VOCABULARY, "loss_chunk_frames": chunk_frames, "streaming_prob": 0.0}
        config = ChunkSSLConfig(**SIZES, **DECODER_SIZES, **settings)
        self.model = (ChunkSSLForCTC if head == "ctc" else ChunkSSLForRNNT)(config).train()
        frames = int(seconds * 25)
        self.features = torch.randn(batch, int(seconds * 100), 80)
        self.labels = torch.randint(1, VOCABULARY, (batch, TOKENS))
        self.encoded = torch.randn(batch, frames, config.joint_hidden_size, requires_grad=True)
        self.lengths = torch.full((batch,), frames), torch.full((batch,), TOKENS)
        self.before = peak_mib()

    def loss(self):
        """The loss of a step."""
        import torch

        if self.head in ("ctc", "rnnt"):
            return self.model(self.features, labels=self.labels).loss
        states = self.model.decoder(torch.nn.functional.pad(self.labels, (1, 0)))
        if self.head == "torchaudio":
            from torchaudio.functional import rnnt_loss

            logits = self.model.joint(self.encoded[:, :, None] + states[:, None])
            lengths = (length.int() for length in self.lengths)
            return rnnt_loss(logits, self.labels.int(), *lengths, blank=0, reduction="mean")
        from hf_speech_ssl.modeling.transducer_loss import transducer_loss

        chunk_frames = self.model.config.loss_chunk_frames
        model = self.model
        return transducer_loss(
            self.encoded, states, model.joint, self.labels, *self.lengths, chunk_frames=chunk_frames
        ).mean()

    def run(self) -> dict:
        """Audio seconds per second of a step."""
        begin = time.perf_counter()
        self.loss().backward()
        self.model.zero_grad()
        return {"rate": self.audio / (time.perf_counter() - begin)}

    def describe(self) -> dict:
        """Memory that the steps took."""
        return {"mib": peak_mib() - self.before}


def torchaudio_is_here() -> bool:
    """Whether torchaudio imports beside this torch."""
    try:
        import torchaudio.functional  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def main() -> None:
    """Measure all heads in turn and write the table."""
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--quick", action="store_true", help="2 utterances of 2 s")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(Step, arguments.serve, arguments.threads)
    where = machine(arguments.threads)
    size = {"seconds": 2.0, "batch": 2} if arguments.quick else {"seconds": SECONDS, "batch": BATCH}
    present = {name: {**head, **size} for name, head in HEADS.items()}
    if not torchaudio_is_here():
        present = dict(itertools.islice(present.items(), len(present) - 1))
    turns, facts = take_turns(__file__, present, arguments.threads, arguments.repeats, "rnnt_loss")
    rates = {name: [turn[name]["rate"] for turn in turns] for name in present}
    header = ["", "audio seconds per second", "times the CTC step", "memory (MiB)"]
    rows = []
    for name, values in rates.items():
        ratios = [ctc / one for ctc, one in zip(rates["CTC step"], values, strict=True)]
        rows.append([name, spread(values), spread(ratios), f"{facts[name]['mib']:.0f}"])
    note = f"{size['batch']} x {size['seconds']:g} s, {TOKENS} tokens, vocabulary {VOCABULARY}. Median (range) of "
    note += f"{arguments.repeats} turns."
    missing = "" if torchaudio_is_here() else "torchaudio is not installed: no build fits this torch."
    sections = [note, markdown(header, rows), *([missing] if missing else [])]
    write_results(arguments.output_dir, "rnnt_loss", where, sections, {"rates": rates, "facts": facts})
    return None


if __name__ == "__main__":
    main()
