"""What was asked for, and whether it was reached: one line each."""

from benchmarks.compare import BURSTS, MANY, SINGLES, Results, Work
from benchmarks.contestants import BETTER_NAME, FLOOR_NAME, HYBRID, NCHAN_NAME
from benchmarks.own import Figure

RATIOS = [
    (BURSTS, NCHAN_NAME, 8.0),
    (BURSTS, BETTER_NAME, 4.0),
    (SINGLES, NCHAN_NAME, 1.2),
    (MANY, NCHAN_NAME, 1.2),
    (SINGLES, FLOOR_NAME, 0.8),
    (MANY, FLOOR_NAME, 0.8),
]
"""Deliveries a second as a multiple of another's."""
MEMORY_KB = 15


def ratio_targets(results: Results) -> list[Figure]:
    return [
        found
        for work, other, asked in RATIOS
        if (found := _ratio(results, work, other, asked)) is not None
    ]


def _ratio(results: Results, work: Work, other: str, asked: float) -> Figure | None:
    speed = results.middle(HYBRID.name, work, "per_second")
    theirs = results.middle(other, work, "per_second")
    cost = results.middle(HYBRID.name, work, "cpu_us")
    theirs_cost = results.middle(other, work, "cpu_us")
    if not (speed and theirs and cost and theirs_cost):
        return None
    ratio = speed / theirs
    return Figure(
        f"{work.name}: throughput as a multiple of {other}'s",
        f"{ratio:.2f} x ({theirs_cost / cost:.2f} x by CPU time of the server)",
        f"at least {asked} x",
        ratio >= asked,
    )


def other_targets(results: Results) -> list[Figure]:
    """Latency and memory, which are compared as well."""
    found = []
    ours = results.middle(HYBRID.name, SINGLES, "p99")
    theirs = results.middle(NCHAN_NAME, SINGLES, "p99")
    if ours and theirs:
        found.append(
            Figure(
                "p99 latency of a single event to 1,000 streams",
                f"{ours * 1e3:.1f} ms; {NCHAN_NAME}'s is {theirs * 1e3:.1f} ms",
                f"below {NCHAN_NAME}'s",
                ours < theirs,
            )
        )
    memory = results.memory_kb(HYBRID.name)
    if memory is not None:
        found.append(
            Figure(
                "memory of an idle stream",
                f"{memory:.1f} KB",
                f"at most {MEMORY_KB} KB",
                memory <= MEMORY_KB,
            )
        )
    return found


def as_table(figures: list[Figure]) -> list[list[str]]:
    table = [["what", "asked", "measured", "reached"]]
    for figure in figures:
        reached = "" if figure.reached is None else "yes" if figure.reached else "**no**"
        table.append([figure.name, figure.target, figure.value, reached])
    return table
