"""MuST-C and CoVoST in the layouts that they are unpacked to, and the paper's commands on small folders of them."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_speech_ssl.data.batching import SpeechBatches
from hf_speech_ssl.data.corpora import load_corpus

sys.path.insert(0, str(Path(__file__).parents[1] / "finetuning_scripts"))
import run_rnnt

ENGLISH = ["He sold the hat.", "She knows that he sold it."]
GERMAN = ["Er hat den Hut verkauft.", "Sie weiß, dass er ihn verkauft hat."]
RECIPES = Path(__file__).parents[1] / "docs" / "recipes.md"


def ramp(seconds: float) -> np.ndarray:
    """Samples that tell where they are."""
    return np.linspace(0, 0.9, round(16_000 * seconds), dtype=np.float32)


def write_must_c(root: Path, target: str = "de", splits: tuple[str, ...] = ("train", "dev", "tst-COMMON")) -> Path:
    """Talks of 5 s with two segments each."""
    folder = root / f"en-{target}"
    for split in splits:
        texts, sounds = folder / "data" / split / "txt", folder / "data" / split / "wav"
        texts.mkdir(parents=True)
        sounds.mkdir()
        soundfile.write(sounds / "ted_1.wav", ramp(5), 16_000)
        entries = [(1.0, 1.5), (3.0, 2.0)]
        lines = [
            f"- {{duration: {duration}, offset: {offset}, rW: 4, speaker_id: spk.1, uW: 0, wav: ted_1.wav}}"
            for offset, duration in entries
        ]
        (texts / f"{split}.yaml").write_text("\n".join(lines) + "\n")
        (texts / f"{split}.en").write_text("\n".join(ENGLISH) + "\n")
        (texts / f"{split}.{target}").write_text("\n".join(GERMAN) + "\n", encoding="utf-8")
    return folder


def write_covost(folder: Path, pair: str = "en_de") -> Path:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        rows = ["path\tsentence\ttranslation\tclient_id"]
        for number, (english, german) in enumerate(zip(ENGLISH, GERMAN, strict=True)):
            name = f"common_voice_en_{split}{number}.wav"
            soundfile.write(folder / "clips" / name, ramp(1 + number), 16_000)
            rows.append(f'{name}\t"{english}\t{german}\tabc')  # a quotation mark that nothing closes
        (folder / f"covost_v2.{pair}.{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "validated.tsv").write_text("client_id\tpath\tsentence\nabc\tcommon_voice_en_train0.wav\tx\n")
    return folder


@pytest.mark.parametrize("below", ["", "data"])
def test_must_c(tmp_path, below):
    folder = write_must_c(tmp_path) / below
    dataset = load_corpus(str(folder), split="train", text_column="de")
    assert (dataset["en"][:], dataset["de"][:]) == (ENGLISH, GERMAN)
    batch = next(iter(SpeechBatches(dataset, batch_seconds=60, text_column="de", shuffle=False).epoch(0)))
    segments = dict(zip(batch.texts, zip(batch.waveforms, batch.lengths.tolist(), strict=True), strict=True))
    for text, (offset, duration) in zip(GERMAN, [(1.0, 1.5), (3.0, 2.0)], strict=True):
        waveform, length = segments[text]
        assert length == round(16_000 * duration)
        wanted = ramp(5)[round(16_000 * offset) :][:length]
        np.testing.assert_allclose(waveform[:length], wanted, atol=1e-4)
    for split in ("validation", "test"):  # dev and tst-COMMON
        assert load_corpus(str(folder), split=split)["de"][:] == GERMAN
    with pytest.raises(ValueError, match=r"no column 'fr'; its columns are \['audio', 'offset'"):
        load_corpus(str(folder), split="train", text_column="fr")


def test_must_c_with_two_test_splits_and_with_files_that_do_not_fit(tmp_path):
    folder = write_must_c(tmp_path, splits=("train", "tst-COMMON", "tst-HE"))
    with pytest.raises(ValueError, match=r"no split 'test'; its splits are \['train', 'tst-COMMON', 'tst-HE'\]"):
        load_corpus(str(folder), split="test")
    assert len(load_corpus(str(folder), split="tst-HE")) == 2
    texts = folder / "data" / "train" / "txt"
    (texts / "train.de").write_text("nur eine Zeile\n")
    with pytest.raises(ValueError, match=r"train.de has 1 lines, the yaml file beside it 2 segments"):
        load_corpus(str(folder), split="train")
    for content, message in (("- {wav: a", "is no YAML"), ("- {wav: a.wav}", "is no list of segments with duration")):
        (texts / "train.yaml").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_corpus(str(folder), split="train")


def test_covost(tmp_path):
    folder = write_covost(tmp_path / "cv")
    for split in ("train", "validation", "test"):
        dataset = load_corpus(str(folder), split=split, text_column="translation")
        assert dataset["translation"][:] == GERMAN
        assert dataset["sentence"][:] == [f'"{text}' for text in ENGLISH]
        batch = next(iter(SpeechBatches(dataset, batch_seconds=60, text_column="translation").epoch(0)))
        assert sorted(batch.lengths.tolist()) == [16_000, 32_000]
    write_covost(folder, "en_tr")
    with pytest.raises(ValueError, match=r"several pairs of languages \(en_de, en_tr\).*_name '.*en_de.dev.tsv'"):
        load_corpus(str(folder), split="train")
    assert len(load_corpus(str(folder / "covost_v2.en_de.train.tsv"), split="train")) == 2


@pytest.mark.parametrize("corpus", ["MUSTC/en-de", "MUSTC/en-es", "COVOST"])
def test_the_commands_of_the_recipes(corpus, tmp_path):
    """Each with the recipe's own flags, and at the end those that make it small."""
    folder = write_covost(tmp_path / "cv") if corpus == "COVOST" else write_must_c(tmp_path, corpus[-2:])
    blocks = RECIPES.read_text("utf-8").replace("\\\n", " ").split("```")[1::2]
    (command,) = [
        line for one in blocks for line in one.splitlines() if "run_rnnt.py" in line and f"{corpus} " in line
    ]
    words = shlex.split(command)
    flags = words[words.index("finetuning_scripts/run_rnnt.py") + 1 :]
    flags[flags.index("--dataset_name") + 1] = str(folder)
    flags[flags.index("--model_name_or_path") : flags.index("--model_name_or_path") + 2] = [
        "--config_name",
        "chunkssl-tiny",
    ]
    sizes = "hidden_size=16,num_hidden_layers=1,intermediate_size=16,num_attention_heads=2,decoder_hidden_size=16,"
    sizes += "decoder_attention_heads=2,decoder_intermediate_size=16,joint_hidden_size=16"
    flags += ["--config_overrides", sizes]
    flags += "--vocabulary_kind bpe --vocabulary_size 40 --max_steps 1 --normalization_seconds 2".split()
    flags += ["--report_to", "none", "--output_dir", str(tmp_path / "out")]
    metrics = run_rnnt.main(flags)
    assert metrics["eval_bleu"] >= 0 and metrics["eval_320ms_bleu"] >= 0
