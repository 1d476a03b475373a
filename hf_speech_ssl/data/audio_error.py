"""Why audio cannot be used, and the count of the files that were left out for it."""

import logging
from collections import Counter
from threading import Lock

logger = logging.getLogger(__name__)


class AudioError(ValueError):
    """Audio that cannot be used.

    Attributes:
        name: the file, as the user knows it.
        reason: one of "empty", "truncated", "unread rest", "not audio", "missing", "silent", "not finite",
            "too short", "too long", "too loud", "bad array", "bad segment"; reports count by it. Data sets
            add "no transcript".
        detail: what came, what is needed and what to do.
    """

    def __init__(self, name: str, reason: str, detail: str) -> None:
        super().__init__(f"{name}: {reason}: {detail}")
        self.name = name
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["AudioError"], tuple[str, str, str]]:
        return type(self), (self.name, self.reason, self.detail)


class SkippedAudio:
    """Counts the files that were left out by reason, and warns about each of them once."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._lock = Lock()

    def add(self, error: AudioError) -> None:
        """Count a file and warn, unless this has been done in an earlier epoch."""
        with self._lock:
            known = error.name in self._reasons
            self._reasons[error.name] = error.reason
        if not known:
            logger.warning("Skipped %s", error)

    @property
    def by_reason(self) -> dict[str, int]:
        """Number of files for each reason."""
        with self._lock:
            return dict(Counter(self._reasons.values()))

    def __len__(self) -> int:
        return len(self._reasons)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.by_reason.items()))
        return f"{len(self)} audio files skipped" + (f": {counts}" if counts else "")
