"""The mean of several checkpoints of one run: often better than the best of them, and always as cheap to use."""

import math
from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForCTC,
    AutoModelForPreTraining,
    AutoModelForRNNT,
    PreTrainedModel,
    Wav2Vec2Processor,
)

from hf_speech_ssl.json_files import write_json
from hf_speech_ssl.run_folder import (
    AVERAGING_FILE,
    CONFIG_FILE,
    LOG_FILE,
    TRANSLATE,
    WEIGHTS_FILE,
    MetricName,
    RunArguments,
    badness,
    read_log,
)

from .building import load_feature_extractor, writes_text
from .checkpoints import Saveable, save_model
from .output_folder import list_checkpoints, step_of

# By the end of a model class' name, after "For".
_HEADS = {
    "CTC": AutoModelForCTC,
    "PreTraining": AutoModelForPreTraining,
    "RNNT": AutoModelForRNNT,
    "SequenceClassification": AutoModelForAudioClassification,
    "AudioFrameClassification": AutoModelForAudioFrameClassification,
}


@dataclass(frozen=True)
class Average:
    """What has been averaged.

    Args:
        checkpoints: names of their folders, the best or the newest first.
        by: "best" or "last".
        metric: what "best" was judged by, its name in train_log.jsonl; see `badness`.
        values: of that metric, one per checkpoint.
    """

    checkpoints: list[str]
    by: str
    metric: str | None = None
    values: list[float] | None = None


def average_checkpoints(
    run_dir: str | Path, output_dir: str | Path, num_checkpoints: int, by: str = "best"
) -> Average:
    """Save the mean of a run's checkpoints as a model folder, with averaging.json beside it, which says of what.

    The state of a quantizer that learns is that of the newest one.

    Args:
        by: "best" takes the checkpoints with the best values of the metric that the run chose its best one by: BLEU of
            translations, WER of transcripts, loss of any other model, on the first of its evaluation splits; "last"
            takes the newest.

    Raises:
        ValueError: too few checkpoints, a folder that is taken, checkpoints of different models.
        FileNotFoundError: no such run, or no record of its evaluations.
    """
    run_dir, output_dir = Path(run_dir), Path(output_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"There is no folder {run_dir}: give the output folder of a run.")
    if (output_dir / CONFIG_FILE).exists():
        raise ValueError(f"{output_dir} already holds a model; choose another --output_dir.")
    if num_checkpoints < 1:
        raise ValueError(f"--num_checkpoints must be at least 1, got {num_checkpoints}.")
    if by not in ("best", "last"):
        raise ValueError(f"--by must be best or last, got {by!r}.")
    average = choose_checkpoints(run_dir, num_checkpoints, by)
    folders = [run_dir / name for name in average.checkpoints]
    newest = max(folders, key=step_of)
    model = load_any_model(newest)
    learned = learned_labels(model)
    fixed = {name for name, _ in model.named_buffers()} - learned.keys()
    model.load_state_dict(mean_of_weights(folders, fixed, learned) | learned)
    save_model(output_dir, model, load_processor(newest))
    write_json(output_dir / AVERAGING_FILE, asdict(average))
    return average


def choose_checkpoints(run_dir: Path, num_checkpoints: int, by: str) -> Average:
    """The newest checkpoints, or the best by the run's own log.

    Raises:
        ValueError: there are fewer, or fewer that the run has evaluated.
        FileNotFoundError: the run left no log or no record of its arguments.
    """
    checkpoints = list_checkpoints(run_dir)[::-1]
    have = ", ".join(folder.name for folder in checkpoints) or "none"
    if len(checkpoints) < num_checkpoints:
        raise ValueError(
            f"{run_dir} has {len(checkpoints)} checkpoints ({have}), {num_checkpoints} are to be averaged. Lower "
            f"--num_checkpoints; a run keeps as many as its --save_total_limit says, one every --save_steps updates."
        )
    if by == "last":
        return Average([folder.name for folder in checkpoints[:num_checkpoints]], by)
    metric = metric_of_run(run_dir, checkpoints[0])
    values = logged_values(run_dir, metric)
    evaluated = sorted(
        (badness(metric, values[step_of(folder)]), -step_of(folder), folder.name)
        for folder in checkpoints
        if step_of(folder) in values
    )
    if len(evaluated) < num_checkpoints:
        raise ValueError(
            f"Of the checkpoints of {run_dir} ({have}) {len(evaluated)} have been evaluated: {LOG_FILE} has no "
            f"{metric} for the others. Lower --num_checkpoints, or take the newest with --by last."
        )
    best = evaluated[:num_checkpoints]
    return Average([name for *_, name in best], by, metric, [values[-step] for _, step, _ in best])


