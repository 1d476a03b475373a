"""The training loop of every family and head, on Accelerate.

It knows batches of audio, a learner that turns some into an update, and when to report, evaluate and save.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_speech_ssl.data.batch import Batch, DataPosition
from hf_speech_ssl.run_folder import RunResults, TrainingState, badness, checkpoint_name
from hf_speech_ssl.verdict import LabelUse, Verdict

from .checkpoints import (
    Saveable,
    damage,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_final_model,
)
from .diagnostics import DeferredScalars, LogInterval, constants, label_warnings, reduce
from .evaluators import Evaluator
from .output_folder import delete_old_checkpoints
from .processes import Interrupted, Interruption, decided_by_main_process, describe_processes
from .reporting import RunLog
from .run import Run, compare_plans
from .schedules import as_steps, make_schedule
from .updates import Objective, TrainStep

# Before so much audio and so many updates nothing is said about labels and their prediction.
JUDGED_SECONDS, JUDGED_UPDATES = 600.0, 200
MAX_SKIPPED_IN_A_ROW = 25  # updates; the fp16 loss scaler needs up to 16 at the start


class Batches(Protocol):
    """An endless stream of this process's batches, restartable after any of them; see `hf_speech_ssl.data`."""

    @property
    def skipped(self) -> Sized: ...

    def infinite_batches(self, start: DataPosition | None = None) -> Iterable[Batch]: ...


