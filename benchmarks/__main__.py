"""The suite: everybody on the same work, then what only this project is asked. `make bench`.

    python -m benchmarks [--quick] [--only NAME,…] [--repetitions N] [--write]
                         [--skip compare,own,growth]

`--write` puts the figures into docs/performance.md and its chart beside it.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path

from benchmarks import own
from benchmarks.chart import Series, svg
from benchmarks.compare import WORKS, Work, as_text, compare, ratios, rows
from benchmarks.contestants import CONTESTANTS
from benchmarks.machine import BUILD, ROOT, cores, raise_descriptors
from benchmarks.targets import as_table, other_targets, ratio_targets

DOCS = ROOT / "docs"


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    model = next((li.split(":")[1].strip() for li in text.splitlines() if "model name" in li), "?")
    server, client = (min(on) for on in cores())
    return (
        f"{date.today()}, {model.strip()}, {os.cpu_count()} cores (server on core {server},"
        f" load client on core {client}), Linux {platform.release()},"
        f" Python {platform.python_version()}"
    )


def charts(points: list[own.Point]) -> str:
    by_count = [p for p in points if p.pad == 130]
    by_size = [p for p in points if p.streams == 1000]
    workers = sorted({p.workers for p in points})

    def lines(chosen: list[own.Point], x: str, y: str, factor: float = 1) -> Series:
        return {
            f"{n} worker{'s' * (n > 1)}": [
                (getattr(p, x) + (100 if x == "pad" else 0), getattr(p, y) * factor)
                for p in chosen
                if p.workers == n
            ]
            for n in workers
        }

    panels = [
        ("deliveries/s", "streams", lines(by_count, "streams", "per_second"), True),
        ("p99 latency, ms", "streams", lines(by_count, "streams", "p99", 1e3), False),
        ("KB per idle stream", "streams", lines(by_count[1:], "streams", "memory", 1 / 1024), True),
    ]
    if len({p.pad for p in by_size}) > 1:
        panels += [
            ("deliveries/s, 1,000 streams", "bytes", lines(by_size, "pad", "per_second"), True),
            ("MB/s, 1,000 streams", "bytes", lines(by_size, "pad", "bytes_per_second", 1e-6), True),
            ("p99 latency, ms", "bytes", lines(by_size, "pad", "p99", 1e3), False),
        ]
    return svg(panels)


def write(section: str, text: str) -> None:
    """Replace a part of docs/performance.md, between its two marks."""
    path = DOCS / "performance.md"
    begin, end = f"<!-- {section} -->\n", f"<!-- /{section} -->"
    before, _, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small numbers: does it run at all")
    parser.add_argument("--only", default="", help="contestants whose names contain one of these")
    parser.add_argument("--skip", default="", help="of compare, own, growth")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    options = parser.parse_args()
    raise_descriptors()
    skip = options.skip.split(",")
    wanted = [part.lower() for part in options.only.split(",") if part]
    contestants = [c for c in CONTESTANTS if not wanted or any(p in c.name.lower() for p in wanted)]
    quick = options.quick
    works = [Work(w.name, 60, w.burst, 0.2) for w in WORKS[:2]] if quick else WORKS
    print(machine(), flush=True)
    failed = False

    if "compare" not in skip:
        results = compare(contestants, works, 1 if quick else options.repetitions)
        text = "\n\n".join(as_text(t) for t in (rows(results, works), ratios(results, works)))
        if not quick:
            text += "\n\n" + as_text(as_table(ratio_targets(results) + other_targets(results)))
        for name, what in results.missing.items():
            text += f"\n\nMissing: {name}, for want of {what}."
        for name, troubles in results.trouble.items():
            text += f"\n\nFailed, in {len(troubles)} repetitions: {name}: {troubles[-1]}."
            failed = True
        loads = f"{min(results.load):.1f} to {max(results.load):.1f}"
        text += f"\n\n{machine()}; the machine's load was {loads}."
        print(text, flush=True)
        if options.write:
            write("compare", text)

    if "own" not in skip:
        most = 200 if quick else 10_000
        figures = []
        for measure, arguments in (
            (own.targeted, (most, 200 if quick else 5000)),
            (own.bystanders, (most, 0.5 if quick else 10)),
            (own.connects, (150 if quick else 8000,)),
            (own.storm, (most, 20)),
            (own.crowd, (300 if quick else own.room(),)),
            (own.polls, (0.2 if quick else 2.0, 50 if quick else 5000)),
            (own.redis_cost, ((1, 2) if quick else (1, 10, 100), 20 if quick else 3000)),
        ):
            try:
                found = measure(*arguments)
            except Exception as error:
                found = [own.Figure(measure.__name__, f"failed: {type(error).__name__}: {error}")]
                failed = True
            for figure in found:
                print(f"{figure.name}: {figure.value} [{figure.target}]", flush=True)
            figures += found
        if options.write:
            write("own", as_text(as_table(figures)))

    if "growth" not in skip:
        counts = [60, 120] if quick else [100, 300, 1000, 3000, 10_000, own.room()]
        pads = [] if quick else [0, 400, 1000, 4000, 16_000, 65_000]
        points: list[own.Point] = []
        for workers in (1,) if quick else (1, 2):
            try:
                for point in own.growth(counts, pads, workers, 0.2 if quick else 2):
                    print(f"  {point}", file=sys.stderr, flush=True)
                    points.append(point)
            except Exception as error:
                print(f"growth with {workers} workers failed: {type(error).__name__}: {error}")
                failed = True
        table = [
            [
                *("workers", "streams", "padding, bytes", "deliveries/s", "MB/s", "p50 ms"),
                *("p99 ms", "KB per idle stream"),
            ]
        ]
        for p in points:
            table.append(
                [
                    *(str(p.workers), f"{p.streams:,}", f"{p.pad:,}", f"{p.per_second:,.0f}"),
                    *(f"{p.bytes_per_second / 1e6:,.0f}", f"{p.p50 * 1e3:.1f}"),
                    *(f"{p.p99 * 1e3:.1f}", f"{p.memory / 1024:.1f}"),
                ]
            )
        print(as_text(table), flush=True)
        BUILD.mkdir(exist_ok=True)
        (BUILD / "growth.json").write_text(json.dumps([asdict(p) for p in points]))
        if options.write:
            write("growth", as_text(table))
            if points:
                (DOCS / "performance.svg").write_text(charts(points))
    sys.exit(failed)


if __name__ == "__main__":
    main()
