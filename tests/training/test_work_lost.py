"""Nothing that was computed is lost: faults before, while and after checkpoints are written, and going back to one."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_loop import ScriptedEvaluator, log_of, make_loop
from toys import ToyBatches, tiny_birq

from hf_speech_ssl.training import output_folder
from hf_speech_ssl.training.updates import parameter_groups


def names_of(folder, pattern="checkpoint-*"):
    return sorted(path.name for path in folder.glob(pattern))


class FailingEvaluator(ScriptedEvaluator):
    """Fails once its values are used up."""

    def __call__(self, model, interruption):
        if not self.values:
            raise ValueError("the split has no word")
        return super().__call__(model, interruption)


class Dies(ToyBatches):
    """Batches of a machine that goes away after some of them."""

    def __init__(self, after):
        self.after = after

    def infinite_batches(self, start=None):
        for index, batch in enumerate(super().infinite_batches(start)):
            if index == self.after:
                raise OSError("the machine went away")
            yield batch


def test_a_checkpoint_is_written_before_the_evaluation_that_fails(tmp_path, capsys):
    with pytest.raises(ValueError, match="no word"):
        make_loop(tmp_path, evaluator=FailingEvaluator(1.0), eval_steps=2, save_steps=0).run()
    assert names_of(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert "checkpoint is that of update 4" in capsys.readouterr().out
    states = [json.loads((tmp_path / f"checkpoint-{n}" / "training_state.json").read_text()) for n in (2, 4)]
    assert [(state["evaluated_step"], state["best_step"]) for state in states] == [(2, 2), (2, 2)]
    evaluator = ScriptedEvaluator(0.5, 0.7)
    make_loop(tmp_path, evaluator=evaluator, eval_steps=2, save_steps=0, resume_from_checkpoint="last").run()
    assert [line["step"] for line in log_of(tmp_path) if "eval_loss" in line] == [2, 4, 6], "it is made up for"


def test_evaluation_splits_are_tried_before_the_first_update(tmp_path):
    class Unreadable(ScriptedEvaluator):
        def try_one_batch(self, model):
            raise ValueError("the split 'validation' cannot be read")

    loop = make_loop(tmp_path / "scripted", evaluator=Unreadable())
    with pytest.raises(ValueError, match="cannot be read"):
        loop.run()
    assert loop.state.step == 0

    class NoEvaluation(ToyBatches):
        def epoch(self, epoch, start=None):
            yield from ()

    loop = make_loop(tmp_path / "empty", NoEvaluation())
    with pytest.raises(ValueError, match="no utterance in the split 'noise'"):
        loop.run()
    assert loop.state.step == 0


def test_the_final_model_is_written_before_it_is_evaluated(tmp_path):
    evaluator = FailingEvaluator(1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="no word"):
        make_loop(tmp_path, evaluator=evaluator, eval_steps=2, load_best_model_at_end=True).run()
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(value, best[name]) for name, value in load_file(tmp_path / "model.safetensors").items())


@pytest.mark.parametrize("limit", [1, None])
def test_going_back_keeps_the_new_branch_and_sets_the_old_one_aside(tmp_path, caplog, limit):
    make_loop(tmp_path, evaluator=None, save_steps=2, max_steps=6).run()
    old = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    options = {"evaluator": None, "save_total_limit": limit, "weight_decay": 0.5}
    with pytest.raises(OSError, match="went away"):  # right after checkpoint-3
        make_loop(
            tmp_path, Dies(1), save_steps=3, resume_from_checkpoint=str(tmp_path / "checkpoint-2"), **options
        ).run()
    assert "checkpoint-4, checkpoint-6 moved to" in caplog.text and "give its path to --resume" in caplog.text
    assert "checkpoint-3" in names_of(tmp_path) and "checkpoint-6" not in names_of(tmp_path)
    aside = tmp_path / "set_aside" / "1"
    assert names_of(aside) == ["checkpoint-4", "checkpoint-6"] and log_of(aside)[-1]["step"] == 6
    loop = make_loop(tmp_path, save_steps=3, resume_from_checkpoint="last", **options)
    assert loop.state.step == 3
    loop.run()
    new = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert not all(torch.equal(value, new[name]) for name, value in old.items())
    loop = make_loop(tmp_path, resume_from_checkpoint=str(aside / "checkpoint-4"), evaluator=None)
    assert loop.state.step == 4 and names_of(tmp_path) == []
    loop.leave()


def test_a_checkpoint_of_another_folder_is_gone_on_from(tmp_path):
    make_loop(tmp_path / "old", evaluator=None, max_steps=3).run()
    evaluator = ScriptedEvaluator(1.0, 2.0)
    options = {"eval_steps": 3, "resume_from_checkpoint": str(tmp_path / "old" / "checkpoint-3")}
    make_loop(tmp_path / "new", evaluator=evaluator, **options).run()
    assert names_of(tmp_path / "new") == ["checkpoint-3", "checkpoint-6"] and names_of(tmp_path / "old")
    assert json.loads((tmp_path / "new" / "checkpoint-6" / "training_state.json").read_text())["best_step"] == 3


def flip_a_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


DAMAGE = {
    "cut optimizer": lambda folder: os.truncate(folder / "optimizer.pt", 1000),
    "spoiled weights": lambda folder: flip_a_byte(folder / "model.safetensors"),
    "missing random states": lambda folder: (folder / "process-00000.pt").unlink(),
    "empty state": lambda folder: (folder / "training_state.json").write_text(""),
    "spoiled features": lambda folder: (folder / "preprocessor_config.json").write_text("{}"),
}


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_checkpoint_is_recognized_and_the_one_before_it_used(tmp_path, caplog, fault, checksums):
    make_loop(tmp_path, evaluator=None, save_steps=2, max_steps=4).run()
    if not checksums:  # as earlier versions wrote them
        for file in tmp_path.glob("checkpoint-*/training_state.json"):
            file.write_text(json.dumps({"step": int(file.parent.name[11:])}))
    DAMAGE[fault](tmp_path / "checkpoint-4")
    if not checksums and fault.startswith("spoiled"):
        return  # nobody can know
    loop = make_loop(tmp_path, evaluator=None, resume_from_checkpoint="last")
    assert loop.state.step == 2
    assert "checkpoint-4 is damaged" in caplog.text and "going on from checkpoint-2" in caplog.text
    assert names_of(tmp_path) == ["checkpoint-2"] and names_of(tmp_path / "set_aside" / "1") == ["checkpoint-4"]
    loop.leave()
    with pytest.raises(ValueError, match=r"no checkpoint to resume from: .*Checkpoints in the output folder: ch"):
        make_loop(tmp_path, resume_from_checkpoint=str(tmp_path / "set_aside" / "1" / "checkpoint-4"))
    DAMAGE["cut optimizer"](tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="No checkpoint in .* is whole: checkpoint-2 is damaged: optimizer.pt"):
        make_loop(tmp_path, resume_from_checkpoint="last")


def test_state_files_of_other_versions_are_read(tmp_path):
    make_loop(tmp_path, evaluator=None, save_steps=2, max_steps=4).run()
    file = tmp_path / "checkpoint-4" / "training_state.json"
    state = json.loads(file.read_text())
    del state["skipped_updates"], state["learning_rate"]
    file.write_text(json.dumps({**state, "epoch": 3, "world": {}}))
    loop = make_loop(tmp_path, evaluator=None, resume_from_checkpoint="last")
    assert loop.state.step == 4
    loop.leave()


def test_optimizer_states_of_earlier_versions_are_read(tmp_path):
    """They numbered the parameters in the order of the groups."""
    make_loop(tmp_path, evaluator=None, save_steps=2, max_steps=4).run()
    file = tmp_path / "checkpoint-4" / "optimizer.pt"
    named = torch.load(file)["optimizer"]
    model = tiny_birq()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups, state = [], {}
    for group in parameter_groups(model, 0.01):
        numbers = range(len(state), len(state) + len(group["params"]))
        state |= {number: named[names[p]] for number, p in zip(numbers, group["params"], strict=True)}
        groups.append({**group, "params": list(numbers)})
    torch.save({"optimizer": {"state": state, "param_groups": groups}, "scaler": None}, file)
    (tmp_path / "checkpoint-4" / "training_state.json").write_text('{"step": 4}')
    loop = make_loop(tmp_path, evaluator=None, weight_decay=0.5, resume_from_checkpoint="last")
    for name, parameter in loop.train_step.bare_model.named_parameters():
        assert torch.equal(loop.train_step.adamw.state[parameter]["exp_avg"], named[name]["exp_avg"]), name
    loop.leave()


def test_a_state_without_statistics_of_label_use_is_gone_on_from(tmp_path):
    """Models had no such buffers, and states no checksums, when it was written."""
    make_loop(tmp_path, evaluator=None, save_steps=2, max_steps=4).run()
    folder = tmp_path / "checkpoint-4"
    weights = load_file(folder / "model.safetensors")
    counted = {name for name in weights if "_use." in name}
    assert weights["anchor_use.counts"].sum() > 0
    older = {name: tensor for name, tensor in weights.items() if name not in counted}
    save_file(older, folder / "model.safetensors", {"format": "pt"})
    (folder / "training_state.json").write_text('{"step": 4}')
    loop = make_loop(tmp_path, evaluator=None, resume_from_checkpoint="last")
    model = loop.train_step.bare_model
    assert model.state_dict().keys() == weights.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch.zeros_like(tensor) if name in counted else weights[name]), name
    loop.run()
    assert load_file(tmp_path / "checkpoint-6" / "model.safetensors")["anchor_use.counts"].sum() > 0


@pytest.mark.parametrize(("before", "after"), [(0, 6), (6, 0)], ids=["frozen later", "thawed later"])
def test_the_updates_with_a_frozen_encoder_may_change_on_resume(tmp_path, caplog, before, after):
    make_loop(tmp_path, evaluator=None, max_steps=3, freeze_encoder_steps=before).run()
    file = tmp_path / "checkpoint-3" / "model.safetensors"
    untrained, saved = tiny_birq().state_dict(), load_file(file)
    options = {"freeze_encoder_steps": after, "resume_from_checkpoint": "last"}
    loop = make_loop(tmp_path, evaluator=None, **options)
    moments = torch.load(file.with_name("optimizer.pt"))["optimizer"]
    for name, parameter in loop.train_step.bare_model.named_parameters():
        assert torch.equal(loop.train_step.adamw.state[parameter]["exp_avg"], moments[name]["exp_avg"]), name
    loop.run()
    final = load_file(tmp_path / "model.safetensors")
    for part, frozen in (("encoder.feature_projection.weight", True), ("prediction_head.weight", False)):
        assert torch.equal(untrained[part], saved[part]) == (frozen and before > 0), part
        assert torch.equal(saved[part], final[part]) == (frozen and after > 0), part
    assert f"--freeze_encoder_steps {before} -> {after}" in caplog.text


def test_half_a_line_in_the_log_stops_nothing(tmp_path):
    make_loop(tmp_path, evaluator=None, max_steps=4).run()
    with (tmp_path / "train_log.jsonl").open("a") as file:
        file.write('{"st')
    make_loop(tmp_path, evaluator=None, resume_from_checkpoint="last").run()
    assert [line["step"] for line in log_of(tmp_path)] == [2, 4, 6]


@pytest.mark.parametrize("missing", ["at the start", "at the end"])
def test_a_best_checkpoint_that_is_gone_stops_nothing(tmp_path, capsys, missing):
    options = {"eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    make_loop(tmp_path, evaluator=ScriptedEvaluator(1.0, 2.0, 3.0, 1.0), max_steps=3, **options).run()
    evaluator = ScriptedEvaluator(4.0, 5.0, 6.0)
    if missing == "at the start":
        output_folder.delete_checkpoint(tmp_path / "checkpoint-1")
    loop = make_loop(tmp_path, evaluator=evaluator, resume_from_checkpoint="last", **options)
    if missing == "at the end":
        output_folder.delete_checkpoint(tmp_path / "checkpoint-1")
    else:
        evaluator.values.append(4.0)  # of the best one since
    loop.run()
    step = 4 if missing == "at the start" else 6
    out = capsys.readouterr().out
    assert "is not in" in out if missing == "at the start" else "cannot be used (it is not there any more)" in out
    wanted = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
    assert all(torch.equal(wanted[name], v) for name, v in load_file(tmp_path / "model.safetensors").items())


def test_a_terminal_that_is_not_utf8_stops_nothing(tmp_path, monkeypatch):
    with (tmp_path / "terminal").open("w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        evaluator = ScriptedEvaluator(*range(9))
        evaluator.examples = ("  said:  привет",)
        make_loop(tmp_path, evaluator=evaluator, max_steps=2).run()
    assert "said:  \\u043f\\u0440" in (tmp_path / "terminal").read_text()


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    first = make_loop(tmp_path, evaluator=None, max_steps=2)
    for resume in (None, "last"):
        with pytest.raises(ValueError, match="Another run is writing into .*another --output_dir"):
            make_loop(tmp_path, resume_from_checkpoint=resume)
    first.run()
    output_folder.delete_checkpoint(tmp_path / "checkpoint-2")
    for resume in (None, "last"):
        with pytest.raises(ValueError, match="already holds a model .*and no checkpoint"):
            make_loop(tmp_path, resume_from_checkpoint=resume)


def test_what_interruptions_leave_is_cleaned_and_nothing_else(tmp_path):
    make_loop(tmp_path, evaluator=None, max_steps=2).run()
    remnants = ("checkpoint-1.deleting", "checkpoint-9.partial", "model.x.partial", "checkpoint-4")
    others = ("checkpoint-notes", "checkpoint-5")
    for name in (*remnants, *others):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-4" / "process-00000.pt").touch()
    (tmp_path / "checkpoint-5" / "trainer_state.json").touch()
    make_loop(tmp_path, evaluator=None, resume_from_checkpoint="last", max_steps=3).run()
    left = {path.name for path in tmp_path.iterdir()}
    assert not left & set(remnants) and set(others) <= left


def test_a_full_disk_is_named_and_leaves_the_older_checkpoints(tmp_path, monkeypatch):
    make_loop(tmp_path, evaluator=None, max_steps=2).run()
    save = torch.save

    def full(value, file):
        if Path(file).name == "optimizer.pt":
            raise RuntimeError("enforce fail: unexpected pos 193792 vs 193684")
        save(value, file)

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"checkpoint-3 could not be .* MiB were free"):
        patch.setattr(torch, "save", full)
        make_loop(tmp_path, evaluator=None, resume_from_checkpoint="last").run()
    assert names_of(tmp_path) == ["checkpoint-2"]
    make_loop(tmp_path, evaluator=None, resume_from_checkpoint="last").run()


def test_every_file_reaches_the_disk_before_the_rename(tmp_path, monkeypatch):
    synced, renamed = set(), {}
    fsync, rename = os.fsync, Path.rename

    def note(descriptor):
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.removesuffix(".partial"))
        fsync(descriptor)

    def rename_noting(self, target):
        renamed[Path(target).name] = {file.name for file in self.iterdir()} - synced
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", rename_noting)
    make_loop(tmp_path, evaluator=None, max_steps=2).run()
    assert renamed == {"checkpoint-2": set()} and tmp_path.name in synced


def test_a_plan_that_changes_on_resume_is_named(tmp_path, capsys, caplog):
    settings = {"evaluator": None, "lr_scheduler_type": "linear"}
    make_loop(tmp_path, max_steps=6, **settings).run()
    with pytest.raises(ValueError, match="checkpoint-6 has made 6 updates, more than the 3 .*--max_steps"):
        make_loop(tmp_path, max_steps=3, resume_from_checkpoint="last", **settings)
    assert json.loads((tmp_path / "run_arguments.json").read_text())["resume_from_checkpoint"] is None
    make_loop(tmp_path, max_steps=12, resume_from_checkpoint="last", weight_decay=0.5, **settings).run()
    out = capsys.readouterr().out
    assert "planned for 6 updates and is now to make 12. The learning rate was 0 in update 6 and is 0.0005" in out
    assert "--weight_decay 0.01 -> 0.5" in caplog.text
    assert json.loads((tmp_path / "run_arguments.json").read_text())["weight_decay"] == 0.5
