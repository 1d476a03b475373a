"""Batches: order, bucketing, equal shares of the processes, resume, bad files, threads."""

import io
import json
import logging
import threading
from dataclasses import asdict

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset

from hf_speech_ssl.data.audio import SAMPLING_RATE, AudioError
from hf_speech_ssl.data.batching import DataPosition, SpeechBatches
from hf_speech_ssl.data.planning import padding_share, plan_steps
from hf_speech_ssl.data.rows import IndexedRows, RowCursor, StreamedRows

NUM_UTTERANCES = 61


def encode(waveform: np.ndarray) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLING_RATE, format="WAV")
    return {"path": None, "bytes": buffer.getvalue()}


def make_dataset(count: int = NUM_UTTERANCES, **columns: list) -> Dataset:
    """Noise of 0.1 to 1 s; the first sample and the text tell the utterance's number."""
    generator = np.random.default_rng(1)
    audio = []
    for number in range(count):
        waveform = generator.uniform(-0.5, 0.5, int(generator.uniform(0.1, 1.0) * SAMPLING_RATE))
        waveform[0] = number / 1024
        audio.append(encode(waveform))
    return Dataset.from_dict({"audio": audio, "text": [str(number) for number in range(count)], **columns})


def make_batches(dataset: Dataset, streaming: bool = False, **options: object) -> SpeechBatches:
    """Small windows, so that an epoch has several."""
    source = dataset.to_iterable_dataset(num_shards=min(6, len(dataset))) if streaming else dataset
    return SpeechBatches(
        source, **{"batch_seconds": 2.0, "window_batches": 4, "text_column": "text", "max_seconds": 5.0, **options}
    )


def order(batches) -> list[list[str]]:
    return [batch.texts for batch in batches]


def flat(batches) -> list[str]:
    return [text for batch in batches for text in batch.texts if batch.num_examples]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


def test_plan_is_a_partition_within_the_bound() -> None:
    generator = np.random.default_rng(0)
    for processes in (1, 2, 3, 5):
        for count in (0, 1, 2, 7, 100):
            seconds = generator.uniform(1, 20, count).tolist()
            steps = plan_steps(seconds, batch_seconds=40.0, num_processes=processes, generator=generator)
            batches = [batch for step in steps for batch in step]
            assert sorted(i for batch in batches for i in batch) == list(range(count))
            assert all(len(step) == processes for step in steps)
            assert all(max(seconds[i] for i in batch) * len(batch) <= 40.0 for batch in batches if len(batch) > 1)


def test_steps_come_shuffled_and_otherwise_longest_first() -> None:
    seconds = np.random.default_rng(0).uniform(1, 20, 100).tolist()
    for generator in (None, np.random.default_rng(0)):
        steps = plan_steps(seconds, batch_seconds=40.0, num_processes=2, generator=generator)
        longest = [max(seconds[i] for batch in step for i in batch) for step in steps]
        assert (longest == sorted(longest, reverse=True)) == (generator is None)


def test_an_utterance_beyond_the_bound_is_a_batch_of_its_own() -> None:
    steps = plan_steps([1.0, 9.0, 1.0], batch_seconds=4.0)
    assert steps == [[[1]], [[0, 2]]]


@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize("batch_seconds", [60.0, 320.0])
def test_padding_of_speech_like_lengths_is_under_ten_percent(batch_seconds: float, processes: int) -> None:
    """Log-normal lengths around 6 s, cut to 1 to 20 s, in windows of 32 batches per process as in training."""
    generator = np.random.default_rng(0)
    for _ in range(5):
        seconds: list[float] = []
        while sum(seconds) < 32 * batch_seconds * processes:
            seconds.append(float(np.clip(generator.lognormal(np.log(6.0), 0.7), 1.0, 20.0)))
        steps = plan_steps(seconds, batch_seconds=batch_seconds, num_processes=processes, generator=generator)
        assert padding_share(steps, seconds) < 0.10
        unsorted = [[list(range(i, min(i + 8, len(seconds))))] for i in range(0, len(seconds), 8)]
        assert padding_share(unsorted, seconds) > 0.3  # what batches in any order would cost


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_hold_the_audio_the_lengths_and_the_texts(dataset: Dataset, streaming: bool) -> None:
    for batch in make_batches(dataset, streaming).epoch(0):
        assert batch.waveforms.dtype == torch.float32 and batch.lengths.dtype == torch.int64
        assert batch.waveforms.shape == (batch.num_examples, batch.lengths.max())
        assert batch.waveforms.numel() / SAMPLING_RATE <= 2.0 + 1e-6
        assert batch.seconds == pytest.approx(batch.lengths.sum().item() / SAMPLING_RATE)
        for waveform, length, text, name in zip(batch.waveforms, batch.lengths, batch.texts, batch.names, strict=True):
            cell = dataset[int(text)]["audio"]
            expected, _ = soundfile.read(io.BytesIO(cell["bytes"]), dtype="float32")
            np.testing.assert_array_equal(waveform[:length].numpy(), expected)
            assert not waveform[length:].any()
            assert name.startswith("example ")


