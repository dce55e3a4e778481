"""Results as a picture: an SVG of horizontal bars, made by hand.

It takes no script, no font file and no style sheet of others. Its colours are those of the reader's light or dark mode, which
an SVG that stands in a page as an image is told of too. Each bar bears its figure, so colour alone tells nothing.
"""

from __future__ import annotations

import statistics
from xml.sax.saxutils import escape

from .measure import Chart, Result, Row
from .store import Report
from .tables import number

WIDTH = 860
MARGIN = 24
NAMES = 300
FIGURES = 130
BARS = WIDTH - 2 * MARGIN - NAMES - FIGURES
LINE = 22
BAR = 14
TITLE = 32
GAP = 16

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 14px; }
.unit, .foot { fill: #59636e; font-size: 12px; }
.ours { fill: #0969da; }
.peer { fill: #afb8c1; }
.spread { stroke: #1f2328; stroke-width: 1.2; }
.name-ours { font-weight: 600; }
.ground { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .unit, .foot { fill: #9198a1; }
  .ours { fill: #4493f8; }
  .peer { fill: #545d68; }
  .spread { stroke: #e6edf3; }
  .ground { fill: #0d1117; }
}
"""


def draw(report: Report) -> str:
    parts: list[str] = []
    y = float(MARGIN)
    for result in report.results:
        drawn = [chart for chart in result.charts if chart.drawn and any(row.values(chart.figure) for row in result.rows)]
        if drawn:
            parts.append(text(MARGIN, y + TITLE / 2, result.title, "title"))
            y += TITLE
        for chart in drawn:
            y = group(parts, y, result, chart)
        y += GAP if drawn else 0
    foot = f"{report.date}, {report.machine}. Bars: medians; lines: lowest to highest round."
    parts.append(text(MARGIN, y + 12, foot, "foot"))
    height = round(y + 12 + MARGIN)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        ' role="img" aria-labelledby="what">',
        '<title id="what">blkmirror and its peers: medians, case by case</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>',
        *parts,
        "</svg>",
        "",
    ])


def group(parts: list[str], y: float, result: Result, chart: Chart) -> float:
    """The bars of one figure. Where the next group begins."""
    parts.append(text(MARGIN, y + BAR / 2, chart.title, "unit"))
    y += BAR
    most = max(max(row.values(chart.figure), default=0.0) for row in result.rows) or 1.0
    for row in result.rows:
        bar(parts, y, row, chart, most)
        y += LINE
    return y + GAP / 2 + 4


def bar(parts: list[str], y: float, row: Row, chart: Chart, most: float) -> None:
    values = row.values(chart.figure)
    left = MARGIN + NAMES
    middle = y + LINE / 2
    parts.append(text(left - 10, middle + 4, row.name, "name-ours" if row.ours else "", anchor="end"))
    if not values:
        parts.append(text(left, middle + 4, absent(row, chart), "unit"))
        return
    median = statistics.median(values)
    length = max(1.0, BARS * median / most)
    kind = "ours" if row.ours else "peer"
    parts.append(f'<rect class="{kind}" x="{left}" y="{middle - BAR / 2:g}" width="{length:.1f}" height="{BAR}" rx="2"/>')
    low, high = (left + BARS * value / most for value in (min(values), max(values)))
    if high - low > 1:
        parts.append(f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:g}" y2="{middle:g}"/>')
    parts.append(text(max(left + length, high) + 8, middle + 4, number(median), "name-ours" if row.ours else ""))


def absent(row: Row, chart: Chart) -> str:
    if row.samples:
        return chart.none
    return f"not measured: {', '.join(row.missing)} missing" if row.missing else "failed"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(words)}</text>'
