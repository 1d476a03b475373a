"""Probing: what the frozen layers and the labels of a speech encoder know of phones."""

from .label_quality import IGNORED_PHONE_ID, LabelQuality, phone_ids_at_frames

__all__ = ["IGNORED_PHONE_ID", "LabelQuality", "phone_ids_at_frames"]
