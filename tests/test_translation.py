"""Translation: scores and laggings against the packages' own, delays against a live stream, the command, training."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
from datasets import Dataset
from helpers import tiny_chunkssl
from huggingface_hub import ModelCard

from hf_speech_ssl import ChunkSSLForRNNT, SpeechSSLFeatureExtractor, cli
from hf_speech_ssl.commands.evaluate import EvaluateOptions
from hf_speech_ssl.data.audio import load_audio
from hf_speech_ssl.data.synthetic import build_synthetic
from hf_speech_ssl.decoding import build_piece_processor
from hf_speech_ssl.evaluation.instances import ChunkClock
from hf_speech_ssl.evaluation.latency import al, laal, yaal
from hf_speech_ssl.evaluation.translation import score_translations
from hf_speech_ssl.recognition import StreamingTranscriber
from hf_speech_ssl.recognition.latency import BLOCK_SECONDS, run_live
from hf_speech_ssl.recognition.recognizer import Recognizer
from hf_speech_ssl.run_folder import Evaluation, append_to_log, badness
from hf_speech_ssl.training.averaging import choose_checkpoints

sys.path.insert(0, str(Path(__file__).parents[1] / "finetuning_scripts"))
import run_rnnt

CHUNKS_MS = (160, 320)


def test_scores_are_sacrebleus_of_cased_texts():
    hypotheses = ["Wer hat den Hut gekauft?", "Anna sagt, dass Peter das Buch verliert.", "hat"] * 5
    references = ["Wer hat den Hut gekauft?", "Anna sagt, dass Peter das Buch verloren hat.", "Hat"] * 5
    signatures: dict[str, str] = {}
    scores = score_translations(hypotheses, references, 200, signatures)
    assert scores["bleu"].value == sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert scores["chrf"].value == sacrebleu.corpus_chrf(hypotheses, [references]).score
    assert all(one.low < one.value < one.high for one in scores.values())
    assert "case:mixed" in signatures["bleu"] and signatures["chrf"].startswith("nrefs:1")
    assert score_translations(hypotheses, [text.lower() for text in references])["bleu"].value < scores["bleu"].value
    assert score_translations([*references * 9, "Hut"], [*references * 9, "Hat"], 200)["chrf"].high == 100
    perfect = score_translations(references, references)["bleu"]
    assert (round(perfect.value, 6), perfect.low) == (100, None)
    with pytest.raises(ValueError, match="Got 1 translations for 2 references"):
        score_translations(["a"], ["a", "b"])


def test_without_sacrebleu(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    assert cli.main(["evaluate", str(tmp_path), "any", "--translation_column_name", "de"]) == 1
    assert "pip install 'hf-speech-ssl[translation]'" in capsys.readouterr().err


# Delays and duration in ms, words of the reference; AL and LAAL of SimulEval 1.1.4, YAAL of OmniSTEval 0.1.10.
AS_THE_PACKAGES = [
    (
        [655, 655, 2575, 2895, 3092.061, 3092.061, 3092.061, 3092.061, 3092.061],
        3092.061,
        2,
        -1117.649,
        1287.288,
        1179.657,
    ),
    ([1615, 5090.708], 5090.708, 10, 3098.318, 3098.318, 1615.0),
    ([655, 3215, 5135], 5196.602, 4, 1702.516, 1702.516, 1702.516),
    ([1295, 4141.836], 4141.836, 8, 2459.553, 2459.553, 1295.0),
]


@pytest.mark.parametrize(("delays", "source", "words", "of_al", "of_laal", "of_yaal"), AS_THE_PACKAGES)
def test_laggings_are_those_of_simuleval_and_omnisteval(delays, source, words, of_al, of_laal, of_yaal):
    assert al(delays, source, words) == pytest.approx(of_al)
    assert laal(delays, source, words) == pytest.approx(of_laal)
    assert yaal(delays, source, words) == pytest.approx(of_yaal)


def test_average_lagging_by_hand():
    assert al([1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0], 4.0, 2) == pytest.approx((1 + 0 + 0) / 3)  # 8 words, 2 wanted
    assert al([4.5], 4.0, 2) == 4.5
    assert al([], 4.0, 2) is None and al([1.0], 4.0, 0) is None


# --- a random translator


TEXTS = ["Anna hat den Hut, den ich sah.", "Wer hat das Buch?", "Er sah, dass sie da war."]


@pytest.fixture(scope="module")
def parts():
    """A streaming transducer with random weights, a prediction network of two layers, and cased pieces."""
    torch.manual_seed(6)
    extractor = SpeechSSLFeatureExtractor(mean=[10.0] * 80, variance=[9.0] * 80)
    processor = build_piece_processor(TEXTS, extractor, 40, "bpe")
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "max_symbols_per_step": 2}
    sizes |= {"num_decoder_layers": 2, "initializer_range": 0.5, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    model = ChunkSSLForRNNT(tiny_chunkssl(**sizes)).eval()
    model.joint.head.bias.data.zero_()
    return model, processor


def sound(seconds: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    count = int(16_000 * seconds)
    loudness = np.repeat(random.uniform(0.01, 0.5, count // 800 + 1), 800)[:count]
    return np.clip(loudness * random.standard_normal(count), -1, 1).astype(np.float32)


@pytest.mark.parametrize("chunk_ms", CHUNKS_MS)
def test_a_stream_writes_the_chunked_offline_translation_and_its_words_come_when_the_delays_say(parts, chunk_ms):
    recognizer, config = Recognizer(*parts), parts[0].config
    transcriber = StreamingTranscriber(*parts, chunk_duration_ms=chunk_ms)
    words = set()
    for seed, seconds in enumerate((0.7, 1.6, 2.3)):
        samples = sound(seconds, seed)
        run = run_live(transcriber, samples)
        [[best]] = recognizer.recognize([samples], chunk_duration_ms=chunk_ms)
        assert run.words == best.text.split() and len(run.words) > 2
        words |= set(run.words)
        clock = ChunkClock(recognizer.seconds_per_frame, config.chunk_frames(chunk_ms), config.num_lookahead_chunks)
        delays = clock.delays(best.words, seconds)
        for delay, heard in zip(delays, run.heard, strict=True):
            assert -1e-9 <= heard - delay / 1000 < BLOCK_SECONDS
        assert min(delays) < 1000 * run.end  # some came live
    assert any(word[0].isupper() for word in words)


# --- the command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A random translator, and utterances with translations."""
    pytest.importorskip("espeakng_loader", reason="needs the extra `synthetic`")
    root = tmp_path_factory.mktemp("translation")
    rows = build_synthetic("test", num_sentences=6, grammar="clauses", languages=["de"], cache_dir=root / "cache")
    Dataset.from_list(list(rows)).select_columns(["audio", "text", "text_de"]).save_to_disk(root / "data")
    return root


