"""Results as tables, in Markdown, and the part of a document that holds them."""

from __future__ import annotations

import pathlib
import statistics

from .measure import Chart, Result, Row, Verdict, judge, reason
from .store import Report

BEGIN = "<!-- bench-peers: begin. Written by `make bench-peers`; changes between these lines are lost. -->"
END = "<!-- bench-peers: end -->"


def number(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: list[float]) -> str:
    """The median, and from where to where."""
    if not values:
        return "–"
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} – {number(max(values))})"


def table(lines: list[list[str]]) -> list[str]:
    """The first line is the heading. The first column is text, the others are figures."""
    rule = ["---"] + ["--:"] * (len(lines[0]) - 1)
    return ["| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]]]


def asked(verdict: Verdict) -> str:
    bound = verdict.target.bound
    sign = {"<=": "≤", ">=": "≥"}[bound.sense]
    return f"{sign} {number(bound.value)}" + (" × peer" if bound.of == "ratio" else "")


def answer(verdict: Verdict) -> str:
    if verdict.reached is None:
        return "not measured"
    return "yes" if verdict.reached else "**no**"


def targets(results: list[Result]) -> list[str]:
    lines = [["what", "ours", "peer", "ours / peer", "asked", "reached"]]
    notes = []
    for result in results:
        for target in result.targets:
            verdict = judge(result, target)
            peer = f"{number(verdict.theirs)} ({verdict.peer})" if verdict.peer else "–"
            lines.append([target.what, number(verdict.ours), peer, spread(list(verdict.ratios)), asked(verdict),
                          answer(verdict)])
            if verdict.why_not:
                notes.append(f"- {target.what}: {verdict.why_not}.")
    return table(lines) + (["", "Not compared:", "", *notes] if notes else [])


def case(result: Result) -> list[str]:
    lines = [["", *(chart.title for chart in result.charts)]]
    for row in result.rows:
        told = [cell(row, chart) for chart in result.charts] if row.samples else absent(row, result)
        lines.append([f"**{row.name}**" if row.ours else row.name, *told])
    return table(lines)


def cell(row: Row, chart: Chart) -> str:
    values = row.values(chart.figure)
    without = len(row.samples) - len(values)
    if not values:
        return chart.none
    return spread(values) + (f"; {chart.none} in {without} of {len(row.samples)} rounds" if without else "")


def absent(row: Row, result: Result) -> list[str]:
    why = "failed" if row.failed else f"not measured: {', '.join(row.missing)} missing" if row.missing else "–"
    return [why, *("" for _ in result.charts[1:])]


def document(report: Report, picture: str) -> list[str]:
    """All that stands between the markers."""
    lines = [f"Measured on {report.date}: {report.machine}.", ""]
    lines += ["With " + "; ".join(report.versions.values()) + ".", ""]
    lines += [line for remark in report.remarks for line in (remark, "")]
    lines += [f"![Ours and its peers, case by case]({picture})", "", "### What was asked", ""]
    lines += targets(report.results)
    for result in report.results:
        rounds = max((len(row.samples) for row in result.rows), default=0)
        lines += ["", f"### {result.title}", "", f"Rounds: {rounds}.", "", *case(result)]
    return lines


def write(path: pathlib.Path, lines: list[str]) -> None:
    """Puts the lines between the markers of a document."""
    text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: has no place for the tables: {BEGIN} … {END}")
    path.write_text("\n".join([head + BEGIN, "", *lines, "", END + tail]), encoding="utf-8")


def failures(report: Report) -> list[str]:
    return [f"{result.name}: {reason(row)}" for result in report.results for row in result.rows if row.failed]


def missing(report: Report) -> list[str]:
    return [f"NOT MEASURED: {result.name}: {reason(row)}" for result in report.results for row in result.rows if row.missing]
