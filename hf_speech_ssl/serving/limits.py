"""Who may use the server, and how much of it."""

from __future__ import annotations

import hmac
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

_MOST_CLIENTS = 10_000  # whose requests are remembered


@dataclass(frozen=True)
class Limits:
    """What one server takes.

    Attributes:
        max_streams: live streams at the same time.
        max_seconds: of audio in a live stream's connection or in a file.
        max_seconds_waiting: of a stream's audio that has not been transcribed; the server reads no more until then.
        idle_seconds: after which a connection that sends nothing is closed.
        requests_per_minute: connections and files of one client; any number if absent.
        max_megabytes: of an uploaded file.
        max_files: that are transcribed or wait for it.
    """

    max_streams: int = 64
    max_seconds: float = 3600.0
    max_seconds_waiting: float = 5.0
    idle_seconds: float = 60.0
    requests_per_minute: int | None = None
    max_megabytes: float = 100.0
    max_files: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")


class Refused(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        code: a word for programs.
        message: a sentence for people.
    """

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class Access:
    """Knows the tokens, and counts the requests of each client in the last minute.

    Args:
        tokens: any of which opens the server; it is open to everybody if there are none.
        requests_per_minute: of one client.
    """

    def __init__(self, tokens: tuple[str, ...] = (), requests_per_minute: int | None = None):
        self.tokens, self.requests_per_minute = tokens, requests_per_minute
        self._requests: dict[str, deque[float]] = {}

    def check(self, token: str | None, address: str) -> None:
        """Let a request pass, and count it.

        Args:
            token: that came with it.
            address: of the client, by whom requests are counted where there are no tokens.

        Raises:
            Refused: 401 without a right token, 429 after too many requests.
        """
        # All are compared, each in constant time, so that the time tells nothing of a token.
        known = [one for one in self.tokens if hmac.compare_digest(one.encode(), (token or "").encode())]
        if self.tokens and not known:
            raise Refused(401, "invalid_api_key", "A token is needed: send the header 'Authorization: Bearer TOKEN'.")
        if self.requests_per_minute is not None:
            self._count(known[0] if known else address, self.requests_per_minute)

    def _count(self, client: str, most: int) -> None:
        now = time.monotonic()
        if client not in self._requests and len(self._requests) >= _MOST_CLIENTS:
            self._requests = {one: times for one, times in self._requests.items() if now - times[-1] < 60}
        times = self._requests.setdefault(client, deque(maxlen=most))
        if len(times) == most and now - times[0] < 60:
            raise Refused(429, "rate_limit_exceeded", f"{most} requests a minute are served; try again in a minute.")
        times.append(now)


def read_tokens(path: str | None) -> tuple[str, ...]:
    """The tokens of a file, one a line; empty lines and those that begin with # are none.

    Raises:
        OSError: the file cannot be read. ValueError: there is no token in it.
    """
    if path is None:
        return ()
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise ValueError(f"{path} holds no token; write one a line, or leave out --tokens_file.")
    return tokens
