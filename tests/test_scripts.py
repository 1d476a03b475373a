"""The command lines as a person uses them: pretrain, fine-tune, resume, and what is left in the folder."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers import tracked_pictures
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCTC, AutoTokenizer, pipeline
from transformers.utils import logging as transformers_logging

from hf_speech_ssl import BiRQForCTC, BiRQForRNNT, ChunkSSLForPreTraining, FSQModel, SpeechSSLFeatureExtractor
from hf_speech_ssl.commands.average import AverageOptions
from hf_speech_ssl.commands.average import average as average_command
from hf_speech_ssl.decoding import build_ctc_processor
from hf_speech_ssl.run_folder import RunResults
from hf_speech_ssl.training.building import load_model
from hf_speech_ssl.training.updates import TrainStep

pytest.importorskip("espeakng_loader")
ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "pretraining_scripts"), str(ROOT / "finetuning_scripts")]

import run_birq  # noqa: E402
import run_chunkssl  # noqa: E402
import run_ctc  # noqa: E402
import run_fsq  # noqa: E402
import run_rnnt  # noqa: E402

SIZES = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,codebook_size=32"
DATA = (
    "--dataset_name synthetic --dataset_config_name sentences=24,eval_sentences=4 --per_device_train_batch_seconds 12 "
)
DATA += "--report_to none --logging_steps 2 "
BIRQ = f"{DATA} --config_name birq-tiny --config_overrides {SIZES} --normalization_seconds 20 --max_steps 4 "


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_SPEECH_SSL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    run_birq.main([*BIRQ.split(), "--output_dir", str(folder), "--eval_split_name", "validation"])
    return folder


@pytest.fixture(scope="module")
def finetuned(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuned")
    flags = f"{DATA} --max_steps 6 --eval_steps 3 --eval_split_name validation,test --freeze_encoder_steps 1"
    run_ctc.main([*flags.split(), "--model_name_or_path", str(pretrained), "--output_dir", str(folder)])
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_pretraining_leaves_a_model_its_features_results_and_a_card(pretrained):
    features = SpeechSSLFeatureExtractor.from_pretrained(pretrained)
    assert len(features.mean) == 80 and all(value > 0 for value in features.variance)
    results = json.loads((pretrained / "results.json").read_text())
    assert results["updates"] == 4 and results["eval_loss"] > 0 and results["audio_hours"] > 0
    verdict = RunResults.read(pretrained).verdict
    assert [layer.layer for layer in verdict.layers] == [0, 1, 2]
    assert verdict.layers[0].effective_rank == verdict.layers[0].random_effective_rank, "of the features"
    assert all(1 <= layer.effective_rank <= 16 for layer in verdict.layers[1:])
    assert "The frames of the last layer have an effective rank of" in verdict.remarks[-1]
    assert verdict.remarks[-1] in (pretrained / "README.md").read_text()
    assert str(pretrained.parent) not in (pretrained / "run_arguments.json").read_text()
    assert ModelCard.load(pretrained / "README.md").data.pipeline_tag == "feature-extraction"


def test_resuming_on_real_batches_gives_the_same_weights(pretrained, tmp_path, monkeypatch):
    update = TrainStep.update

    def dies_in_the_third(self, step, batches, **numbers):
        if step == 3:
            raise OSError("the machine went away")
        return update(self, step, batches, **numbers)

    flags = [*BIRQ.split(), "--output_dir", str(tmp_path), "--save_steps", "2", "--resume_from_checkpoint", "last"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="went away"):
        patch.setattr(TrainStep, "update", dies_in_the_third)
        run_birq.main(flags)
    run_birq.main(flags)
    assert all(torch.equal(value, weights(pretrained)[name]) for name, value in weights(tmp_path).items())


def test_other_data_or_batches_go_on_with_a_new_epoch(pretrained, tmp_path):
    flags = [*BIRQ.split(), "--output_dir", str(tmp_path / "run"), "--max_steps", "5"]
    flags += ["--resume_from_checkpoint", str(pretrained / "checkpoint-4"), "--per_device_train_batch_seconds", "10"]
    with pytest.raises(ValueError, match=r"(?s)batch_seconds=12.*now.*batch_seconds=10.*--restart_data"):
        run_birq.main(flags)
    run_birq.main([*flags, "--restart_data"])
    checkpoint = tmp_path / "run" / "checkpoint-5"
    assert torch.load(checkpoint / "process-00000.pt")["position"]["epoch"] == 1


def test_another_corpus_of_as_many_rows_is_warned_of_on_resume(pretrained, tmp_path, caplog):
    flags = [*BIRQ.split(), "--output_dir", str(tmp_path), "--max_steps", "5"]
    flags += ["--resume_from_checkpoint", str(pretrained / "checkpoint-4")]
    run_birq.main(flags)
    assert "former data" not in caplog.text
    flags[flags.index("--dataset_config_name") + 1] += ",seed=1"
    run_birq.main(flags)
    assert "--dataset_config_name sentences=24,eval_sentences=4 -> sentences=24,eval_sentences=4,seed=1" in caplog.text
    assert "The place in the data is that of the former data; --restart_data begins a new epoch" in caplog.text


def test_the_encoder_may_be_frozen_and_thawed_on_resume(finetuned, pretrained, tmp_path, caplog):
    flags = [*DATA.split(), "--eval_split_name", "", "--model_name_or_path", str(pretrained)]
    flags += ["--output_dir", str(tmp_path)]
    frozen = ["--freeze_encoder", "--max_steps", "7", "--resume_from_checkpoint", str(finetuned / "checkpoint-6")]
    run_ctc.main([*flags, *frozen])
    assert "--freeze_encoder False -> True" in caplog.text
    before, between = weights(finetuned / "checkpoint-6"), weights(tmp_path / "checkpoint-7")
    run_ctc.main([*flags, "--max_steps", "8", "--resume_from_checkpoint", "last"])
    assert "--freeze_encoder True -> False" in caplog.text
    after = weights(tmp_path / "checkpoint-8")
    for name, is_frozen in (("encoder.feature_projection.weight", True), ("ctc_head.weight", False)):
        assert torch.equal(before[name], between[name]) == is_frozen
        assert not torch.equal(between[name], after[name])


def test_a_resumed_run_needs_its_pretrained_model_no_more(finetuned, pretrained, tmp_path):
    moved = tmp_path / "moved"
    flags = [*DATA.split(), "--max_steps", "7", "--eval_split_name", "", "--output_dir", str(tmp_path / "run")]
    flags += ["--model_name_or_path", str(moved)]
    run_ctc.main([*flags, "--resume_from_checkpoint", str(finetuned / "checkpoint-6")])
    assert weights(tmp_path / "run").keys() == weights(finetuned).keys()


def test_fine_tuning_leaves_a_model_that_the_pipeline_loads(pretrained, finetuned):
    results = json.loads((finetuned / "results.json").read_text())
    assert {"eval_validation_wer", "eval_test_wer", "eval_validation_cer", "eval_test_loss"} <= set(results)
    recognizer = pipeline("automatic-speech-recognition", str(finetuned))
    assert isinstance(recognizer(np.random.default_rng(0).standard_normal(16_000).astype("float32"))["text"], str)
    assert recognizer.feature_extractor.mean == SpeechSSLFeatureExtractor.from_pretrained(pretrained).mean
    assert set("abcde ") - set(recognizer.tokenizer.get_vocab()) == {" "}
    model = BiRQForCTC.from_pretrained(finetuned)
    assert model.config.vocab_size == len(recognizer.tokenizer)
    card = ModelCard.load(finetuned / "README.md")
    metrics = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert metrics["test", "wer"] == pytest.approx(100 * results["eval_test_wer"], abs=0.01)


def test_fine_tuning_begins_with_the_pretrained_encoder_unless_from_scratch(pretrained, tmp_path):
    flags = [*DATA.split(), "--max_steps", "1", "--freeze_encoder", "--eval_split_name", ""]
    flags += ["--model_name_or_path", str(pretrained)]
    run_ctc.main([*flags, "--output_dir", str(tmp_path / "tuned")])
    run_ctc.main([*flags, "--output_dir", str(tmp_path / "scratch"), "--from_scratch"])
    name = "encoder.feature_projection.weight"
    assert torch.equal(weights(tmp_path / "tuned")[name], weights(pretrained)[name])
    assert not torch.equal(weights(tmp_path / "scratch")[name], weights(pretrained)[name])


def test_new_weights_are_named_in_one_line(pretrained, finetuned, caplog):
    transformers_logging.enable_propagation()
    config = AutoConfig.from_pretrained(pretrained, vocab_size=7)
    load_model(AutoModelForCTC, config, str(pretrained))
    (line,) = [record.getMessage() for record in caplog.records if "weights" in record.getMessage()]
    assert line == (
        f"BiRQForCTC from {pretrained}: new weights, random until they are trained (ctc_head.bias, ctc_head.weight)."
    )
    caplog.clear()
    load_model(AutoModelForCTC, AutoConfig.from_pretrained(finetuned), str(finetuned))
    assert not caplog.records
    with pytest.raises(RuntimeError):
        load_model(AutoModelForCTC, AutoConfig.from_pretrained(finetuned, vocab_size=7), str(finetuned))
    assert "LOAD REPORT" in caplog.text, "with what is wrong"
    transformers_logging.disable_propagation()


def test_streaming_and_continuing_from_a_ctc_model(finetuned, tmp_path):
    flags = f"{DATA} --streaming --max_steps 2 --eval_split_name validation --output_dir {tmp_path}"
    metrics = run_ctc.main([*flags.split(), "--model_name_or_path", str(finetuned)])
    assert metrics["eval_wer"] >= 0


def test_an_evaluation_split_without_a_word_is_refused_before_training(finetuned, tmp_path):
    audio = np.random.default_rng(0).standard_normal(16_000).astype("float32") * 0.1
    for split, texts in {"train": ["a b", "b a"], "validation": ["...", "?"]}.items():
        (tmp_path / "data" / split).mkdir(parents=True)
        rows = ["file_name,text"]
        for number, text in enumerate(texts):
            soundfile.write(tmp_path / "data" / split / f"{number}.wav", audio, 16_000)
            rows.append(f"{number}.wav,{text}")
        (tmp_path / "data" / split / "metadata.csv").write_text("\n".join(rows))
    flags = ["--dataset_name", str(tmp_path / "data"), "--model_name_or_path", str(finetuned), "--max_steps", "8"]
    with pytest.raises(ValueError, match="--eval_split_name validation: Column 'text' has no .* 2 with an empty one"):
        run_ctc.main([*flags, "--report_to", "none", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "run_arguments.json").exists()


def test_another_alphabet_is_refused_or_gets_a_new_head(finetuned, tmp_path):
    other = shutil.copytree(finetuned, tmp_path / "other")
    build_ctc_processor(["xyz"], SpeechSSLFeatureExtractor.from_pretrained(finetuned)).save_pretrained(other)
    flags = [*DATA.split(), "--max_steps", "1", "--eval_split_name", "", "--freeze_encoder"]
    flags += ["--model_name_or_path", str(other), "--output_dir", str(tmp_path / "new")]
    with pytest.raises(ValueError, match=r"% of the letters of split 'train' .* e \d+.*--new_vocabulary"):
        run_ctc.main(flags)
    run_ctc.main([*flags, "--new_vocabulary"])
    old, new = weights(finetuned), weights(tmp_path / "new")
    assert all(torch.equal(value, new[name]) for name, value in old.items() if name.startswith("encoder."))
    assert not torch.equal(new["ctc_head.weight"], old["ctc_head.weight"])


HEAD = "decoder_hidden_size=16,decoder_attention_heads=2,decoder_intermediate_size=16,joint_hidden_size=16"
RNNT = f"{DATA} --eval_split_name validation --config_overrides {HEAD} --vocabulary_size 40 "


@pytest.fixture(scope="module")
def transducer(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transducer")
    flags = f"{RNNT} --max_steps 4 --eval_steps 2 --save_steps 2 --freeze_encoder_steps 0.25"
    metrics = run_rnnt.main([*flags.split(), "--model_name_or_path", str(pretrained), "--output_dir", str(folder)])
    assert metrics["eval_wer"] >= 0 and metrics["eval_loss"] > 0
    return folder


def test_a_transducer_has_the_papers_recipe_and_a_card(pretrained, transducer):
    config = json.loads((transducer / "config.json").read_text())
    assert config["architectures"] == ["BiRQForRNNT"] and config["vocab_size"] == 40
    assert (config["num_time_masks"], config["max_time_mask_share"], config["mask_time_prob"]) == (10, 0.05, 0.0)
    assert (config["num_feature_masks"], config["max_feature_mask_width"]) == (2, 27)
    assert isinstance(pipeline("automatic-speech-recognition", str(transducer)).tokenizer("ab").input_ids, list)
    card = (transducer / "README.md").read_text()
    assert "with a transducer head" in card and "AutoModelForRNNT" in card and "AutoModelForCTC" not in card
    average = transducer.parent / "average"
    average_command(AverageOptions(run_dir=str(transducer), num_checkpoints=2, output_dir=str(average)))
    assert BiRQForRNNT.from_pretrained(average).config.vocab_size == 40


def test_a_transducer_goes_on_from_ctc_with_its_letters_or_new_pieces(finetuned, transducer, tmp_path):
    flags = [*RNNT.split(), "--max_steps", "1", "--eval_split_name", "", "--freeze_encoder"]
    for kind, source in (("unigram", finetuned), ("model", finetuned), ("unigram", transducer)):
        folder = tmp_path / f"{kind}-{source.name}"
        run_rnnt.main(
            [*flags, "--vocabulary_kind", kind, "--model_name_or_path", str(source), "--output_dir", str(folder)]
        )
        name = "encoder.feature_projection.weight"
        assert torch.equal(weights(folder)[name], weights(source)[name])
        kept = kind == "model" or source == transducer
        old, new = (AutoTokenizer.from_pretrained(one).get_vocab() for one in (source, folder))
        assert (old == new) == kept
    with pytest.raises(ValueError, match="vocabulary_kind model keeps the tokenizer of a CTC model; None is none"):
        run_rnnt.main(
            [
                *flags,
                "--vocabulary_kind",
                "model",
                "--config_name",
                "birq-tiny",
                "--output_dir",
                str(tmp_path / "unused"),
            ]
        )
    with pytest.raises(ValueError, match=r"different pieces, 9000 are asked for: give --vocabulary_size \d+ or less"):
        run_rnnt.main(
            [*flags, "--vocabulary_size", "9000", "--model_name_or_path", str(finetuned)]
            + ["--output_dir", str(tmp_path / "refused")]
        )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    flags = f"{DATA} --config_name fsq-tiny --config_overrides fsq_hidden_size=16,fsq_levels=[5,3] --max_steps 3 "
    flags += f"--normalization_seconds 20 --eval_split_name validation --output_dir {folder}"
    return folder, run_fsq.main(flags.split())


def test_training_a_tokenizer(tokenizer):
    folder, metrics = tokenizer
    assert metrics["eval_loss"] > 0 and metrics["eval_explained_variance"] == pytest.approx(
        1 - metrics["eval_loss"], abs=1e-3
    )
    model, features = FSQModel.from_pretrained(folder), SpeechSSLFeatureExtractor.from_pretrained(folder)
    assert model.config.fsq_levels == [5, 3] and len(features.mean) == 80
    inputs = features(np.zeros(16_000, dtype="float32"), sampling_rate=16_000, return_tensors="pt")
    assert model.tokenize(**inputs).shape == (1, inputs["input_features"].shape[1] // 4, 2)
    assert ModelCard.load(folder / "README.md").data.model_name


def test_chunk_ssl_from_tokenizer_to_streaming_error_rates(tokenizer, tmp_path):
    """The tokenizer and its features travel into the checkpoint, which is evaluated at every chunk size."""
    sizes = SIZES.replace(",codebook_size=32", "") + ",chunk_durations_ms=[160,320]"
    flags = f"{DATA} --config_name chunkssl-tiny --config_overrides {sizes} --max_steps 2 "
    run_chunkssl.main(
        [*flags.split(), "--fsq_model_name_or_path", str(tokenizer[0]), "--output_dir", str(tmp_path / "p")]
    )
    model = ChunkSSLForPreTraining.from_pretrained(tmp_path / "p")
    assert model.config.fsq_levels == [5, 3]
    trained = FSQModel.from_pretrained(tokenizer[0]).tokenizer.state_dict()
    assert all(torch.equal(value, model.tokenizer.module.state_dict()[name]) for name, value in trained.items())
    features = [SpeechSSLFeatureExtractor.from_pretrained(folder) for folder in (tokenizer[0], tmp_path / "p")]
    assert features[0].mean == features[1].mean

    # TensorBoard as in a run without flags: it refuses hyperparameters that are lists.
    flags = f"{DATA} --report_to tensorboard --max_steps 2 --eval_chunk_durations_ms 160 320 "
    flags += f"--output_dir {tmp_path / 'ctc'}"
    metrics = run_ctc.main([*flags.split(), "--model_name_or_path", str(tmp_path / "p")])
    assert {"eval_wer", "eval_160ms_wer", "eval_320ms_wer", "eval_320ms_cer"} <= set(metrics)


@pytest.mark.parametrize("script", [run_birq, run_fsq])
def test_pictures_while_it_trains(script, tmp_path):
    """Every so many updates TensorBoard gets masks and labels of one training utterance, drawn as they are then."""
    flags = BIRQ.replace("none", "tensorboard").replace("--max_steps 4", "--max_steps 2 --picture_steps 1")
    if script is run_fsq:
        flags = flags.replace("birq-tiny", "fsq-tiny").replace(SIZES, "fsq_hidden_size=8,fsq_num_hidden_layers=1")
    script.main([*flags.split(), "--output_dir", str(tmp_path)])
    pictures = tracked_pictures(tmp_path)
    assert [one.step for one in pictures] == [1, 2] and pictures[0].width > 1000
    # birq-tiny learns its labels, so that they are others after an update.
    assert (pictures[0].encoded_image_string != pictures[1].encoded_image_string) or script is run_fsq


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--fsq_model_name_or_path is needed"),
        ("--fsq_model_name_or_path TOKENIZER --config_overrides label_kind=random_projection", "need none"),
        ("--fsq_model_name_or_path TOKENIZER --config_name chunkssl-learned-tiny", "need none"),
        (
            "--config_name chunkssl-learned-tiny --config_overrides label_kind=fsq",
            "--fsq_model_name_or_path is needed",
        ),
        ("--fsq_model_name_or_path TOKENIZER --config_overrides frame_stacking=2", "frame_stacking come from"),
        ("--fsq_model_name_or_path OTHER", "needs a tokenizer, .* got a BiRQConfig"),
    ],
)
def test_labels_of_chunk_ssl_that_cannot_be(tokenizer, pretrained, tmp_path, flags, message):
    flags = flags.replace("TOKENIZER", str(tokenizer[0])).replace("OTHER", str(pretrained))
    flags = f"{DATA} --config_name chunkssl-tiny --output_dir {tmp_path} {flags}"
    with pytest.raises(ValueError, match=message):
        run_chunkssl.main(flags.split())


def test_chunk_durations_are_for_chunk_ssl(pretrained, tmp_path):
    flags = f"{DATA} --max_steps 1 --eval_chunk_durations_ms 160 --output_dir {tmp_path}"
    with pytest.raises(ValueError, match="works in chunks"):
        run_ctc.main([*flags.split(), "--model_name_or_path", str(pretrained)])


def test_epochs_come_to_steps(pretrained, tmp_path, capsys):
    flags = BIRQ.replace("--max_steps 4", "--num_train_epochs 1")
    run_birq.main([*flags.split(), "--output_dir", str(tmp_path), "--gradient_accumulation_steps", "2"])
    results = json.loads((tmp_path / "results.json").read_text())
    whole = json.loads((pretrained / "results.json").read_text())["audio_hours"]
    assert (results["updates"], results["audio_hours"]) == (2, whole), "four batches make the epoch"
    assert "synthetic: found 24 audio, 24 in the split 'train'" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--config_overrides hiden_size=3", "no field 'hiden_size'"),
        ("--config_name birq-huge", "no preset 'birq-huge'; the presets are birq-tiny"),
        ("--config_name huge", "no preset 'huge'"),
        ("--config_name fsq-tiny --config_overrides fsq_levels=[3,3]", "BiRQForPreTraining needs .* BiRQConfig, got"),
        ("--train_split_name trian", "trian"),
        ("--streaming --max_steps 0", "max_steps must be at least 1"),
    ],
)
def test_mistakes_on_the_command_line_are_named(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run_birq.main([*BIRQ.split(), "--output_dir", str(tmp_path), *flags.split()])


def test_an_unknown_flag_is_named_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run_birq.main([*BIRQ.split(), "--output_dir", str(tmp_path), "--learning_rat", "1"])
    [line] = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "unrecognized arguments: --learning_rat" in line


def test_help_says_defaults_and_the_recipe(capsys):
    for script, recipe in ((run_birq, "0.0002"), (run_fsq, "exponential"), (run_ctc, "tri_stage")):
        with pytest.raises(SystemExit):
            script.main(["--help"])
        text = capsys.readouterr().out
        assert f"default: {recipe}" in " ".join(text.split()) and "accelerate launch" in text
        assert " \\\n        --dataset_name" in text, "the example keeps its lines"
