"""How much pretraining labels know of phones: phone purity, cluster purity and PNMI as HuBERT defines them.

Hsu et al. 2021, HuBERT, arXiv 2106.07447.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

IGNORED_PHONE_ID = -100
"""Phone id of frames that do not count: padding, and frames that lie in no phone."""

_INT64_MAX = np.iinfo(np.int64).max
# Alignments are written in rounded seconds: neighbors may overlap by the rounding, far less than one 10 ms frame.
_ROUNDING_SECONDS = 1e-3


def phone_ids_at_frames(
    starts: Sequence[float] | NDArray[np.float64],
    ends: Sequence[float] | NDArray[np.float64],
    phone_ids: Sequence[int] | NDArray[np.int64],
    num_frames: int,
    frame_rate: float,
    first_frame_center: float | None = None,
) -> NDArray[np.int64]:
    """The phone at the center of each frame: frame t has the phone with start <= first_frame_center + t / rate < end.

    Args:
        starts, ends: phone times in seconds, in order of time.
        phone_ids: (phones,) one id >= 0 for each phone.
        num_frames: number of labels of the utterance.
        frame_rate: labels per second: 100 / frame_stacking for 10 ms frames.
        first_frame_center: seconds; half a frame unless given. Windows longer than the frame shift lie later: without
            center padding, the middle of the first label is ((frame_stacking - 1) * 10 ms + 25 ms) / 2.

    Returns:
        (num_frames,) int64, `IGNORED_PHONE_ID` where a frame's center lies in no phone.

    Raises:
        ValueError: if the lengths differ, times are not finite or not in order, phones overlap, an id is negative,
            or the rate or the number of frames is no such thing.
    """
    start_times, end_times = np.asarray(starts, dtype=np.float64), np.asarray(ends, dtype=np.float64)
    ids = _as_int64(phone_ids, "phone_ids")
    _check_phone_times(start_times, end_times, ids)
    if not (np.isfinite(frame_rate) and frame_rate > 0) or num_frames < 0:
        raise ValueError(
            f"frame_rate must be positive (labels per second) and num_frames at least 0, got {frame_rate} and "
            f"{num_frames}."
        )
    if len(ids) == 0:
        return np.full(num_frames, IGNORED_PHONE_ID, dtype=np.int64)
    first = 0.5 / frame_rate if first_frame_center is None else first_frame_center
    centers = first + np.arange(num_frames) / frame_rate
    phone = np.searchsorted(start_times, centers, side="right") - 1  # the last phone that has begun; -1: none yet
    inside = (phone >= 0) & (centers < end_times[phone])
    return np.where(inside, ids[phone], IGNORED_PHONE_ID)


def _check_phone_times(starts: NDArray[np.float64], ends: NDArray[np.float64], ids: NDArray[np.int64]) -> None:
    if starts.ndim != 1 or not starts.shape == ends.shape == ids.shape:
        raise ValueError(
            "starts, ends and phone_ids must be flat and of one length, one entry for each phone, got shapes "
            f"{starts.shape}, {ends.shape} and {ids.shape}."
        )
    if not (np.isfinite(starts).all() and np.isfinite(ends).all()):
        raise ValueError("Phone times must be finite seconds, got NaN or infinity among them.")
    if (ends < starts).any():
        index = int(np.flatnonzero(ends < starts)[0])
        raise ValueError(f"Phone {index} ends at {ends[index]} s, before its start at {starts[index]} s.")
    early = np.flatnonzero((starts[1:] < starts[:-1]) | (starts[1:] < ends[:-1] - _ROUNDING_SECONDS))
    if len(early):
        index = int(early[0])
        raise ValueError(
            f"Phones must follow each other in time: phone {index + 1} starts at {starts[index + 1]} s, but phone "
            f"{index} lasts from {starts[index]} s to {ends[index]} s."
        )
    if (ids < 0).any():
        raise ValueError(f"Phone ids must not be negative, got {int(ids.min())}.")


class LabelQuality:
    r"""Phone purity, cluster purity and PNMI of frame labels, accumulated over batches.

    With p(y, z) the share of frames that carry phone y and label z (HuBERT, arXiv 2106.07447):

    - phone purity   = sum_z max_y p(y, z): the frame accuracy of naming each label's commonest phone;
    - cluster purity = sum_y max_z p(y, z): the share of each phone's frames in its commonest label;
    - PNMI           = I(y; z) / H(y): the share of the uncertainty about the phone that the label takes away.

    Only pairs that occur are stored, so memory grows with the data and not with the codebook. Read phone purity and
    PNMI beside `num_labels` and `num_frames`: where nearly every frame has a label of its own, both are near 1
    whatever the labels know, and cluster purity is near 0.

    Args:
        num_phones: phone ids lie in [0, num_phones).
    """

    def __init__(self, num_phones: int) -> None:
        if num_phones < 1:
            raise ValueError(f"num_phones must be at least 1, got {num_phones}.")
        self.num_phones = num_phones
        # A pair (label, phone) is the key label * num_phones + phone. Keys are sorted and distinct.
        self._keys = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._num_pending = 0

    def update(self, labels: torch.Tensor | ArrayLike, phone_ids: torch.Tensor | ArrayLike) -> None:
        """Count a batch.

        Args:
            labels: integers of any shape, >= 0 where the frame counts; call once for each codebook's own measure.
            phone_ids: integers of the same shape; frames with `IGNORED_PHONE_ID` do not count, whatever their label.

        Raises:
            ValueError: if the shapes differ, or a label or a phone id is out of range.
            TypeError: if either is not of integers.
        """
        label_array, phone_array = _as_int64(labels, "labels"), _as_int64(phone_ids, "phone_ids")
        if label_array.shape != phone_array.shape:
            raise ValueError(
                f"labels {label_array.shape} and phone_ids {phone_array.shape} must have one shape: one phone for "
                "each label (phone_ids_at_frames gives them at the labels' frame rate)."
            )
        counted = phone_array != IGNORED_PHONE_ID
        label_array, phone_array = label_array[counted], phone_array[counted]
        if label_array.size == 0:
            return
        self._check_range("phone_ids", phone_array, self.num_phones - 1)
        self._check_range("labels", label_array, _INT64_MAX // self.num_phones - 1)
        keys, counts = np.unique(label_array * self.num_phones + phone_array, return_counts=True)
        self._pending.append((keys, counts.astype(np.int64)))
        self._num_pending += len(keys)
        if self._num_pending > len(self._keys):  # merging at each doubling keeps the total cost near linear
            self._merge()

    def compute(self) -> dict[str, float | int]:
        """The measures over all frames counted so far.

        Returns:
            "phone_purity", "cluster_purity", "pnmi", each in [0, 1]; and what they rest on: "num_frames", "num_labels"
            (different labels seen), "num_phones" (different phones seen).

        Raises:
            ValueError: if no frame was counted, or all frames are of one phone (then H(y) = 0: PNMI has no value).
        """
        self._merge()
        if len(self._keys) == 0:
            raise ValueError("No frame was counted: call update with at least one frame that lies in a phone.")
        labels, label_index = np.unique(self._keys // self.num_phones, return_inverse=True)
        phones, phone_index = np.unique(self._keys % self.num_phones, return_inverse=True)
        if len(phones) == 1:
            raise ValueError(
                f"PNMI needs frames of at least two phones, got only phone {int(phones[0])}: check the phone times."
            )
        num_frames = int(self._counts.sum())
        joint = self._counts / num_frames
        p_label = np.bincount(label_index, weights=self._counts) / num_frames
        p_phone = np.bincount(phone_index, weights=self._counts) / num_frames
        information = float((joint * np.log(joint / (p_label[label_index] * p_phone[phone_index]))).sum())
        entropy = -float((p_phone * np.log(p_phone)).sum())
        return {
            "phone_purity": _sum_of_group_maxima(self._counts, label_index, len(labels)) / num_frames,
            "cluster_purity": _sum_of_group_maxima(self._counts, phone_index, len(phones)) / num_frames,
            "pnmi": min(max(information / entropy, 0.0), 1.0),  # rounding alone can step outside
            "num_frames": num_frames,
            "num_labels": len(labels),
            "num_phones": len(phones),
        }

    def shuffled(self, seed: int = 0) -> LabelQuality:
        """The control: as many of each label and of each phone, the labels dealt out to the frames at random.

        Purity and PNMI rise with the number of different labels whatever the labels know, and this is what they rise
        to: labels know what they score above it. It takes 16 bytes a frame while it is made.
        """
        self._merge()
        keys = np.repeat(self._keys, self._counts)
        control = LabelQuality(self.num_phones)
        control.update(np.random.default_rng(seed).permutation(keys // self.num_phones), keys % self.num_phones)
        return control

    def _merge(self) -> None:
        if not self._pending:
            return
        all_keys = np.concatenate([self._keys, *(keys for keys, _ in self._pending)])
        all_counts = np.concatenate([self._counts, *(counts for _, counts in self._pending)])
        order = np.argsort(all_keys, kind="stable")
        all_keys, all_counts = all_keys[order], all_counts[order]
        first_of_key = np.flatnonzero(np.diff(all_keys, prepend=-1))
        self._keys = all_keys[first_of_key]
        self._counts = np.add.reduceat(all_counts, first_of_key)
        self._pending, self._num_pending = [], 0

    @staticmethod
    def _check_range(name: str, values: NDArray[np.int64], highest: int) -> None:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > highest:
            raise ValueError(
                f"{name} of frames that count must lie in [0, {highest}], got values from {low} to {high}; mark "
                f"frames that do not count with phone id {IGNORED_PHONE_ID}."
            )


def _sum_of_group_maxima(counts: NDArray[np.int64], group: NDArray[np.intp], num_groups: int) -> int:
    maxima = np.zeros(num_groups, dtype=np.int64)
    np.maximum.at(maxima, group, counts)
    return int(maxima.sum())


def _as_int64(values: torch.Tensor | ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}.")
    return array.astype(np.int64)
