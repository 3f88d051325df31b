"""A chart as SVG, with nothing but strings: lines over a logarithmic axis."""

from collections.abc import Callable
from math import log10

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 300, 210, 52, 36, 30
COLOURS = ["#2563eb", "#d97706", "#059669", "#7c3aed"]
Series = dict[str, list[tuple[float, float]]]


def short(number: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def panel(x: int, title: str, below: str, series: Series, *, from_zero: bool) -> str:
    """One diagram. y from zero, or logarithmic as x always is."""
    xs = [log10(a) for line in series.values() for a, _ in line]
    ys = [b for line in series.values() for _, b in line]
    scale: Callable[[float], float] = (lambda v: v) if from_zero else log10
    low_x, high_x = min(xs), max(xs)
    high = scale(max(ys)) * (1.08 if from_zero else 1) + (0 if from_zero else 0.1)
    low = 0.0 if from_zero else scale(min(ys)) - 0.1
    right, bottom = WIDTH - 14, HEIGHT - BOTTOM

    def at_x(value: float) -> float:
        return LEFT + (log10(value) - low_x) / max(high_x - low_x, 1e-9) * (right - LEFT)

    def at_y(value: float) -> float:
        return bottom - (scale(value) - low) / max(high - low, 1e-9) * (bottom - TOP)

    parts = [f'<g transform="translate({x},0)"><text x="{LEFT}" y="16" class="t">{title}</text>']
    for step in range(5):
        place = low + (high - low) * step / 4
        value = place if from_zero else 10**place
        y = at_y(value) if value or from_zero else bottom
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="g"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="e">{short(value)}</text>')
    for value in sorted({a for line in series.values() for a, _ in line}):
        if log10(value) % 1 < 1e-9 or value in (10**low_x, 10**high_x):
            parts.append(
                f'<text x="{at_x(value):.1f}" y="{bottom + 14}" class="m">{short(value)}</text>'
            )
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 6}" class="m">{below}</text>')
    for colour, (name, line) in zip(COLOURS, series.items(), strict=False):
        points = " ".join(f"{at_x(a):.1f},{at_y(b):.1f}" for a, b in sorted(line))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{at_x(a):.1f}" cy="{at_y(b):.1f}" r="2.5" fill="{colour}"/>'
            f"<title>{name}</title>"
            for a, b in line
        ]
    for place, (colour, name) in enumerate(zip(COLOURS, series, strict=False)):
        y = TOP + 12 + 14 * place
        parts.append(f'<rect x="{LEFT + 8}" y="{y - 8}" width="10" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 22}" y="{y - 3}" class="l">{name}</text>')
    return "".join(parts) + "</g>"


def svg(panels: list[tuple[str, str, Series, bool]], columns: int = 3) -> str:
    """Panels (title, what x is, lines, whether y begins at zero) in rows."""
    rows = (len(panels) + columns - 1) // columns
    style = (
        "text{font:11px system-ui,sans-serif;fill:#475569}.t{font-weight:600;fill:#0f172a}"
        ".e{text-anchor:end}.m{text-anchor:middle}.l{font-size:10px}.g{stroke:#e2e8f0}"
    )
    body = "".join(
        f'<g transform="translate(0,{place // columns * HEIGHT})">'
        + panel(place % columns * WIDTH, title, below, series, from_zero=zero)
        + "</g>"
        for place, (title, below, series, zero) in enumerate(panels)
    )
    width, height = columns * WIDTH, rows * HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    )
