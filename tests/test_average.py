"""The mean of checkpoints: the numbers, which checkpoints, and a folder that loads like any other."""

import json

import pytest
import torch
from families import HEADS, Family, every_family
from helpers import tiny_birq
from safetensors.torch import load_file, save_file
from test_pipeline import save_recognizer
from transformers import AutoModelForCTC, AutoProcessor

from hf_speech_ssl import BiRQForPreTraining, SpeechSSLFeatureExtractor
from hf_speech_ssl.cli import main
from hf_speech_ssl.modeling.quantization import RandomProjectionQuantizer
from hf_speech_ssl.training.averaging import load_any_model

WER = {2: 0.5, 4: 0.1, 6: 0.3, 8: 0.2}  # by update


def checkpoint(run, step, model, companion):
    folder = run / f"checkpoint-{step}"
    model.save_pretrained(folder)
    companion.save_pretrained(folder)
    (folder / "training_state.json").write_text(json.dumps({"step": step, "audio_seconds": 7200.0}))


def shake(model, seed):
    """Other learned weights; what does not learn stays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


def ctc_run(family: Family, run):
    """A run of four checkpoints, evaluated on two splits, of which the first counts."""
    model, processor = save_recognizer(family, run)
    for step in WER:
        checkpoint(run, step, shake(model, step), processor)
    return write_log(run, "validation,test", lambda wer: {"eval_validation_wer": wer, "eval_test_wer": 1 - wer})


def write_log(run, splits, values):
    lines = [{"step": step, "loss": 1.0} for step in WER] + [
        {"step": step, **values(wer)} for step, wer in WER.items()
    ]
    (run / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "run_arguments.json").write_text(json.dumps({"eval_split_name": splits}))
    return run


def average(run, output, *flags):
    return main(["average", str(run), "--output_dir", str(output), *flags])


def mean_by_hand(run, *steps):
    weights = [load_file(run / f"checkpoint-{step}" / "model.safetensors") for step in steps]
    return {name: torch.stack([one[name].double() for one in weights]).mean(0) for name in weights[0]}


@every_family
def test_the_mean_of_the_best_and_of_the_newest(family: Family, tmp_path, capsys):
    run = ctc_run(family, tmp_path / "run")
    for flags, steps in (((), (4, 8, 6)), (("--by", "last"), (8, 6, 4)), (("--num_checkpoints", "2"), (4, 8))):
        output = tmp_path / "_".join(("mean", *flags))
        assert average(run, output, "-n", "3", *flags) == 0
        mean = load_file(output / "model.safetensors")
        for name, wanted in mean_by_hand(run, *steps).items():
            torch.testing.assert_close(mean[name], wanted.to(mean[name].dtype), rtol=0, atol=1e-7)
        told = json.loads((output / "averaging.json").read_text())
        assert told["checkpoints"] == [f"checkpoint-{step}" for step in steps]
        assert told["metric"] == (None if "last" in flags else "eval_validation_wer")
    assert "checkpoint-4  eval_validation_wer 0.1" in capsys.readouterr().out
    assert type(AutoModelForCTC.from_pretrained(output)) is family.ctc
    assert AutoProcessor.from_pretrained(output).tokenizer.get_vocab()
    names = {file.name for file in output.iterdir()}
    assert names >= {file.name for file in (run / "checkpoint-4").iterdir()} - {"training_state.json"}
    assert "not been evaluated" in (output / "README.md").read_text()


def test_a_pretrained_encoder_by_its_loss_and_identical_checkpoints(tmp_path):
    model, features = BiRQForPreTraining(tiny_birq()), SpeechSSLFeatureExtractor(mean=[1.0] * 80, variance=[2.0] * 80)
    for step in WER:
        checkpoint(tmp_path, step, model, features)
    write_log(tmp_path, "validation", lambda value: {"eval_loss": value})
    assert average(tmp_path, tmp_path / "mean", "-n", "4") == 0
    wanted, mean = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "checkpoint-2", tmp_path / "mean")
    )
    assert wanted.keys() == mean.keys() and all(torch.equal(wanted[name], mean[name]) for name in wanted)
    assert SpeechSSLFeatureExtractor.from_pretrained(tmp_path / "mean").mean == features.mean


@every_family
@pytest.mark.parametrize("head", HEADS)
def test_a_checkpoint_loads_with_its_head(family: Family, head: str, tmp_path):
    model = family.build(head)
    checkpoint(tmp_path, 4, model, SpeechSSLFeatureExtractor())
    loaded = load_any_model(tmp_path / "checkpoint-4")
    assert type(loaded) is type(model)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_what_cannot_be_averaged_is_said_in_one_line(tmp_path, capsys):
    run = tmp_path / "run"
    features = SpeechSSLFeatureExtractor()
    for step in WER:
        checkpoint(run, step, BiRQForPreTraining(tiny_birq()), features)
    write_log(run, "validation", lambda value: {"eval_loss": value if value < 0.4 else float("nan")})

    def refused(*flags, run=run, output=tmp_path / "mean"):
        assert average(run, output, *flags) == 1
        *bars, error = capsys.readouterr().err.splitlines()
        assert error.startswith("hf-speech-ssl: ") and "Traceback" not in "".join(bars)
        return error

    assert "4 checkpoints (checkpoint-8, checkpoint-6" in refused("-n", "5") and not (tmp_path / "mean").exists()
    assert "3 have been evaluated" in refused("-n", "4")
    assert "at least 1" in refused("-n", "0")
    assert "already holds a model" in refused("-n", "2", output=run / "checkpoint-2")
    assert "no folder" in refused(run=tmp_path / "none")

    file = run / "checkpoint-6" / "model.safetensors"
    weights = load_file(file)
    buffer = next(name for name in weights if name.startswith("quantizer.") and "codebook" in name)
    save_file({**weights, buffer: weights[buffer] + 1}, file, {"format": "pt"})
    assert f"{buffer} differs" in refused("-n", "2", "--by", "last")
    name = next(name for name in weights if name.startswith("encoder.") and weights[name].dim() == 2)
    save_file({**weights, name: weights[name][:-1]}, file, {"format": "pt"})
    assert f"{name} differs" in refused("-n", "2", "--by", "last")
    save_file({"x": weights[name]}, file, {"format": "pt"})
    assert "only one of them has" in refused("-n", "2", "--by", "last")
    (run / "run_arguments.json").write_text("{}")
    assert "never evaluated" in refused("-n", "2")


def test_what_a_quantizer_has_learned_is_that_of_the_newest_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(RandomProjectionQuantizer, "learns", True)
    for step in WER:
        model = shake(BiRQForPreTraining(tiny_birq()), step)
        model.quantizer.codebook.add_(step)
        checkpoint(tmp_path, step, model, SpeechSSLFeatureExtractor())
    assert average(tmp_path, tmp_path / "mean", "-n", "4", "--by", "last") == 0
    newest, mean = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "checkpoint-8", tmp_path / "mean")
    )
    assert torch.equal(mean["quantizer.codebook"], newest["quantizer.codebook"])
    assert not torch.equal(mean["prediction_head.weight"], newest["prediction_head.weight"])
