"""Results as JSON: what one run has found, or several together."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from .measure import Bound, Chart, Result, Row, Target


@dataclasses.dataclass
class Report:
    date: str
    machine: str
    versions: dict[str, str]
    # What the figures can't be trusted for, in a sentence each.
    remarks: list[str]
    results: list[Result]


def save(report: Report, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n", encoding="utf-8")


def load(path: pathlib.Path) -> Report:
    whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Report(**{**whole, "results": [result(case) for case in whole["results"]]})


def result(case: dict[str, Any]) -> Result:
    targets = [Target(**{**target, "bound": Bound(**target["bound"]), "peers": tuple(target["peers"])})
               for target in case["targets"]]
    rows = [Row(**row) for row in case["rows"]]
    return Result(case["name"], case["title"], rows, [Chart(**chart) for chart in case["charts"]], targets)


def together(reports: Iterable[Report]) -> Report:
    """Cases of several runs; of a case that is in two, the later's. Machine and date are the last one's."""
    reports = list(reports)
    cases: dict[str, Result] = {}
    remarks: dict[str, None] = {}
    for report in reports:
        cases.update({case.name: case for case in report.results})
        remarks.update(dict.fromkeys(report.remarks))
    if len({report.machine for report in reports}) > 1:
        remarks["The cases were not all measured on one machine."] = None
    return dataclasses.replace(reports[-1], results=list(cases.values()), remarks=list(remarks))
