"""Label quality against counting in loops, phones of frames."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_speech_ssl.probing import IGNORED_PHONE_ID, LabelQuality, phone_ids_at_frames

# --- label quality


def slow_quality(labels, phones):
    total = len(labels)
    joint = {pair: n / total for pair, n in Counter(zip(phones, labels, strict=True)).items()}
    p_phone = {y: sum(p for (y2, _), p in joint.items() if y2 == y) for y in set(phones)}
    p_label = {z: sum(p for (_, z2), p in joint.items() if z2 == z) for z in set(labels)}
    information = sum(p * np.log(p / (p_phone[y] * p_label[z])) for (y, z), p in joint.items())
    return {
        "phone_purity": sum(max(p for (_, z2), p in joint.items() if z2 == z) for z in p_label),
        "cluster_purity": sum(max(p for (y2, _), p in joint.items() if y2 == y) for y in p_phone),
        "pnmi": information / -sum(p * np.log(p) for p in p_phone.values()),
    }


def quality(labels, phones, num_phones=50):
    measure = LabelQuality(num_phones)
    measure.update(labels, phones)
    return measure.compute()


@pytest.mark.parametrize("num_batches", [1, 7])
@pytest.mark.parametrize("highest_label", [5, 791_015_624, 2**63 // 50 - 2])
def test_label_quality_equals_counting_in_loops(highest_label, num_batches):
    generator = np.random.default_rng(0)
    phones = generator.integers(0, 50, 700)
    codes = generator.integers(0, highest_label + 1, 40)
    labels = codes[(phones + generator.integers(0, 4, 700)) % 40]  # labels that know something of the phone
    phones[::9] = IGNORED_PHONE_ID
    measure = LabelQuality(50)
    for label_batch, phone_batch in zip(
        np.split(labels.reshape(-1, 1), num_batches), np.split(phones.reshape(-1, 1), num_batches), strict=True
    ):
        measure.update(torch.from_numpy(label_batch), phone_batch)
    result = measure.compute()
    kept = phones != IGNORED_PHONE_ID
    expected = slow_quality(labels[kept].tolist(), phones[kept].tolist())
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert result["num_frames"] == kept.sum() and result["num_labels"] == len(set(labels[kept]))
    assert measure.compute() == result  # computing does not consume


def test_label_quality_at_its_extremes():
    phones = np.array([0, 0, 0, 1, 1, 2])
    known = quality(phones * 131_000_000, phones)
    assert (known["phone_purity"], known["cluster_purity"], known["pnmi"]) == (1.0, 1.0, 1.0)
    constant = quality(np.full(6, 7), phones)
    assert (constant["phone_purity"], constant["cluster_purity"], constant["pnmi"]) == (0.5, 1.0, 0.0)
    own_label_each = quality(np.arange(6), phones)
    assert own_label_each["phone_purity"] == 1.0 and own_label_each["pnmi"] == pytest.approx(1.0)
    assert own_label_each["cluster_purity"] == pytest.approx(3 / 6)


@pytest.mark.parametrize(
    ("labels", "phones", "error", "words"),
    [
        ([1, 2], [0], ValueError, "one shape"),
        ([1.0, 2.0], [0, 1], TypeError, "integers"),
        ([-1, 2], [0, 1], ValueError, "labels of frames"),
        ([2**63 // 50, 2], [0, 1], ValueError, "labels of frames"),
        ([1, 2], [0, 50], ValueError, "phone_ids of frames"),
        ([1, 2], [-100, -100], ValueError, "No frame"),
        ([1, 2], [3, 3], ValueError, "at least two phones"),
    ],
)
def test_label_quality_refuses(labels, phones, error, words):
    with pytest.raises(error, match=words):
        quality(np.array(labels), np.array(phones))


# --- phones of frames


@given(
    st.lists(st.tuples(st.floats(0, 0.1), st.floats(0, 0.3), st.integers(0, 9)), max_size=8),
    st.sampled_from([25.0, 50.0, 100.0]),
    st.sampled_from([None, 0.0175]),
)
@settings(deadline=None)
def test_phone_ids_equal_a_search_in_loops(gaps, frame_rate, first_frame_center):
    starts, ends, ids, now = [], [], [], 0.0
    for gap, duration, phone in gaps:
        starts.append(now + gap)
        ends.append(now + gap + duration)
        ids.append(phone)
        now = ends[-1]
    first = 0.5 / frame_rate if first_frame_center is None else first_frame_center
    expected = []
    for frame in range(60):
        inside = [p for s, e, p in zip(starts, ends, ids, strict=True) if s <= first + frame / frame_rate < e]
        expected.append(inside[0] if inside else IGNORED_PHONE_ID)
    assert phone_ids_at_frames(starts, ends, ids, 60, frame_rate, first_frame_center).tolist() == expected


def test_a_phone_holds_its_start_and_not_its_end():
    # Frames at 0.125, 0.375 and 0.625 s; these are exact in binary.
    assert phone_ids_at_frames([0.125, 0.375], [0.375, 0.5], [7, 8], 3, 4.0).tolist() == [7, 8, IGNORED_PHONE_ID]
    assert phone_ids_at_frames([0.125], [0.375], [7], 3, 4.0).tolist() == [7, IGNORED_PHONE_ID, IGNORED_PHONE_ID]


@pytest.mark.parametrize(
    ("starts", "ends", "ids", "frame_rate", "words"),
    [
        ([0.0], [1.0, 2.0], [1, 2], 50.0, "one length"),
        ([0.0, 0.5], [1.0, 2.0], [1, 2], 50.0, "follow each other"),
        ([1.0, 0.0], [2.0, 1.0], [1, 2], 50.0, "follow each other"),
        ([1.0], [0.5], [1], 50.0, "before its start"),
        ([float("nan")], [0.5], [1], 50.0, "finite"),
        ([0.0], [0.5], [-1], 50.0, "negative"),
        ([0.0], [0.5], [1], 0.0, "frame_rate"),
    ],
)
def test_phone_ids_refuse(starts, ends, ids, frame_rate, words):
    with pytest.raises(ValueError, match=words):
        phone_ids_at_frames(starts, ends, ids, 10, frame_rate)
