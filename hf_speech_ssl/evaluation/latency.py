"""How late the words of a live transcript are: emission delays, and the average laggings of simultaneous translation.

AL is that of Ma et al. (arXiv 1810.08398) and LAAL that of Papi et al. (arXiv 2206.05807) as SimulEval 1.1 computes
them, YAAL that of arXiv 2509.17349 as OmniSTEval 0.1 computes it for single utterances. All need the times at which
words came, and nothing of what they are. The formulas stand here because SimulEval 1.1.4 pins tqdm 4.64.1, which
`datasets` refuses, so that it cannot be installed beside this package. `instances` writes what both tools read.
"""

from __future__ import annotations

from collections.abc import Sequence

from .error_rates import align_words


def al(delays: Sequence[float], source: float, num_reference_words: int) -> float | None:
    """Average lagging: as `laal`, with the number of reference words alone, however many came.

    It rewards a translation that is longer than the reference, and is there to compare with older figures.
    """
    if not delays or not num_reference_words:
        return None
    if delays[0] > source:
        return delays[0]
    return _mean_lag(delays, source / num_reference_words, source, including_first_late=True)


def laal(delays: Sequence[float], source: float, num_reference_words: int) -> float | None:
    r"""Length-adaptive average lagging.

        1 / tau sum_{i <= tau} (d_i - (i - 1) X / max(|Y|, |Y*|)),

    tau being the first word that came when all of the source had been heard.

    Args:
        delays: how much of the source had been heard when each word came, in any unit of time; with the time that
            computation took, the lagging is aware of computation.
        source: X, the duration of the source in that unit.
        num_reference_words: words that were said.

    Returns:
        The lagging in that unit; `None` where no word came.
    """
    if not delays:
        return None
    if delays[0] > source:
        return delays[0]
    ideal = source / max(len(delays), num_reference_words)
    return _mean_lag(delays, ideal, source, including_first_late=True)


def yaal(delays: Sequence[float], source: float, num_reference_words: int) -> float | None:
    """Yet another average lagging: as `laal`, over the words that came before the source ended.

    Returns:
        `None` where none did: all that came came from offline recognition, and says nothing on latency.
    """
    if not delays or delays[0] >= source:
        return None
    ideal = source / max(len(delays), num_reference_words)
    return _mean_lag(delays, ideal, source, including_first_late=False)


def emission_delays(
    hypothesis: Sequence[str], times: Sequence[float], reference: Sequence[str], ends: Sequence[float]
) -> list[float]:
    """How long after its end each word came that was recognized.

    Args:
        hypothesis, times: words, and the seconds at which each came.
        reference, ends: words that were said, and the seconds at which each ended.

    Returns:
        Seconds, one for each word of the reference that the hypothesis has at its place.
    """
    delays, said, written = [], 0, 0
    for true, guess in align_words(" ".join(hypothesis), " ".join(reference)):
        if true is not None and true == guess:
            delays.append(times[written] - ends[said])
        said += true is not None
        written += guess is not None
    return delays


def _mean_lag(delays: Sequence[float], ideal: float, source: float, *, including_first_late: bool) -> float:
    """The mean lag behind a translation that writes a word every `ideal`, up to the first word behind the source."""
    late = [place for place, delay in enumerate(delays) if delay >= source]
    count = len(delays) if not late else late[0] + including_first_late
    return sum(delay - place * ideal for place, delay in enumerate(delays[:count])) / count
