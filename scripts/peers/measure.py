"""Cases, contestants that take turns in them, and the targets that a case is to show.

Machines differ, and so does one machine from minute to minute. So contestants take turns, the order is turned round from one
round to the next, and a ratio is made of two figures of the same round; what is told is the median of the rounds' ratios.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from typing import Literal

Sample = dict[str, float]


class Failed(Exception):
    """A contestant has not done what it was to do."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    name: str
    run: Callable[[], Sample]
    # Programs without which it can't run.
    needs: tuple[str, ...] = ()
    ours: bool = False


@dataclasses.dataclass(frozen=True)
class Bound:
    """What was asked: of the figure itself, or of ours divided by the peer's."""

    of: Literal["figure", "ratio"]
    sense: Literal["<=", ">="]
    value: float

    def holds(self, value: float) -> bool:
        return value <= self.value if self.sense == "<=" else value >= self.value


@dataclasses.dataclass(frozen=True)
class Target:
    what: str
    figure: str
    ours: str
    bound: Bound
    better: Literal["lower", "higher"] = "lower"
    # The best of them is compared with. None for a bound of the figure itself, unless it is to be shown beside.
    peers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """One figure of a case: a column of its table and, unless it is left out there, a group of bars in the picture."""

    figure: str
    title: str
    drawn: bool = True
    # What is told where a run came to no such figure.
    none: str = "–"


@dataclasses.dataclass
class Case:
    name: str
    title: str
    contestants: list[Contestant]
    charts: list[Chart]
    targets: list[Target]
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    # Fewer rounds where one takes minutes.
    most_rounds: int = 1 << 30


@dataclasses.dataclass
class Row:
    """What became of one contestant: samples, one a round, or why there are none."""

    name: str
    ours: bool
    samples: list[Sample] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    failed: str = ""

    def values(self, figure: str) -> list[float]:
        return [sample[figure] for sample in self.samples if figure in sample]

    def median(self, figure: str) -> float | None:
        values = self.values(figure)
        return statistics.median(values) if values else None


@dataclasses.dataclass
class Result:
    """A case that was run, with all that tables and pictures are made of."""

    name: str
    title: str
    rows: list[Row]
    charts: list[Chart]
    targets: list[Target]

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


def run(case: Case, rounds: int, missing: Callable[[Iterable[str]], list[str]], say: Callable[[str], None]) -> Result:
    """Lets the contestants take turns. One that fails is told of and left out of further rounds."""
    rows = [Row(c.name, c.ours, missing=missing(c.needs)) for c in case.contestants]
    pairs = list(zip(case.contestants, rows))
    case.before()
    try:
        for number in range(min(rounds, case.most_rounds)):
            for contestant, row in pairs if number % 2 == 0 else reversed(pairs):
                if row.missing or row.failed:
                    continue
                try:
                    row.samples.append(contestant.run())
                except Failed as failure:
                    row.failed = str(failure)
                    say(f"FAILED: {case.name}: {row.name}: {failure}")
                else:
                    figures = "  ".join(f"{name} {value:.4g}" for name, value in row.samples[-1].items())
                    say(f"{case.name}, round {number + 1}: {row.name}: {figures}")
    finally:
        case.after()
    return Result(case.name, case.title, rows, case.charts, case.targets)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a target came to. `reached` is None where it could not be told, and `why_not` says why."""

    target: Target
    ours: float | None
    peer: str
    theirs: float | None
    ratios: tuple[float, ...]
    reached: bool | None
    why_not: str = ""

    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None


def judge(result: Result, target: Target) -> Verdict:
    ours = result.row(target.ours)
    own = ours.median(target.figure)
    peer = best(result, target)
    theirs = peer.median(target.figure) if peer else None
    ratios = tuple(rounds_of(ours, peer, target.figure)) if peer else ()
    absent = [name for name in target.peers if not result.row(name).samples]
    why_not = "; ".join(filter(None, map(reason, map(result.row, [target.ours, *absent]))))
    reached = holds(target.bound, ours, target.figure, ratios)
    return Verdict(target, own, peer.name if peer else "", theirs, ratios, reached, why_not)


def holds(bound: Bound, ours: Row, figure: str, ratios: tuple[float, ...]) -> bool | None:
    """A round of ours without the figure is one that did not come so far."""
    if bound.of == "ratio":
        return bound.holds(statistics.median(ratios)) if ratios else None
    values = ours.values(figure)
    if len(values) < len(ours.samples):
        return False
    return bound.holds(statistics.median(values)) if values else None


def best(result: Result, target: Target) -> Row | None:
    """The peer whose median is best."""
    rows = [row for row in map(result.row, target.peers) if row.values(target.figure)]
    choose = min if target.better == "lower" else max
    return choose(rows, key=lambda row: statistics.median(row.values(target.figure)), default=None)


def rounds_of(ours: Row, theirs: Row, figure: str) -> list[float]:
    """Ours divided by theirs, of each round that both have."""
    pairs = [(o[figure], t[figure]) for o, t in zip(ours.samples, theirs.samples) if figure in o and figure in t]
    return [own / other for own, other in pairs if other > 0]


def reason(row: Row) -> str:
    if row.missing:
        return f"{row.name}: {', '.join(row.missing)} missing"
    return f"{row.name}: {row.failed}" if row.failed else ""
