"""How the work of a function grows with its input.

What strangers write (a request, a header, an event of another program) may be long; whoever
reads it has to take time linear in its length, since a worker's other clients wait meanwhile.
"""

import time
from collections.abc import Callable
from typing import TypeVar

Input = TypeVar("Input")

TIMES = 8
"""From the small input to the large one. Linear work grows as much, quadratic work by 64."""
LIMIT = 3 * TIMES
ENOUGH = 2_000_000
"""Nanoseconds that the small input's work takes at least, by repeating it: the clock has steps."""


def growth(make: Callable[[int], Input], work: Callable[[Input], object], size: int) -> float:
    """By what the work is multiplied when the input is `TIMES` as long.

    Measured in processor time of this thread alone, which a busy machine does not lengthen, and as
    the least of several rounds. `make` gives an input of a size that `work` is to take in.
    """
    small, large = make(size), make(TIMES * size)
    repeat = 1
    while _spent(work, small, repeat) < ENOUGH:
        repeat *= 2
        if repeat > 4096:
            break
    few = min(_spent(work, small, repeat) for _ in range(5)) / repeat
    # Work that grows too much need not be waited for more than once.
    many = float(_spent(work, large, 1))
    if many > LIMIT * few:
        many = min([many, *(_spent(work, large, 1) for _ in range(4))])
    return many / max(few, 1.0)


def _spent(work: Callable[[Input], object], given: Input, repeat: int) -> int:
    began = time.thread_time_ns()
    for _ in range(repeat):
        work(given)
    return time.thread_time_ns() - began
