"""hf-speech-ssl probe: phones meet their frames, planted layers are found, every kind of checkpoint is read."""

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from families import FAMILIES
from helpers import tiny_birq, tiny_chunkssl
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from hf_speech_ssl import FSQConfig, FSQModel, SpeechSSLFeatureExtractor
from hf_speech_ssl.cli import main
from hf_speech_ssl.commands.probe import ProbeOptions, probe
from hf_speech_ssl.modeling.modeling_fsq import FSQTokenizer
from hf_speech_ssl.options import LoadingOptions, ReadingOptions
from hf_speech_ssl.probing import phone_ids_at_frames
from hf_speech_ssl.probing.encoders import EncodedUtterance, SpeechEncoder, load_encoder
from hf_speech_ssl.probing.measure import Measurement
from hf_speech_ssl.probing.targets import PhoneReader, number_targets

SPEECH = ["synthetic", "--dataset_config_name", "sentences=60,eval_sentences=20"]


def save(folder, model):
    model.save_pretrained(folder)
    extractor = SpeechSSLFeatureExtractor(mean=[9.0] * 80, variance=[9.0] * 80)
    extractor.save_pretrained(folder)
    return str(folder)


def tones(num_utterances: int, seed: int, late: float = 0.0) -> datasets.Dataset:
    """Utterances of random tones of 70 to 110 ms, as phones; their times `late` seconds after the sound."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(num_utterances):
        seconds, names = rng.uniform(0.07, 0.11, size=20), rng.integers(4, size=20)
        edges = np.concatenate([[0], seconds.cumsum()])
        times = np.arange(int(edges[-1] * 16_000)) / 16_000
        pitch = np.array([500, 1000, 2000, 4000])[names[np.searchsorted(edges, times, side="right") - 1]]
        samples = 0.1 * np.sin(2 * np.pi * pitch * times) + 0.003 * rng.standard_normal(len(times))
        phones = [
            {"phone": f"tone {name}", "start": start + late, "end": end + late}
            for name, start, end in zip(names, edges, edges[1:], strict=False)
        ]
        rows.append({"audio": {"array": samples.astype(np.float32), "sampling_rate": 16_000}, "phones": phones})
    return datasets.Dataset.from_list(rows)


@pytest.fixture(scope="module")
def tone_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    for name, late in (("in_time", 0.0), ("one_frame_late", 0.04)):
        splits = {"train": tones(40, 1, late), "test": tones(12, 2, late)}
        datasets.DatasetDict(splits).save_to_disk(str(folder / name))
    return folder


CPU = LoadingOptions(device="cpu")


def readers(name: str) -> tuple[PhoneReader, PhoneReader]:
    """The test split and the training split."""
    test, train = (PhoneReader(ReadingOptions(name, split_name=split), "phones") for split in ("test", "train"))
    return test, train


@pytest.mark.parametrize("stacking", [2, 4])
def test_phones_meet_the_frames_that_hold_them(tone_folder, tmp_path, stacking):
    folder = save(tmp_path, FAMILIES["birq"].build("pretraining", frame_stacking=stacking))
    right = Measurement(*readers(str(tone_folder / "in_time")), 5)(load_encoder(folder, device="cpu"))
    late = Measurement(*readers(str(tone_folder / "one_frame_late")), 5)(load_encoder(folder, device="cpu"))
    # A tone lasts about two frames of 40 ms: phones that are late by one such frame often name another tone.
    assert right["layers"][0]["accuracy"] > 0.93
    assert late["layers"][0]["accuracy"] < 0.83


def test_times_of_frames_are_those_of_the_convolutions_of_other_encoders(tone_folder, tmp_path):
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(24,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2Model(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), device="cpu")
    with torch.inference_mode():
        (one,) = encoder([np.random.default_rng(0).standard_normal(16_000).astype(np.float32)])
    # 25 ms every 20 ms: 49 whole ones in a second, the first around 12.5 ms.
    assert (one.num_frames, one.frame_rate, one.first_frame_center) == (49, 50, 0.0125)
    assert [len(layer) for layer in one.layers] == [49] * 3
    report = Measurement(*readers(str(tone_folder / "in_time")), 3)(encoder)
    assert [layer["layer"] for layer in report["layers"]] == [0, 1, 2] and report["labels"] == []
    assert report["layers"][0]["what"] == "before the first block"


class PlantedEncoder(SpeechEncoder):
    """50 frames a second of noise, but for one layer that knows the phone of every frame, as weights decide."""

    def __init__(self, readers_of_phones, phone_ids, planted=2, collapsed=None):
        super().__init__(SimpleNamespace(device=torch.device("cpu")), None)
        self.readers, self.ids, self.planted, self.collapsed = readers_of_phones, phone_ids, planted, collapsed
        self.phones = {}
        for reader in readers_of_phones:
            for batch in reader.reader:
                for utterance in batch:
                    self.phones[utterance.waveform.tobytes()] = utterance.columns["phones"]

    def with_random_weights(self, seed):
        return PlantedEncoder(self.readers, self.ids, planted=None)

    def __call__(self, waveforms):
        return [self.hear(waveform) for waveform in waveforms]

    def hear(self, waveform):
        phones, frames = self.phones[waveform.tobytes()], len(waveform) // 320
        starts, ends = ([phone[edge] for phone in phones] for edge in ("start", "end"))
        ids = phone_ids_at_frames(starts, ends, [self.ids[phone["phone"]] for phone in phones], frames, 50.0)
        generator = torch.Generator().manual_seed(len(waveform))
        layers = [torch.randn(frames, 8, generator=generator) for _ in range(4)]
        if self.planted is not None:
            known = torch.nn.functional.one_hot(torch.from_numpy(ids).clamp_min(0), 8)
            layers[self.planted] = layers[self.planted] + 30 * known
        if self.collapsed is not None:
            layers[self.collapsed] = 0.001 * layers[self.collapsed] @ torch.eye(8)[:1].T @ torch.ones(1, 8) + 1
        return EncodedUtterance(layers, {}, {}, 50.0)


def test_the_layer_that_knows_phones_is_found_and_so_is_the_collapsed_one(tone_folder):
    test, train = readers(str(tone_folder / "in_time"))
    report = Measurement(test, train, 5)(PlantedEncoder((train, test), number_targets(train, test), collapsed=3))
    layers = report["layers"]
    majority = report["data"]["majority_accuracy"]
    assert layers[2]["accuracy"] > 0.99 and layers[2]["random_accuracy"] < majority + 0.08
    assert 0.5 < layers[2]["gain_interval"][0] < layers[2]["gain"] < layers[2]["gain_interval"][1]
    for other in (0, 1, 3):
        assert abs(layers[other]["accuracy"] - majority) < 0.08
    assert layers[3]["effective_rank"] < 1.1 < 7 < layers[1]["effective_rank"]
    text = " ".join(report["remarks"])
    assert "Best: block 2" in text and "Collapsed, nearly all frames alike: block 3." in text


@pytest.mark.parametrize("kind", ["birq", "chunkssl fsq", "chunkssl random", "ctc", "fsq"])
@torch.no_grad()
def test_every_checkpoint_gives_tables_and_json(tmp_path, capsys, kind):
    torch.manual_seed(1)
    model, labels, layers = {
        "birq": lambda: (FAMILIES["birq"].pretraining(tiny_birq()), ["anchor", "enhanced (block 2)"], 4),
        "chunkssl fsq": lambda: (FAMILIES["chunkssl"].pretraining(tiny_chunkssl()), ["FSQ"], 4),
        "chunkssl random": lambda: (
            FAMILIES["chunkssl"].pretraining(tiny_chunkssl(label_kind="random_projection", codebook_size=30)),
            ["random projection"],
            4,
        ),
        "ctc": lambda: (FAMILIES["birq"].ctc(tiny_birq()), [], 4),
        "fsq": lambda: (
            FSQModel(FSQConfig(fsq_levels=[3, 5], fsq_hidden_size=16, fsq_num_hidden_layers=1)),
            ["FSQ"],
            0,
        ),
    }[kind]()
    for tokenizer in [part for part in model.modules() if isinstance(part, FSQTokenizer)]:
        tokenizer.code_proj.weight *= 100  # untrained, it would have one label for all frames
    folder, output = save(tmp_path / "model", model), tmp_path / "report.json"
    assert main(["probe", folder, *SPEECH, "--num_epochs", "2", "--output_file", str(output), "--device", "cpu"]) == 0
    printed, report = capsys.readouterr(), json.loads(output.read_text())
    assert [one["name"] for one in report["labels"]] == labels
    assert len(report["layers"]) == layers
    for one in report["labels"]:
        assert one["num_labels"] <= one["codebook_size"] == {"birq": 24, "chunkssl random": 30}.get(kind, 15)
        assert f"| {one['name']} " in printed.out and f"{one['shuffled_pnmi']:.3f}" in printed.out
        assert one["shuffled_pnmi"] < one["pnmi"]
    for layer in report["layers"]:
        assert f"{100 * layer['accuracy']:.1f}" in printed.out
        assert layer["effective_rank"] >= 1 and 1 <= layer["code_perplexity"] <= 1024
        assert layer["accuracy"] > report["data"]["majority_accuracy"]  # speech, even through random weights
    assert ("no pretraining head" in printed.out) == (kind == "ctc")
    assert (report["data"]["test_utterances"], report["data"]["skipped_files"]) == (20, 0)


def test_the_same_seed_gives_the_same_report(tone_folder, tmp_path, capsys):
    folder = save(tmp_path, FAMILIES["birq"].build("base"))
    reading = ReadingOptions(str(tone_folder / "in_time"), split_name="train", max_samples=8)
    reports = []
    for other_state, seed in enumerate((3, 3, 4)):
        torch.manual_seed(other_state)
        reports.append(probe(ProbeOptions(model_name_or_path=folder, num_epochs=1, seed=seed), reading, CPU))
    assert reports[0] == reports[1] != reports[2]
    assert reports[0]["data"]["test_utterances"] == 8


def test_training_frames_beyond_the_limit_are_left_out(tone_folder, tmp_path, monkeypatch):
    encoder = load_encoder(save(tmp_path, FAMILIES["birq"].build("base")), device="cpu")
    widths = 160 + 3 * 32
    monkeypatch.setattr("hf_speech_ssl.probing.probe.MEMORY_LIMIT", 2 * widths * 500)
    report = Measurement(*readers(str(tone_folder / "in_time")), 1)(encoder)
    assert report["data"]["training_examples"] == 500
    assert any("left out" in remark for remark in report["remarks"])


def pitches(num_utterances: int, seed: int, known: bool = True) -> datasets.Dataset:
    """Utterances of one tone each, high or low, with that as their class."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(num_utterances):
        name = ("low", "high")[rng.integers(2)]
        samples = 0.1 * np.sin(
            2 * np.pi * {"low": 400, "high": 3000}[name] * np.arange(rng.integers(3000, 9000)) / 16_000
        )
        samples += 0.003 * rng.standard_normal(len(samples))
        rows.append({"audio": {"array": samples.astype(np.float32), "sampling_rate": 16_000}, "pitch": name})
    return datasets.Dataset.from_list(rows)