def evaluate(root: Path, model: Path, *flags: str) -> dict:
    line = ["evaluate", str(model), str(root / "data"), "--split_name", "train", "--device", "cpu"]
    line += ["--translation_column_name", "text_de", "--output_file", str(model / "evaluation.json"), *flags]
    assert cli.main(line) == 0
    return json.loads((model / "evaluation.json").read_text(encoding="utf-8"))


def test_the_command_scores_translations_and_writes_what_simuleval_reads(parts, corpus, tmp_path, capsys):
    for part in parts:
        part.save_pretrained(tmp_path / "model")
    logs = tmp_path / "logs"
    flags = ["--chunk_durations_ms", *map(str, CHUNKS_MS), "--instance_log_dir", str(logs), "--num_resamples", "100"]
    report = evaluate(corpus, tmp_path / "model", *flags)
    printed = capsys.readouterr().out
    assert list(report["modes"]) == ["offline", "160 ms", "320 ms"]
    rows, recognizer = Dataset.load_from_disk(corpus / "data"), Recognizer(*parts)
    references = rows["text_de"]
    for mode, scores in report["modes"].items():
        chunk_ms = 0 if mode == "offline" else int(mode.split()[0])
        waveforms = [load_audio(one) for one in rows["audio"]]
        texts = [best.text for best, *_ in recognizer.recognize(waveforms, chunk_duration_ms=chunk_ms)]
        assert scores["bleu"]["value"] == pytest.approx(sacrebleu.corpus_bleu(texts, [list(references)]).score)
        lines = (logs / mode.replace(" ", "") / "instances.log").read_text("utf-8").splitlines()
        instances = [json.loads(line) for line in lines]
        assert [one["prediction"] for one in instances] == texts
        assert [one["reference"] for one in instances] == list(references)
        assert [one["index"] for one in instances] == list(range(6))
        for one, waveform in zip(instances, waveforms, strict=True):
            assert one["source_length"] == pytest.approx(len(waveform) / 16)
            assert len(one["delays"]) == one["prediction_length"] == len(one["prediction"].split())
            assert one["delays"] == sorted(one["delays"]) and one["delays"][-1] <= one["source_length"]
        if chunk_ms:
            laggings = [laal(one["delays"], one["source_length"], len(one["reference"].split())) for one in instances]
            assert scores["laal"] == pytest.approx(np.mean(laggings))
            assert scores["al"] is not None and scores["without_yaal"] <= 6
        else:
            assert "laal" not in scores
            assert all(set(one["delays"]) == {one["source_length"]} for one in instances)
    assert "| offline" in printed and "LAAL ms" in printed and "## Least like their references" in printed
    assert "WER" not in printed and "case:mixed" in printed
    assert (logs / "320ms" / "references.txt").read_text("utf-8").splitlines() == list(references)
    assert Evaluation.read(tmp_path / "model" / "evaluation.json").is_translation
    with pytest.raises(ValueError, match="--instance_log_dir is for translations: give --translation_column_name"):
        EvaluateOptions(model_name_or_path="any", instance_log_dir="logs")
    with pytest.raises(ValueError, match="leave --latency out"):
        EvaluateOptions(model_name_or_path="any", translation_column_name="de", latency=True, chunk_durations_ms=[320])