class TrainingLoop:
    """One training run.

    Args:
        model: the bare model, in float32; it is moved to the accelerator's device.
        processor: feature extractor, with a tokenizer for CTC; saved beside every model.
        max_steps: updates of the whole run.
        evaluator: called every `eval_steps` and at the end, if given.
    """

    def __init__(
        self,
        run: Run,
        model: PreTrainedModel,
        processor: Saveable,
        objective: Objective,
        batches: Batches,
        max_steps: int,
        evaluator: Evaluator | None = None,
    ):
        accelerator, settings = run.accelerator, run.settings
        self.arguments = run.arguments
        self.accelerator, self.settings, self.max_steps = accelerator, settings, max_steps
        self.processor, self.batches, self.evaluator = processor, batches, evaluator
        self.output_dir = Path(settings.output_dir)
        schedule = make_schedule(
            settings.lr_scheduler_type,
            max_steps,
            settings.warmup_steps,
            settings.hold_steps,
            settings.num_anneals,
            settings.final_lr_factor,
        )
        frozen = as_steps(settings.freeze_encoder_steps, max_steps)
        settings = replace(settings, freeze_encoder_steps=frozen)
        self.train_step = TrainStep(accelerator, model, objective, settings, schedule)
        self.interruption = Interruption()
        self.state = TrainingState(num_processes=accelerator.num_processes)
        self.position: DataPosition | None = None  # of the last consumed batch
        self.warnings: list[str] = []  # said once the run begins
        if run.checkpoint:
            self.state, self.position = load_checkpoint(
                run.checkpoint, accelerator, model, self.train_step.adamw, settings.restart_data
            )
            next_rate = self.train_step.learning_rate(self.state.step + 1)
            self.warnings = compare_plans(run, self.state, max_steps, next_rate)
        is_ours = run.checkpoint is not None and run.checkpoint.resolve().parent == self.output_dir.resolve()
        self.saved_step = self.state.step if is_ours else 0  # of the newest checkpoint in the output folder
        self.seconds_before = self.state.training_seconds
        self.totals = constants(
            accelerator.device,
            audio_seconds=self.state.audio_seconds,
            skipped=self.state.skipped_updates,
            empty=self.state.empty_updates,
        )
        self.metrics: dict[str, float] = {}  # of the last evaluation
        self.final_step = 0
        self.draw: Callable[[PreTrainedModel], NDArray[np.uint8]] | None = None  # a picture of the model as it is
        self.picture_steps = 0  # updates between two of them
        self.verdict: Verdict | None = None  # on a pretraining run, by whoever made the loop
        self.explained: set[str] = set()  # what has been said once
        self.log = RunLog(accelerator, self.output_dir, self.state.step, max_steps)

    def run(self) -> dict[str, float]:
        """Start or resume, train to the end and leave the final model in `output_dir`; returns its metrics.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
            FloatingPointError: no finite gradients for many updates.
            ValueError: no masked frame or utterance to learn from in as many.
        """
        first_step = self.state.step
        with self.interruption, self.log:
            try:
                stream = iter(self.batches.infinite_batches(start=self.position))
                self.announce()
                if self.evaluator is not None and self.state.step < self.max_steps:
                    self.evaluator.try_one_batch(self.train_step.model)
                self.train(stream)
            except Interrupted as stop:
                if self.saved_step != self.state.step or not self.state.step:
                    self.save()
                self.log.say(
                    f"{stop.signal_name}: stopped after update {self.state.step} and saved "
                    f"{checkpoint_name(self.state.step)}. Go on with the same command and "
                    f"--resume_from_checkpoint last."
                )
                raise
            except Exception:
                if self.saved_step > first_step:
                    self.log.say(
                        f"The last checkpoint is that of update {self.saved_step}. Go on from there with the same "
                        f"command and --resume_from_checkpoint last."
                    )
                raise
            return self.finish()

    def announce(self) -> None:
        """The first lines of a run, and the record of its flags: from here on they are those that it trains with."""
        if self.accelerator.is_main_process:
            self.arguments.write(self.output_dir)
        count = sum(parameter.numel() for parameter in self.train_step.parameters)
        self.log.say(
            f"{describe_processes(self.accelerator)}; {count:,} trainable parameters, "
            f"{self.max_steps - self.state.step:,} updates to make"
        )
        for text in self.warnings:
            self.log.say(f"Warning: {text}")

    def train(self, stream: Iterator[Batch]) -> None:
        """Updates, and between them whatever is due."""
        interval, pending = LogInterval(), None
        skipped_in_a_row = torch.zeros((), device=self.accelerator.device)
        self.train_step.model.train()
        while True:
            self.save_and_evaluate_if_due()
            if self.state.step >= self.max_steps:
                return self.refuse_nothing_learned()
            with interval.waiting_for_data():
                batches = [next(stream) for _ in range(self.settings.gradient_accumulation_steps)]
            sums = self.train_step.update(self.state.step + 1, batches, signals=self.interruption.signal_number)
            self.state.step += 1
            self.position = batches[-1].position
            self.totals = {name: total + sums[name] for name, total in self.totals.items()}
            skipped_in_a_row = (skipped_in_a_row + 1) * sums["skipped"]
            interval.add(sums)
            self.log.bar.update()
            if self.is_due(self.settings.logging_steps):
                self.report(interval)
            if self.picture_steps and self.is_due(self.picture_steps):
                self.show_picture()
            previous, pending = pending, DeferredScalars(sums["signals"], skipped_in_a_row, sums["empty"])
            self.check(previous)

    def is_due(self, every: int) -> bool:
        """Whether something that happens every so many updates, and after the last, happens now."""
        return self.state.step == self.max_steps or (
            every > 0 and self.state.step > 0 and self.state.step % every == 0
        )

    def check(self, previous: DeferredScalars | None) -> None:
        """Leave the run if the update before this one says so: it is known without waiting for the device."""
        signals, skipped_in_a_row, empty = previous.read() if previous else (0.0, 0.0, 0.0)
        if signals or self.accelerator.num_processes == 1:
            self.interruption.meet(self.accelerator)
        if skipped_in_a_row < MAX_SKIPPED_IN_A_ROW:
            return
        where = f"{MAX_SKIPPED_IN_A_ROW} updates in a row up to update {self.state.step}"
        if empty:
            raise ValueError(
                f"{where} had nothing to learn from: {self.train_step.objective.unit} was 0. "
                f"{self.train_step.objective.why_nothing}"
            )
        raise FloatingPointError(
            f"{where} had gradients that are not finite; weights are as before them. Lower --learning_rate or "
            f"lengthen --warmup_steps, prefer bf16 to fp16, and check the audio. The last checkpoint is that of "
            f"update {self.saved_step}."
        )

    def refuse_nothing_learned(self) -> None:
        """Raise a ValueError at the end of a run none of whose updates changed a weight."""
        if float(self.totals["skipped"]) >= self.max_steps:
            raise ValueError(
                f"None of the {self.max_steps} updates learned anything. {self.train_step.objective.why_nothing}"
            )

    def report(self, interval: LogInterval) -> None:
        """One log line about the updates since the last one."""
        values = interval.report(self.train_step.objective.unit, self.log.seconds_since_last_report())
        values["learning_rate"] = self.train_step.learning_rate(self.state.step)
        values["audio_hours"] = float(self.totals["audio_seconds"]) / 3600
        values["skipped_updates"] = float(self.totals["skipped"])
        values["empty_updates"] = float(self.totals["empty"])
        values["skipped_files"] = float(len(self.batches.skipped))
        if left_out := len(self.train_step.objective.left_out):
            values["left_out_utterances"] = float(left_out)
        if self.accelerator.device.type == "cuda":
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.log.write(values, self.state.step)
        self.explain(values)
        interval.clear()

    def show_picture(self) -> None:
        """A picture of the model as it is now, to the trackers that show pictures. It draws no random number."""
        if self.draw is None or not self.log.takes_pictures:
            return
        model = self.train_step.bare_model
        with self.log.paused(), torch.no_grad():
            model.eval()
            self.log.write_picture("labels", self.draw(model), self.state.step)
            model.train()

    def explain(self, values: Mapping[str, float]) -> None:
        """Say once what a report shows that people should know of."""
        found = {}
        if values["skipped_updates"]:
            found["skipped"] = (
                f"skipped_updates counts updates that changed no weight. Of these, empty_updates had nothing to learn "
                f"from, since {self.train_step.objective.unit} was 0; the gradients of the others were not finite: "
                f"with fp16 some at the start are part of finding its scale."
            )
        if float(self.totals["audio_seconds"]) >= JUDGED_SECONDS:
            trained = self.state.step >= max(JUDGED_UPDATES, self.max_steps // 10)
            found |= label_warnings(LabelUse.all_from_log(values), predicts=trained)
        for name in sorted(found.keys() - self.explained):
            self.log.say(f"Note: {found[name]}" if name == "skipped" else f"Warning: {found[name]}")
        self.explained |= found.keys()

    def save_and_evaluate_if_due(self) -> None:
        """A checkpoint every `save_steps` updates and before every evaluation: nothing that fails there costs updates.

        The state in the checkpoint learns of the evaluation afterwards.
        """
        state = self.state
        evaluates = self.evaluator is not None and self.is_due(self.settings.eval_steps)
        evaluates = evaluates and state.evaluated_step != state.step
        if (evaluates or self.is_due(self.settings.save_steps)) and self.saved_step != state.step:
            self.save()
        if evaluates:
            self.evaluate()
            assert self.evaluator is not None
            name = self.evaluator.metric
            value, best = self.metrics[name], state.best_metric
            if math.isfinite(value) and (best is None or badness(name, value) <= badness(name, best)):
                state.best_metric, state.best_step = value, state.step
            if self.accelerator.is_main_process:
                state.write(self.output_dir / checkpoint_name(state.step))

    def evaluate(self) -> None:
        """Metrics of the model as it is now."""
        assert self.evaluator is not None
        with self.log.paused():
            self.metrics = self.evaluator(self.train_step.model, self.interruption)
        self.train_step.model.train()
        self.state.evaluated_step = self.state.step
        self.log.write(self.metrics, self.state.step, self.evaluator.metric)
        for example in self.evaluator.examples:
            self.log.say(example)

    def save(self) -> None:
        """A checkpoint of this moment."""
        with self.log.paused():
            self.state.training_seconds = self.seconds_before + self.log.busy_seconds
            self.state.audio_seconds = float(self.totals["audio_seconds"])
            self.state.skipped_updates = int(self.totals["skipped"])
            self.state.empty_updates = int(self.totals["empty"])
            self.state.max_steps = self.max_steps
            self.state.learning_rate = self.train_step.learning_rate(self.state.step) if self.state.step else 0.0
            save_checkpoint(
                self.output_dir,
                self.accelerator,
                self.state,
                self.train_step.bare_model,
                self.processor,
                self.train_step.adamw,
                self.position,
            )
            self.saved_step = self.state.step
            if self.accelerator.is_main_process:
                delete_old_checkpoints(self.output_dir, self.settings.save_total_limit, self.state.best_step)

    def finish(self) -> dict[str, float]:
        """The final model and its metrics: the last one's, or the best one's if the settings ask for it.

        The model is written before it is evaluated.
        """
        use_best = self.settings.load_best_model_at_end and self.load_best_model()
        self.final_step = self.state.best_step if use_best else self.state.step
        if self.accelerator.is_main_process:
            save_final_model(self.output_dir, self.train_step.bare_model, self.processor)
        self.log.say(f"The final model is in {self.output_dir}.")
        self.accelerator.wait_for_everyone()
        if self.evaluator is not None and (use_best or not self.metrics):
            self.evaluate()
        return self.metrics

    def load_best_model(self) -> bool:
        """Put the best checkpoint's weights into the model, if it is not the last one and can be read."""
        best = self.state.best_step
        if best in (0, self.state.step):
            return False
        folder = self.output_dir / checkpoint_name(best)
        reason = decided_by_main_process(
            self.accelerator, lambda: damage(folder) if folder.is_dir() else "it is not there any more"
        )
        if reason:
            self.log.say(f"Warning: the best checkpoint, {folder}, cannot be used ({reason}): the last model is kept.")
            return False
        load_weights(folder, self.train_step.bare_model)
        self.log.say(f"The final model is the best one, that of update {best}.")
        return True

    def results(self) -> RunResults:
        """The figures of the finished run. Every process calls this."""
        counts = {"files": len(self.batches.skipped), "utterances": len(self.train_step.objective.left_out)}
        left_out = reduce(self.accelerator, constants(self.accelerator.device, **counts))
        other = {"left_out_utterances": int(left_out["utterances"])} if left_out["utterances"] else {}
        return RunResults(
            metrics=self.metrics,
            final_model_step=self.final_step,
            updates=self.state.step,
            skipped_updates=self.state.skipped_updates,
            empty_updates=self.state.empty_updates,
            skipped_files=int(left_out["files"]),
            other=other,
            audio_hours=self.state.audio_seconds / 3600,
            training_hours=self.state.training_seconds / 3600,
            num_parameters=self.train_step.bare_model.num_parameters(),
            num_processes=self.accelerator.num_processes,
            device=torch.cuda.get_device_name() if self.accelerator.device.type == "cuda" else "CPU",
        )