@pytest.mark.parametrize("as_numbers", [False, True])
def test_classes_of_utterances_are_probed(tmp_path, capsys, as_numbers):
    splits = datasets.DatasetDict(train=pitches(30, 1), test=pitches(12, 2))
    if as_numbers:
        splits = splits.cast_column("pitch", datasets.ClassLabel(names=["low", "high"]))
    splits.save_to_disk(str(tmp_path / "data"))
    folder, output = save(tmp_path / "model", FAMILIES["birq"].build("pretraining")), tmp_path / "report.json"
    command = ["probe", folder, str(tmp_path / "data"), "--class_column_name", "pitch", "--split_name", "train"]
    assert main([*command, "--num_epochs", "20", "--output_file", str(output), "--device", "cpu"]) == 0
    printed, report = capsys.readouterr().out, json.loads(output.read_text())
    assert (report["data"]["training_examples"], report["data"]["test_examples"]) == (30, 12)
    assert report["data"]["majority_target"] in ("low", "high") and report["data"]["targets"] == "classes"
    assert all(layer["accuracy"] > 0.9 for layer in report["layers"])
    assert report["labels"][0]["pnmi"] > report["labels"][0]["shuffled_pnmi"]
    assert "classes, %" in printed and "30 utterances of 30 utterances" in printed


