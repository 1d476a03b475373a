"""What the labels of Chunk SSL know of phones, by the size of the codebook: Table 4 of arXiv 2509.15579 in small.

    python benchmarks/codebooks.py [--threads 2] [--steps 2000] [--train_hours 2] [--test_hours 1] [--quick]

A finite scalar quantizer of each size is trained on synthetic speech (grammar "full"), with the same batches in the
same order, and labels speech of other speakers saying other sentences, at 25 labels a second; so does the random
projection of BEST-RQ. The phones at the labels' centers come with the corpus; frames in no phone (pauses) do not
count.

Purity and PNMI rise with the number of different labels whatever the labels know, and with finite data they reach 1
where every frame has a label of its own. Two controls stand beside them. "Shuffled" are the same labels dealt out to
the frames at random: as many of each, nothing known. "On other utterances" names each label's commonest phone on one
half of the test utterances and counts how often that is right on the other half; for a label not met there it says the
commonest phone of all. That figure cannot rise by having more labels than there is data for.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from common import FSQ_LEVELS, argument_parser, machine, markdown, pin, write_results

FRAME_RATE = 25.0  # labels a second
FIRST_CENTER = (3 * 0.010 + 0.025) / 2  # s: the middle of four windows of 25 ms, 10 ms apart
PAPER = {"1,000": (0.19, 0.01), "50,625": (0.22, 0.22), "1,265,625": (0.67, 0.83), "6,834,375": (0.89, 0.95)}
RANDOM = "random projection, 8,192"


class Corpus:
    """Training batches, and test features with the phone of every label.

    Args:
        train_hours, test_hours: lengths of the two.
        batch_seconds: audio in a batch.
    """

    def __init__(self, train_hours: float, test_hours: float, batch_seconds: float):
        import torch

        from hf_speech_ssl import SpeechSSLFeatureExtractor
        from hf_speech_ssl.data.audio import load_audio
        from hf_speech_ssl.data.batching import SpeechBatches
        from hf_speech_ssl.data.synthetic import build_synthetic
        from hf_speech_ssl.probing.label_quality import phone_ids_at_frames

        train = build_synthetic("train", hours=train_hours, grammar="full")
        self.batches = SpeechBatches(train, batch_seconds=batch_seconds, num_workers=1)
        self.extractor = SpeechSSLFeatureExtractor()
        some = (batch for batch, _ in zip(self.batches.epoch(0), range(20), strict=False))
        self.extractor.fit_normalization((batch.waveforms, batch.lengths) for batch in some)
        rows = build_synthetic("test", hours=test_hours, grammar="full")
        names: dict[str, int] = {}
        self.test_features, self.test_phones = [], []
        for row in rows:
            waveform = torch.from_numpy(load_audio(row["audio"]))[None]
            features, _ = self.extractor.extract(waveform, torch.tensor([waveform.shape[1]]))
            starts, ends = ([phone[edge] for phone in row["phones"]] for edge in ("start", "end"))
            ids = [names.setdefault(phone["phone"], len(names)) for phone in row["phones"]]
            frames = features.shape[1] // 4
            self.test_features.append(features)
            self.test_phones.append(phone_ids_at_frames(starts, ends, ids, frames, FRAME_RATE, FIRST_CENTER))
        self.num_phones = len(names)


def train_tokenizer(corpus: Corpus, levels: list[int], steps: int, width: int, layers: int):
    """An `FSQModel` after `steps` updates at a learning rate that decays exponentially to a tenth."""
    import torch

    from hf_speech_ssl import FSQConfig, FSQModel

    torch.manual_seed(0)
    model = FSQModel(FSQConfig(fsq_levels=levels, fsq_hidden_size=width, fsq_num_hidden_layers=layers)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / steps))
    for step, batch in zip(range(steps), corpus.batches.infinite_batches(), strict=False):
        features, mask = corpus.extractor.extract(batch.waveforms, batch.lengths)
        output = model(features, attention_mask=mask)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            explained = float(output.explained_variance)
            print(f"{levels}: step {step + 1} of {steps}, explains {explained:.3f}", file=sys.stderr)
    return model.eval()


def label_with_tokenizer(corpus: Corpus, model) -> tuple[list[np.ndarray], float]:
    """Labels of every test utterance, and the share of the test features' variance that the codes explain."""
    import torch

    labels, error, variance = [], 0.0, 0.0
    with torch.inference_mode():
        for features in corpus.test_features:
            output = model(features)
            labels.append(model.tokenizer.quantizer.indices_from_digits(output.digits)[0].numpy())
            weight = output.digits.shape[1]
            error += weight * float(1 - output.explained_variance)
            variance += weight
    return labels, 1 - error / variance


