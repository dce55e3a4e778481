"""Turns, medians and ratios, with contestants that do nothing."""

import unittest

from peers.measure import Bound, Case, Chart, Contestant, Failed, Result, Row, Sample, Target, judge, run


def row(name: str, *seconds: float, ours: bool = False) -> Row:
    return Row(name, ours, [{"seconds": value} for value in seconds])


def result(*rows: Row, **target: object) -> Result:
    options = {"what": "copy", "figure": "seconds", "ours": "ours", "bound": Bound("ratio", "<=", 1), **target}
    return Result("case", "A case", list(rows), [Chart("seconds", "seconds")], [Target(**options)])  # type: ignore[arg-type]


class Turns(unittest.TestCase):
    def test_the_order_is_turned_round_each_round(self) -> None:
        order: list[str] = []

        def contestant(name: str) -> Contestant:
            def take_turn() -> Sample:
                order.append(name)
                return {"seconds": 1.0}
            return Contestant(name, take_turn)

        said: list[str] = []
        case = Case("case", "A case", [contestant("a"), contestant("b")], [], [])
        measured = run(case, 3, lambda _: [], said.append)
        self.assertEqual("".join(order), "abbaab")
        self.assertEqual([len(row.samples) for row in measured.rows], [3, 3])
        self.assertEqual(len(said), 6)

    def test_a_case_that_takes_minutes_has_fewer_rounds(self) -> None:
        for asked, most, rounds in ((5, 2, 2), (1, 2, 1)):
            case = Case("case", "A case", [Contestant("a", lambda: {"seconds": 1.0})], [], [], most_rounds=most)
            measured = run(case, asked, lambda _: [], lambda _: None)
            self.assertEqual(len(measured.rows[0].samples), rounds)

    def test_who_is_missing_or_fails_is_told_and_left_out(self) -> None:
        def fail() -> Sample:
            raise Failed("no disk")

        said: list[str] = []
        cleaned: list[bool] = []
        case = Case("case", "A case", [Contestant("absent", fail, ("prog",)), Contestant("broken", fail)], [], [],
                    after=lambda: cleaned.append(True))
        measured = run(case, 2, list, said.append)
        absent, broken = measured.rows
        self.assertEqual((absent.missing, absent.failed, absent.samples), (["prog"], "", []))
        self.assertEqual((broken.failed, broken.samples), ("no disk", []))
        self.assertEqual((said, cleaned), (["FAILED: case: broken: no disk"], [True]))


class Verdicts(unittest.TestCase):
    def test_ratios_are_made_within_a_round(self) -> None:
        # The machine was three times as slow in the second round; ours is half of the peer's in each.
        measured = result(row("ours", 1, 3, 1), row("peer", 2, 6, 2), peers=("peer",))
        verdict = judge(measured, measured.targets[0])
        self.assertEqual((verdict.ratios, verdict.ratio(), verdict.reached), ((0.5, 0.5, 0.5), 0.5, True))

    def test_the_best_peer_is_compared_with(self) -> None:
        for better, peer, reached in (("lower", "fast", False), ("higher", "slow", True)):
            bound = Bound("ratio", "<=", 1)
            measured = result(row("ours", 2), row("fast", 1), row("slow", 4), peers=("fast", "slow"), better=better, bound=bound)
            verdict = judge(measured, measured.targets[0])
            self.assertEqual((verdict.peer, verdict.reached), (peer, reached), better)

    def test_a_bound_of_the_figure_needs_no_peer(self) -> None:
        for sense, reached in (("<=", False), (">=", True)):
            measured = result(row("ours", 5, 6, 100), bound=Bound("figure", sense, 5.5))  # type: ignore[arg-type]
            verdict = judge(measured, measured.targets[0])
            self.assertEqual((verdict.ours, verdict.reached), (6, reached))

    def test_without_the_peer_nothing_is_said_to_be_reached(self) -> None:
        measured = result(row("ours", 1), Row("peer", False, missing=["prog"]), peers=("peer",))
        verdict = judge(measured, measured.targets[0])
        self.assertEqual((verdict.reached, verdict.why_not), (None, "peer: prog missing"))

    def test_ours_without_a_figure_has_not_reached_it(self) -> None:
        measured = result(Row("ours", True, [{"seconds": 1.0}, {}]), bound=Bound("figure", "<=", 2))
        self.assertIs(judge(measured, measured.targets[0]).reached, False)

    def test_rounds_in_which_one_has_no_figure_make_no_ratio(self) -> None:
        peer = Row("peer", False, [{}, {"seconds": 4.0}])
        measured = result(row("ours", 1, 2), peer, peers=("peer",))
        self.assertEqual(judge(measured, measured.targets[0]).ratios, (0.5,))


if __name__ == "__main__":
    unittest.main()