@pytest.mark.parametrize("kind", ["birq", "fsq"])
def test_without_phones_there_is_what_needs_none(tmp_path, capsys, kind):
    """Effective ranks beside random weights, and the use of the labels."""
    datasets.DatasetDict(test=pitches(12, 2)).save_to_disk(str(tmp_path / "data"))
    config = FSQConfig(fsq_levels=[3, 5], fsq_hidden_size=16, fsq_num_hidden_layers=1)
    model = FAMILIES["birq"].build("pretraining") if kind == "birq" else FSQModel(config)
    folder, output = save(tmp_path / "model", model), tmp_path / "report.json"
    command = ["probe", folder, str(tmp_path / "data"), "--output_file", str(output), "--device", "cpu"]
    assert main(command) == 0
    printed, report = capsys.readouterr().out, json.loads(output.read_text())
    assert len(report["layers"]) == (4 if kind == "birq" else 0)
    for layer in report["layers"]:
        assert layer["effective_rank"] >= 1 and layer["random_effective_rank"] >= 1 and "accuracy" not in layer
        assert f"{layer['effective_rank']:.1f} ({layer['random_effective_rank']:.1f})" in printed
    for one in report["labels"]:
        assert 1 <= one["perplexity"] <= one["num_labels"] <= one["codebook_size"]
        assert (
            1 / one["num_labels"] <= one["commonest_share"] <= 1 and one["num_frames"] == report["data"]["test_frames"]
        )
        assert f"| {one['name']} " in printed and "pnmi" not in one
    assert len(report["labels"]) == 1 and "phones, %" not in printed
    assert ("--class_column_name" in printed) == (kind == "birq")


