"""A latency histogram: fixed logarithmic buckets, cheap to fill and to add up."""

from collections.abc import Mapping
from math import ceil, log2

BUCKETS_PER_DOUBLING = 4
"""Bounds are 2**0.25 apart, so a quantile is off by at most 19 %."""
SMALLEST = 1e-4
"""Seconds; below this everything is the first bucket."""
BUCKETS = 24 * BUCKETS_PER_DOUBLING
"""Up to about 28 minutes."""


class Histogram:
    """Counts of seconds by bucket. Two of the same shape add up by adding their counts."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.total = 0

    def observe(self, seconds: float, weight: int = 1) -> None:
        """Count `weight` observations of this many seconds; negative ones count as zero."""
        bucket = 0
        if seconds > SMALLEST:
            bucket = min(BUCKETS - 1, ceil(log2(seconds / SMALLEST) * BUCKETS_PER_DOUBLING))
        self.counts[bucket] += weight
        self.total += weight

    def quantile(self, q: float) -> float | None:
        """The upper bound in seconds of the bucket that holds quantile `q` (0..1)."""
        return quantile(self.sparse(), q)

    def sparse(self) -> dict[int, int]:
        """The counts that are not zero, by bucket."""
        return {bucket: count for bucket, count in enumerate(self.counts) if count}


def bound(bucket: int) -> float:
    """The upper bound of a bucket in seconds."""
    return float(SMALLEST * 2 ** (bucket / BUCKETS_PER_DOUBLING))


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """`Histogram.quantile` of sparse counts."""
    rank = max(1, ceil(q * sum(counts.values())))
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return bound(bucket)
    return None
