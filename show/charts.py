"""Figures as SVG, written by hand: curves over steps, and rows of values with their intervals.

    python -m show.charts > figure.html   # a small page that shows both kinds

A figure is one <figure> element of text; show/page/style.css of the report gives its colours. Names
may come from files: they are escaped, and none can open an element.

    place of a value v on an axis = start + (end - start) · (v - low) / (high - low)
"""

import html
import math
import sys
from collections.abc import Iterable

if {"-h", "--help"} & {*sys.argv}:
    import quick_help  # in the place of torch, which takes seconds to import

from flags import run_command
from runtime import UsageError, printable

MOST_POINTS = 400  # of a curve: the figure is not wider in pixels
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 480, 58, 468, 12, 190  # of a figure, in SVG's units


def escape(text: str) -> str:
    """Text as HTML shows it, without characters that could hide or turn round what is shown."""
    return html.escape(printable(text))


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `most` of them: steps of 1, 2 or 5."""
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * size for size in (1, 2, 5, 10) if unit * size >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def widened(values: Iterable[float]) -> tuple[float, float]:
    """The least and the greatest of some numbers, moved apart if they are (nearly) equal."""
    values = list(values)
    low, high = min(values), max(values)
    margin = 1e-6 * max(abs(low), abs(high), 1e-6)
    return (low, high) if high - low > margin else (low - 100 * margin, high + 100 * margin)


def shown(value: float, percent: bool = False) -> str:
    """A number in few characters."""
    return f"{100 * value:.4g} %" if percent else f"{value:,.4g}" if abs(value) < 1e4 \
        else f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of the points, the last one among them."""
    stride = -(-len(points) // MOST_POINTS)
    return points[(len(points) - 1) % stride::stride] if points else points


def curves(title: str, caption: str, series: dict[str, list[tuple[float, float]]],
           percent: bool = False) -> str:
    """A figure of one line (x, y) a series; nothing if there are no points."""
    series = {name: thinned(points) for name, points in series.items() if points}
    if not series:
        return ""
    x_low, x_high = widened(x for points in series.values() for x, _ in points)
    y_low, y_high = widened(y for points in series.values() for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return (LEFT + (RIGHT - LEFT) * (x - x_low) / (x_high - x_low),
                BOTTOM - (BOTTOM - TOP) * (y - y_low) / (y_high - y_low))

    parts = []
    for y in ticks(y_low, y_high):
        at = place(x_low, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
                     + text(LEFT - 6, at + 4, shown(y, percent), "soft end"))
    parts += [text(place(x, y_low)[0], BOTTOM + 16, shown(x), "soft middle")
              for x in ticks(x_low, x_high)]
    for number, (name, points) in enumerate(series.items()):
        kind = f"c{number % 8}" + " dash" * (number >= 8)
        at = [place(*point) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        below = BOTTOM + 36 + 16 * number
        parts.append(f'<polyline class="{kind}" points="{line}"/>')
        if len(points) <= 20:
            parts += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in at]
        parts.append(f'<line class="{kind}" stroke-width="3" x1="{LEFT}" x2="{LEFT + 18}" '
                     f'y1="{below - 4}" y2="{below - 4}"/>' + text(LEFT + 24, below, name))
    return figure(title, caption, parts, BOTTOM + 30 + 16 * len(series))


def rows(title: str, caption: str, values: list[tuple[str, float, tuple | None, int]],
         percent: bool = False) -> str:
    """A figure of one row a value (name, value, interval, colour): a bar from 0, or if there is an
    interval a point within it. Nothing if there are no values."""
    if not values:
        return ""
    ends = [end for _, value, interval, _ in values for end in (value, *(interval or ()))]
    low, high = widened([0.0, 1.0] if percent else [0.0, *ends])
    scale, parts = (RIGHT - LEFT - 70) / (high - low), []
    for number, (name, value, interval, colour) in enumerate(values):
        y = TOP + 12 + 38 * number
        left, right = interval or (low, value)
        x1, x2 = (LEFT + scale * (min(max(end, low), high) - low) for end in (left, right))
        kind = f"c{colour % 8}"
        parts.append(text(LEFT, y, name))
        if interval:
            at = LEFT + scale * (min(max(value, low), high) - low)
            parts.append(f'<line class="{kind}" stroke-width="3" x1="{x1:.1f}" x2="{x2:.1f}" '
                         f'y1="{y + 10}" y2="{y + 10}"/>'
                         f'<circle class="{kind}" cx="{at:.1f}" cy="{y + 10}" r="5"/>')
        else:
            parts.append(f'<rect class="{kind}" x="{x1:.1f}" y="{y + 5}" height="10" '
                         f'width="{max(1.0, x2 - x1):.1f}"/>')
        parts.append(text(max(x1, x2) + 10, y + 14, shown(value, percent), "soft"))
    return figure(title, caption, parts, TOP + 38 * len(values))


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words at a place of a figure; a long name is cut."""
    words = words if len(words) <= 60 else words[:59] + "…"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def figure(title: str, caption: str, parts: list[str], height: float) -> str:
    """The frame of a figure."""
    return (f"<figure><h3>{escape(title)}</h3><svg role=\"img\" aria-label=\"{escape(title)}\" "
            f'viewBox="0 0 {WIDTH} {height}">{"".join(parts)}</svg>'
            f"<figcaption>{escape(caption)}</figcaption></figure>\n")


def main(argv: list[str]) -> None:
    """`python -m show.charts`: a curve and two rows, as HTML."""
    if argv:
        raise UsageError("usage: python -m show.charts > figure.html")
    print(curves("squares", "y = x²", {"x²": [(x, x * x) for x in range(20)]}))
    print(rows("accuracy", "81 of 263 right", [("one", 0.308, (0.255, 0.366), 0)], percent=True))


if __name__ == "__main__":
    sys.exit(run_command(main))