def label_with_random_projection(corpus: Corpus) -> list[np.ndarray]:
    """Labels of every test utterance as BEST-RQ makes them from the same stacked features."""
    from hf_speech_ssl.modeling.quantization import RandomProjectionQuantizer

    quantizer = RandomProjectionQuantizer(320, codebook_size=8192, codebook_dim=16)
    stacked = [one[0, : one.shape[1] // 4 * 4].reshape(-1, 320) for one in corpus.test_features]
    return [quantizer.labels(frames)[:, 0].numpy() for frames in stacked]


def assess(corpus: Corpus, labels: list[np.ndarray]) -> dict[str, float]:
    """Quality of the labels, and the controls."""
    from hf_speech_ssl.probing.label_quality import LabelQuality

    phones = corpus.test_phones
    quality, shuffled = LabelQuality(corpus.num_phones), LabelQuality(corpus.num_phones)
    all_labels, all_phones = np.array(pairs(labels, phones)).T
    quality.update(all_labels, all_phones)
    shuffled.update(np.random.default_rng(0).permutation(all_labels), all_phones)
    halves = [pairs(labels[half::2], phones[half::2]) for half in (0, 1)]
    by_chance = shuffled.compute()
    return {
        **quality.compute(),
        "shuffled_purity": by_chance["phone_purity"],
        "shuffled_pnmi": by_chance["pnmi"],
        "on_other_utterances": accuracy_of_names(*halves),
        "labels_met_before": share_met(*halves),
        "commonest_phone": float(np.bincount(all_phones).max() / len(all_phones)),
    }


def pairs(labels: list[np.ndarray], phones: list[np.ndarray]) -> list[tuple[int, int]]:
    """Label and phone of every frame that lies in a phone."""
    from hf_speech_ssl.probing.label_quality import IGNORED_PHONE_ID

    joined = zip(np.concatenate(labels).tolist(), np.concatenate(phones).tolist(), strict=True)
    return [(label, phone) for label, phone in joined if phone != IGNORED_PHONE_ID]


def accuracy_of_names(known: list[tuple[int, int]], unknown: list[tuple[int, int]]) -> float:
    """How often the commonest phone of a label among `known` (label, phone) pairs is right among `unknown` ones."""
    names: dict[int, Counter[int]] = {}
    for label, phone in known:
        names.setdefault(label, Counter())[phone] += 1
    best = {label: counts.most_common(1)[0][0] for label, counts in names.items()}
    fallback = Counter(phone for _, phone in known).most_common(1)[0][0]
    return sum(best.get(label, fallback) == phone for label, phone in unknown) / len(unknown)


def share_met(known: list[tuple[int, int]], unknown: list[tuple[int, int]]) -> float:
    """Share of the `unknown` frames whose label occurs among the `known` ones."""
    met = {label for label, _ in known}
    return sum(label in met for label, _ in unknown) / len(unknown)


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as Markdown."""
    columns = ["codebook", "phone purity", "shuffled", "PNMI", "shuffled", "on other utterances", "cluster purity"]
    columns += ["different labels", "frames a label", "frames with a label met in the other half"]
    columns += ["variance explained", "paper: purity", "PNMI"]
    rows = []
    for name, one in results.items():
        paper = [f"{value:.2f}" for value in PAPER.get(name, ())] or ["", ""]
        measures = ("phone_purity", "shuffled_purity", "pnmi", "shuffled_pnmi", "on_other_utterances")
        rows.append(
            [
                name,
                *(f"{one[measure]:.3f}" for measure in measures),
                f"{one['cluster_purity']:.4f}",
                f"{one['num_labels']:,}",
                f"{one['num_frames'] / one['num_labels']:.1f}",
                f"{100 * one['labels_met_before']:.0f} %",
                f"{one['explained_variance']:.2f}" if "explained_variance" in one else "",
                *paper,
            ]
        )
    return markdown(columns, rows)


def draw(results: dict[str, dict[str, float]], path: Path) -> None:
    """Phone purity and PNMI against the codebook's size, beside the controls and the paper's figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = {name: int(name.replace(",", "")) for name in FSQ_LEVELS}
    x = list(sizes.values())
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
    lines = (("phone purity", "phone_purity", "shuffled_purity", 0), ("PNMI", "pnmi", "shuffled_pnmi", 1))
    for panel, (title, measure, control, column) in zip(panels, lines, strict=True):
        panel.plot(x, [results[name][measure] for name in sizes], "o-", color="C0", label="FSQ")
        panel.plot(x, [results[name][control] for name in sizes], "o:", color="C7", label="FSQ, labels shuffled")
        if column == 0:
            names = [results[name]["on_other_utterances"] for name in sizes]
            panel.plot(x, names, "s-", color="C2", label="FSQ, named on other utterances")
        panel.plot(x, [PAPER[name][column] for name in sizes], "x--", color="C1", label="paper")
        panel.plot([8192], [results[RANDOM][measure]], "D", color="C3", label="random projection")
        panel.plot([8192], [results[RANDOM][control]], "Dk", markersize=4, label="random projection, shuffled")
        if column == 0:
            panel.plot([8192], [results[RANDOM]["on_other_utterances"]], "D", color="C2",
                       label="random projection, named on other utterances")  # fmt: skip
        panel.set(title=title, xscale="log", xlabel="codebook entries", ylim=(0, 1.03))
        panel.grid(alpha=0.3)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argument_parser(__doc__, repeats=1)
    parser.add_argument("--steps", type=int, default=2000, help="updates of each tokenizer")
    parser.add_argument("--batch_seconds", type=float, default=60.0)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--train_hours", type=float, default=2.0)
    parser.add_argument("--test_hours", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="a few small steps, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.batch_seconds, options.width, options.layers = 30, 20.0, 64, 2
        options.train_hours, options.test_hours = 0.05, 0.05
    where = machine(options.threads)
    pin(options.threads)
    corpus = Corpus(options.train_hours, options.test_hours, options.batch_seconds)
    results = {}
    for name, levels in FSQ_LEVELS.items():
        model = train_tokenizer(corpus, levels, options.steps, options.width, options.layers)
        labels, explained = label_with_tokenizer(corpus, model)
        results[name] = {**assess(corpus, labels), "explained_variance": explained}
    results[RANDOM] = assess(corpus, label_with_random_projection(corpus))
    some = results[RANDOM]
    setting = (
        f"{options.train_hours:g} h of training and {options.test_hours:g} h of test speech, {options.steps} updates "
        f"of {options.batch_seconds:g} s, {options.layers} layers of {options.width} in encoder and decoder. "
        f"{some['num_frames']:,} test frames in {some['num_phones']} phones; the commonest phone is "
        f"{100 * some['commonest_phone']:.1f} % of them."
    )
    options.output_dir.mkdir(parents=True, exist_ok=True)
    draw(results, options.output_dir / "codebooks.png")
    sections = [setting, table(results), "![Purity and PNMI against the size of the codebook](codebooks.png)"]
    write_results(options.output_dir, "codebooks", where, sections, results)


if __name__ == "__main__":
    main()