def metric_of_run(run_dir: Path, checkpoint: Path) -> str:
    """Name of the metric that marked the best checkpoint of the run while it went on."""
    arguments = RunArguments.read(run_dir)
    splits = arguments.eval_splits
    if not splits:
        raise ValueError(f"{run_dir} was never evaluated (no --eval_split_name): take the newest with --by last.")
    of_text = "bleu" if arguments.get("task") == TRANSLATE else "wer"
    return str(MetricName.among(splits, splits[0], of_text if writes_text(checkpoint) else "loss"))


def logged_values(run_dir: Path, metric: str) -> dict[int, float]:
    """The finite values of a metric in a run's log, by update."""
    return {step: values[metric] for step, values in read_log(run_dir) if math.isfinite(values.get(metric, math.nan))}


def learned_labels(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state of quantizers that learn, which is no mean: entry 7 of two codebooks may stand for two sounds."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, module in model.named_modules()
        if getattr(module, "learns", False)
        for name, tensor in module.state_dict().items()
    }


def mean_of_weights(
    folders: Sequence[Path], buffers: set[str], left_out: Container[str] = ()
) -> dict[str, torch.Tensor]:
    """The mean of every tensor over some checkpoints, summed in float64, in the tensor's own type.

    One tensor of each checkpoint is in memory at a time, and the means.

    Args:
        buffers: names of the tensors that do not learn, such as codebooks; they and all that is not floating point
            must be equal everywhere.
        left_out: names of tensors that no mean is made of.

    Raises:
        ValueError: names, shapes or fixed tensors differ: the checkpoints are not of one run.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(_open_weights(folder)) for folder in folders]
        for file, folder in zip(files, folders, strict=True):
            if different := set(file.keys()) ^ set(files[0].keys()):
                raise ValueError(
                    f"{folder} and {folders[0]} are not of one model: only one of them has {min(different)}."
                )
        means = {}
        for name in files[0].keys():  # noqa: SIM118 - not a dict
            if name in left_out:
                continue
            first = files[0].get_tensor(name)
            fixed = name in buffers or not first.is_floating_point()
            total = first.double()
            for file, folder in zip(files[1:], folders[1:], strict=True):
                tensor = file.get_tensor(name)
                if tensor.shape != first.shape or (fixed and not torch.equal(tensor, first)):
                    raise ValueError(
                        f"{folder} and {folders[0]} are not of one run: {name} differs, "
                        + ("which never changes in training." if fixed else f"{tensor.shape} and {first.shape}.")
                    )
                total += tensor.double()
            means[name] = first if fixed else (total / len(files)).to(first.dtype)
        return means


def load_any_model(folder: Path) -> PreTrainedModel:
    """A saved model with the head that it was saved with."""
    name = (AutoConfig.from_pretrained(folder).architectures or [""])[0]
    return _HEADS.get(name.rpartition("For")[2], AutoModel).from_pretrained(folder)


def load_processor(folder: Path) -> Saveable:
    """The processor of a model that writes text, the feature extractor of any other."""
    return Wav2Vec2Processor.from_pretrained(folder) if writes_text(folder) else load_feature_extractor(folder)


def _open_weights(folder: Path) -> "safe_open":
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {WEIGHTS_FILE}; only checkpoints whose weights are one file can be averaged."
        )
    return safe_open(file, framework="pt")
