"""How long training windows are drawn, and what that makes of the learning rate (Merity et al. 2018, sec. 4.1)."""

from __future__ import annotations

from statistics import NormalDist

from lm.config.schema import DataConfig

# Variable windows: the base is halved with this probability, ...
HALF_PROBABILITY = 0.05
# ... lengths scatter around it with this standard deviation, ...
LENGTH_SD = 5.0
# ... and none is drawn shorter than this.
MIN_LENGTH = 5
# A mean factor on the learning rate that deserves a word; it is 0.96 to 0.97 at the published 35 and 70.
_FAR = 1.1


def mean_rate_factor(bptt: int, max_delta: int) -> float:
    """Mean of what variable windows multiply the learning rate by: their length as drawn, over `bptt`."""
    longest = bptt + max_delta
    mean = 0.0
    for base, weight in ((bptt / 2, HALF_PROBABILITY), (bptt, 1 - HALF_PROBABILITY)):
        lengths = NormalDist(base, LENGTH_SD)
        below = 0.0
        nearly_all = range(max(MIN_LENGTH, int(base - 8 * LENGTH_SD)), int(base + 8 * LENGTH_SD) + 2)
        for length in nearly_all:
            up_to = lengths.cdf(length + 1)
            mean += weight * (up_to - below) * min(length, longest)
            below = up_to
    return mean / bptt


def windows_warning(config: DataConfig) -> str:
    """What a user should know who asks for windows so short that the learning rate is far from the one given."""
    if not config.variable_bptt or (factor := mean_rate_factor(config.bptt, config.max_seq_len_delta)) < _FAR:
        return ""
    return (
        f"--bptt {config.bptt}: drawn windows have at least {MIN_LENGTH} tokens, and the learning rate scales with "
        f"them: times {factor:.1f} on average; --no-variable-bptt gives windows of {config.bptt} at the rate itself"
    )