def test_label_use_is_counted_over_all_frames(tmp_path, tone_folder):
    encoder = load_encoder(save(tmp_path, FAMILIES["birq"].build("pretraining")), device="cpu")
    test, train = readers(str(tone_folder / "in_time"))
    [entry] = Measurement(test, train, 1)(encoder)["labels"]
    with torch.inference_mode():
        labels = torch.cat(
            [one.encoded.labels["anchor"] for one in test.encode(encoder, number_targets(train, test), "")]
        )
    shares = labels.bincount() / len(labels)
    assert entry["commonest_share"] == pytest.approx(float(shares.max()))
    assert entry["perplexity"] == pytest.approx(float(torch.special.entr(shares).sum().exp()), rel=1e-4)


def test_what_cannot_be_probed_is_said_in_one_line(tone_folder, tmp_path, capsys):
    folder = save(tmp_path / "model", FAMILIES["birq"].build("base"))
    good = datasets.load_from_disk(str(tone_folder / "in_time"))

    def variant(name: str, change, splits=("train", "test")) -> str:
        """The tones with another phone column in some splits."""
        changed = {
            split: rows.remove_columns("phones").add_column("phones", change(rows["phones"][:]))
            if split in splits
            else rows
            for split, rows in good.items()
        }
        datasets.DatasetDict(changed).save_to_disk(str(tmp_path / name))
        return str(tmp_path / name)

    def renamed(column):
        return [[{**phone, "phone": phone["phone"].upper()} for phone in phones] for phones in column]

    def milliseconds(column):
        return [
            [{**phone, "start": 1e3 * phone["start"] + 1e4, "end": 1e3 * phone["end"] + 1e4} for phone in phones]
            for phones in column
        ]

    in_time = str(tone_folder / "in_time")
    for arguments, message in (
        ([folder, in_time, "--phone_column_name", "segments"], "no column 'segments'"),
        ([folder, in_time, "--phone_column_name", "segments"], '{"phone": name, "start": seconds, "end": seconds}'),
        ([folder, variant("text", lambda column: ["ae b"] * len(column))], "holds no phones with their times but 'ae"),
        ([folder, variant("empty", lambda column: [[]] * len(column))], "is empty"),
        ([folder, variant("other", renamed, splits=("test",))], "share no phones: tone 0, tone 1"),
        ([folder, variant("ms", milliseconds)], "check the times, in seconds"),
        ([folder, variant("few", lambda column: [row[:1] for row in column]), "--max_samples", "3"], "more audio"),
        ([folder, in_time, "--phone_column_name", "a", "--class_column_name", "b"], "not both"),
        ([folder, in_time, "--class_column_name", "speaker"], "no column 'speaker'"),
        ([folder, in_time, "--class_column_name", "phones"], "not one class for each utterance"),
        ([folder, in_time, "--test_split_name", "dev"], "no split 'dev'"),
        ([folder, in_time, "--test_split_name", "train"], "name another"),
        ([folder, in_time, "--num_epochs", "0"], "num_epochs must be at least 1"),
        ([folder, in_time, "--output_file", str(tmp_path)], "is a folder"),
        ([folder, in_time, "--device", "nowhere"], "no device 'nowhere'"),
        ([str(tmp_path / "nowhere"), in_time], "There is no model folder"),
        ([str(tmp_path), in_time], "hf-speech-ssl:"),
    ):
        assert main(["probe", *arguments]) == 1, message
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, error


def test_an_encoder_with_broken_weights_is_refused(tone_folder, tmp_path):
    model = FAMILIES["birq"].build("base")
    torch.nn.init.constant_(model.layers[1].final_norm.weight, float("nan"))
    reading = ReadingOptions(str(tone_folder / "in_time"), split_name="train")
    with pytest.raises(ValueError, match="Layer 2 gives NaN"):
        probe(ProbeOptions(model_name_or_path=save(tmp_path, model)), reading, CPU)