@pytest.mark.parametrize("streaming", [False, True])
def test_order_is_fixed_by_seed_and_epoch(dataset: Dataset, streaming: bool) -> None:
    batches = make_batches(dataset, streaming)
    first = order(batches.epoch(0))
    assert order(batches.epoch(0)) == first
    assert order(make_batches(dataset, streaming).epoch(0)) == first
    assert order(batches.epoch(1)) != first
    assert order(make_batches(dataset, streaming, seed=1).epoch(0)) != first
    for epoch in range(3):
        assert sorted(flat(batches.epoch(epoch)), key=int) == dataset["text"][:]


@pytest.mark.parametrize("streaming", [False, True])
def test_other_utterances_come_together_in_other_epochs(dataset: Dataset, streaming: bool) -> None:
    """Not only the batches of a window are shuffled, but what is in a window: its end is where `rows` first moves."""

    def first_window(seed: int, epoch: int) -> set[str]:
        batches = list(make_batches(dataset, streaming, seed=seed).epoch(epoch))
        end = next(i for i, batch in enumerate(batches) if batch.position.rows > 0)
        return set(flat(batches[: end + 1]))

    assert len({frozenset(first_window(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_threads_do_not_change_the_order(dataset: Dataset, streaming: bool) -> None:
    one = make_batches(dataset, streaming, num_workers=1, prefetch=1)
    many = make_batches(dataset, streaming, num_workers=7, prefetch=9)
    assert order(one.epoch(2)) == order(many.epoch(2))


def test_without_shuffling_every_epoch_is_the_same(dataset: Dataset) -> None:
    batches = make_batches(dataset, shuffle=False)
    assert order(batches.epoch(0)) == order(batches.epoch(1))
    lengths = [batch.waveforms.shape[1] for batch in make_batches(dataset, shuffle=False, window_batches=999).epoch(0)]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_an_epoch_in_equal_counts(dataset: Dataset, processes: int) -> None:
    shares = [list(make_batches(dataset, process_index=i, num_processes=processes).epoch(1)) for i in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert sorted((text for share in shares for text in flat(share)), key=int) == dataset["text"][:]
    assert [b.position for b in shares[0]] == [b.position for b in shares[1]]
    for step in zip(*shares, strict=True):  # similar lengths, so that nobody waits
        longest = [batch.waveforms.shape[1] for batch in step]
        assert max(longest) < 4 * min(longest)


@pytest.mark.parametrize("epoch", [0, 3])
def test_steps_are_counted_without_decoding(dataset: Dataset, epoch: int) -> None:
    for process in range(2):
        batches = make_batches(dataset, process_index=process, num_processes=2)
        assert batches.count_steps(epoch) == len(list(batches.epoch(epoch)))


@pytest.mark.parametrize("shards", [1, 6])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_stream(dataset: Dataset, processes: int, shards: int) -> None:
    stream = dataset.to_iterable_dataset(num_shards=shards)
    shares = [
        flat(
            SpeechBatches(
                stream, batch_seconds=2.0, text_column="text", process_index=i, num_processes=processes
            ).epoch(1)
        )
        for i in range(processes)
    ]
    assert sorted((text for share in shares for text in share), key=int) == dataset["text"][:]


def test_more_processes_than_utterances_get_placeholders() -> None:
    dataset = make_dataset(2)
    shares = [list(make_batches(dataset, process_index=i, num_processes=3).epoch(0)) for i in range(3)]
    assert [len(share) for share in shares] == [1, 1, 1]
    (placeholder,) = [share[0] for share in shares if share[0].num_examples == 0]
    assert placeholder.waveforms.shape == (1, SAMPLING_RATE) and placeholder.seconds == 0
    assert placeholder.lengths.tolist() == [SAMPLING_RATE] and placeholder.texts == [""]


@pytest.mark.parametrize("streaming", [False, True])
def test_resume_from_every_position_gives_exactly_the_rest(dataset: Dataset, streaming: bool) -> None:
    whole = list(make_batches(dataset, streaming).epoch(1))
    assert len(whole) > 12
    for done, batch in enumerate(whole, start=1):
        start = DataPosition(**json.loads(json.dumps(asdict(batch.position))))
        rest = make_batches(dataset, streaming).epoch(1, start)
        assert order(rest) == order(whole[done:])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_resume_across_the_end_of_an_epoch(dataset: Dataset, streaming: bool, processes: int) -> None:
    def batches() -> SpeechBatches:
        return make_batches(dataset, streaming, process_index=processes - 1, num_processes=processes)

    per_epoch = [len(order(batches().epoch(epoch))) for epoch in range(3)]
    endless = batches().infinite_batches()
    run = [next(endless) for _ in range(sum(per_epoch))]
    endless.close()
    assert order(run) == [texts for epoch in range(3) for texts in order(batches().epoch(epoch))]
    for done in (0, 1, per_epoch[0] - 1, per_epoch[0], per_epoch[0] + 1, per_epoch[0] + per_epoch[1]):
        resumed = batches().infinite_batches(run[done - 1].position if done else None)
        assert order(next(resumed) for _ in range(len(run) - done)) == order(run[done:])
        resumed.close()


def test_reading_ahead_does_not_move_the_position(dataset: Dataset) -> None:
    batches = make_batches(dataset, prefetch=10)
    running = batches.epoch(0)
    first = next(running)
    assert batches.position == first.position
    running.close()
    assert order(batches.epoch(0, batches.position)) == order(batches.epoch(0))[1:]


def test_a_position_of_other_settings_is_refused(dataset: Dataset) -> None:
    position = next(make_batches(dataset).epoch(0)).position
    with pytest.raises(ValueError, match="--restart_data"):
        make_batches(dataset, batch_seconds=3.0).infinite_batches(position)
    with pytest.raises(ValueError, match="epoch 1 was asked"):
        make_batches(dataset).epoch(1, position)
    assert next(
        make_batches(dataset, batch_seconds=3.0).infinite_batches(DataPosition(epoch=position.epoch))
    ).num_examples


def num_speech_threads() -> int:
    return sum(thread.name.startswith("speech-") for thread in threading.enumerate())


@pytest.mark.parametrize("streaming", [False, True])
def test_stopping_early_leaves_no_threads(dataset: Dataset, streaming: bool) -> None:
    batches = make_batches(dataset, streaming).infinite_batches()
    next(batches)
    assert num_speech_threads() > 0
    batches.close()
    assert num_speech_threads() == 0
    for _ in make_batches(dataset, streaming).epoch(0):
        break  # the loop drops the generator, which closes it
    assert num_speech_threads() == 0


def test_durations_in_a_column_give_the_same_batches_as_headers(dataset: Dataset) -> None:
    seconds = [len(soundfile.read(io.BytesIO(cell["bytes"]))[0]) / SAMPLING_RATE for cell in dataset["audio"]]
    with_column = dataset.add_column("duration", seconds)
    assert order(make_batches(with_column).epoch(0)) == order(make_batches(dataset).epoch(0))
    with pytest.raises(ValueError, match="must hold seconds"):
        list(make_batches(dataset.add_column("duration", [1000 * s for s in seconds])).epoch(0))


class Backwards:
    """A pool whose last task is done first."""

    def map(self, function, tasks):
        return [function(task) for task in list(tasks)[::-1]][::-1]


def test_the_first_usable_row_is_the_one_whose_duration_is_compared_whatever_the_threads_do(dataset: Dataset) -> None:
    dataset = Dataset.from_dict({"audio": dataset["audio"][:5], "duration": [None, 9.0, 9.0, 9.0, 9.0]})
    with pytest.raises(ValueError, match="in example 1,"):
        list(IndexedRows(dataset, "audio", seed=0, shuffle=False).rows(0, RowCursor(), Backwards()))
    right = Dataset.from_dict({"audio": dataset["audio"][:5], "duration": [None, 0.5, 9.0, 9.0, 9.0]})
    rows = IndexedRows(right, "audio", seed=0, shuffle=False).rows(0, RowCursor(), Backwards())
    assert [row.length for row in rows][1:] == [0.5, 9.0, 9.0, 9.0]
    share = {"process_index": 0, "num_processes": 1}
    streamed = StreamedRows(right.to_iterable_dataset(), "audio", seed=0, shuffle=False, **share)
    assert [row.length for row in streamed.rows(0, RowCursor(), Backwards())][1:] == [0.5, 9.0, 9.0, 9.0]


def test_wrong_arguments_say_what_is_needed(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="its columns are"):
        SpeechBatches(dataset, batch_seconds=2.0, text_column="sentence")
    with pytest.raises(TypeError, match="load_corpus"):
        SpeechBatches([1, 2], batch_seconds=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="process_index"):
        SpeechBatches(dataset, batch_seconds=2.0, process_index=2, num_processes=2)
    with pytest.raises(ValueError, match="batch_seconds"):
        SpeechBatches(dataset, batch_seconds=0.0)


def with_bad_files(folder) -> tuple[Dataset, dict[str, str]]:
    """Twenty good utterances, the bad files among them, and the reason of each bad file's path."""
    good = make_dataset(20)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, SAMPLING_RATE)
    writers = {
        "empty": lambda path: path.write_bytes(b""),
        "truncated": lambda path: path.write_bytes(encode(noise)["bytes"][:5000]),
        "not audio": lambda path: path.write_text("no audio here\n" * 99),
        "silent": lambda path: soundfile.write(path, np.zeros(SAMPLING_RATE), SAMPLING_RATE),
        "not finite": lambda path: soundfile.write(path, noise * np.nan, SAMPLING_RATE, subtype="FLOAT"),
        "too short": lambda path: soundfile.write(path, noise[:160], SAMPLING_RATE),
        "too long": lambda path: soundfile.write(path, np.tile(noise, 6), SAMPLING_RATE),
        "missing": lambda path: None,
    }
    reasons = {str(folder / f"{reason.replace(' ', '_')}.wav"): reason for reason in writers}
    for path, reason in reasons.items():
        writers[reason](type(folder)(path))
    audio = good["audio"][:] + [{"path": path, "bytes": None} for path in reasons]
    return Dataset.from_dict({"audio": audio, "text": [*good["text"], *["bad"] * len(reasons)]}), reasons


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_files_are_skipped_with_one_warning_each(tmp_path, caplog, streaming: bool) -> None:
    dataset, reasons = with_bad_files(tmp_path)
    batches = make_batches(dataset, streaming)
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            assert sorted(flat(batches.epoch(epoch)), key=int) == dataset["text"][:20]
    warnings = [record.getMessage() for record in caplog.records if "Skipped" in record.getMessage()]
    assert len(warnings) == len(reasons)
    for path, reason in reasons.items():
        assert sum(f"{path}: {reason}" in warning for warning in warnings) == 1
    assert batches.skipped.by_reason == dict.fromkeys(reasons.values(), 1)
    assert str(batches.skipped).startswith("8 audio files skipped: 1 empty, 1 missing")


def test_bad_files_among_processes_are_counted_once_and_keep_counts_equal(tmp_path) -> None:
    dataset, reasons = with_bad_files(tmp_path)
    shares = [make_batches(dataset, process_index=i, num_processes=2, batch_seconds=1.0) for i in range(2)]
    batches = [list(share.epoch(0)) for share in shares]
    assert len(batches[0]) == len(batches[1])
    assert sum(len(share.skipped) for share in shares) == len(reasons)
    assert sorted(flat(batches[0] + batches[1]), key=int) == dataset["text"][:20]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("bad", range(20, 28))
def test_each_bad_file_stops_the_run_if_asked(tmp_path, bad: int, streaming: bool) -> None:
    dataset, reasons = with_bad_files(tmp_path)
    one_bad = dataset.select([0, 1, bad, 2])
    with pytest.raises(AudioError) as caught:
        list(make_batches(one_bad, streaming, on_bad_audio="raise").epoch(0))
    path, reason = list(reasons.items())[bad - 20]
    assert (caught.value.name, caught.value.reason) == (path, reason)
    assert num_speech_threads() == 0


def test_a_batch_of_bad_files_alone_is_a_placeholder(tmp_path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(SAMPLING_RATE), SAMPLING_RATE)
    dataset = Dataset.from_dict({"audio": [str(tmp_path / "silent.wav")]})
    (batch,) = SpeechBatches(dataset, batch_seconds=2.0).epoch(0)
    assert batch.num_examples == 0 and batch.waveforms.shape == (1, SAMPLING_RATE) and batch.texts is None
    with pytest.raises(ValueError, match="no usable audio .1 audio files skipped: 1 silent"):
        list(SpeechBatches(dataset, batch_seconds=2.0).infinite_batches())


def test_no_audio_at_all_is_an_error_rather_than_an_endless_wait(tmp_path) -> None:
    dataset = Dataset.from_dict({"audio": [str(tmp_path / "missing.wav")]})
    with pytest.raises(ValueError, match="no usable audio"):
        next(SpeechBatches(dataset, batch_seconds=2.0).infinite_batches())


def test_an_utterance_without_transcript_is_skipped_by_name() -> None:
    dataset = make_dataset(3).remove_columns("text").add_column("text", ["a", None, "c"])
    batches = make_batches(dataset)
    assert sorted(flat(batches.epoch(0))) == ["a", "c"]
    assert batches.skipped.by_reason == {"no transcript": 1}


def test_a_stream_of_addresses_is_fetched_and_a_broken_address_skipped(tmp_path) -> None:
    (tmp_path / "good.wav").write_bytes(make_dataset(1)[0]["audio"]["bytes"])
    addresses = [f"file://{tmp_path}/{name}.wav" for name in ("good", "gone")]
    stream = Dataset.from_dict({"audio": addresses}).to_iterable_dataset()
    batches = SpeechBatches(stream, batch_seconds=2.0)
    (batch,) = batches.epoch(0)
    assert batch.names == addresses[:1] and batches.skipped.by_reason == {"missing": 1}