def test_a_column_that_is_not_there(parts, corpus, tmp_path, capsys):
    for part in parts:
        part.save_pretrained(tmp_path)
    line = ["evaluate", str(tmp_path), str(corpus / "data"), "--split_name", "train"]
    assert cli.main([*line, "--translation_column_name", "text_fr"]) == 1
    assert "has no column 'text_fr'; its columns are ['audio', 'text', 'text_de']" in capsys.readouterr().err


# --- training


def test_training_a_translator(corpus, tmp_path):
    sizes = "hidden_size=32,num_hidden_layers=1,intermediate_size=32,decoder_hidden_size=16,joint_hidden_size=16,"
    sizes += "decoder_attention_heads=2,decoder_intermediate_size=16,num_attention_heads=2"
    line = f"--task translate --translation_column_name text_de --dataset_name {corpus / 'data'} --config_name "
    line += f"chunkssl-tiny --config_overrides {sizes} --vocabulary_kind bpe --vocabulary_size 50 "
    line += "--max_steps 2 --eval_split_name train "
    line += f"--eval_chunk_durations_ms 320 --report_to none --output_dir {tmp_path} --normalization_seconds 5"
    metrics = run_rnnt.main(line.split())
    assert 0 <= metrics["eval_bleu"] <= 100 and 0 <= metrics["eval_320ms_chrf"] <= 100 and "eval_wer" not in metrics
    assert {"eval_320ms_al", "eval_320ms_laal", "eval_320ms_yaal"} <= metrics.keys() and "eval_laal" not in metrics
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_decoder_layers"], config["vocab_size"]) == (2, 50)
    tokenizer = Recognizer.from_pretrained(str(tmp_path), device="cpu").tokenizer
    reference = Dataset.load_from_disk(corpus / "data")["text_de"][0]
    assert tokenizer.decode(tokenizer(reference).input_ids, group_tokens=False) == reference
    arguments = json.loads((tmp_path / "run_arguments.json").read_text())
    assert arguments["normalize_text"] is False
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-1")
    append_to_log(tmp_path, 1, {"eval_bleu": 99.0})
    best = choose_checkpoints(tmp_path, 2, "best")  # the highest first
    assert (best.metric, best.checkpoints) == ("eval_bleu", ["checkpoint-1", "checkpoint-2"])
    assert best.values == [99.0, metrics["eval_bleu"]]
    report = evaluate(corpus, tmp_path, "--num_resamples", "100", "--chunk_durations_ms", "160")
    report["modes"]["160 ms"] |= {"al": 1, "laal": 1234.4, "yaal": None}  # of a model that has learned to write
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    assert cli.main(["card", str(tmp_path)]) == 0
    card = ModelCard.load(tmp_path / "README.md")
    assert {result.metric_type for result in card.data.eval_results} == {"bleu", "chrf"}
    assert "speech-translation" in card.data.tags and card.data.pipeline_tag == "automatic-speech-recognition"
    for text in (
        "Speech translation: a Chunk SSL encoder",
        "| mode | BLEU | chrF | AL | LAAL |",
        "| 1 ms | 1,234 ms |",
    ):
        assert text in card.text
    assert "lower-cased" not in card.text and "are those of the column `text_de`" in card.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--translation_column_name text_de", "text_de is for translations: give --task translate, too"),
        ("--task translate", r"has no column 'translation'; its columns are \['audio', 'text', 'text_de'\]"),
    ],
)
def test_a_language_without_a_column_is_refused(corpus, tmp_path, flags, message):
    line = f"{flags} --dataset_name {corpus / 'data'} --config_name chunkssl-tiny --max_steps 2"
    with pytest.raises(ValueError, match=message):
        run_rnnt.main([*line.split(), "--report_to", "none", "--output_dir", str(tmp_path / "out")])


def test_more_is_better_where_scores_are_counted():
    assert badness("eval_test_320ms_bleu", 60.0) < badness("eval_test_320ms_bleu", 50.0)
    assert badness("eval_wer", 0.5) < badness("eval_wer", 0.6)
