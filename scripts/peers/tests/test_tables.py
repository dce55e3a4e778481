"""Tables, what is kept as JSON, and the part of a document that is written."""

import pathlib
import tempfile
import unittest

from peers import store, tables
from peers.measure import Bound, Chart, Result, Row, Target
from peers.store import Report


def report(*results: Result, machine: str = "a machine", remarks: tuple[str, ...] = ()) -> Report:
    return Report("2026-01-02", machine, {"dd": "dd 9"}, list(remarks), list(results))


def result(name: str = "case", ours: float = 1.0) -> Result:
    target = Target("copy", "seconds", "ours", Bound("ratio", "<=", 1), peers=("peer",))
    rows = [Row("ours", True, [{"seconds": ours}, {"seconds": 3.0}]), Row("peer", False, [{"seconds": 4.0}, {}])]
    return Result(name, "A case", rows, [Chart("seconds", "seconds", none="never ready")], [target])


class Tables(unittest.TestCase):
    def test_numbers_have_three_digits_that_count(self) -> None:
        for value, text in ((None, "–"), (0.01234, "0.0123"), (1.0, "1"), (12.345, "12.3"), (123.4, "123"), (1234.5, "1,234")):
            self.assertEqual(tables.number(value), text)
        self.assertEqual(tables.spread([3.0, 1.0, 2.0]), "2 (1 – 3)")

    def test_rounds_that_came_to_nothing_are_counted(self) -> None:
        lines = tables.case(result())
        self.assertEqual(lines[2:], ["| **ours** | 2 (1 – 3) |", "| peer | 4; never ready in 1 of 2 rounds |"])
        nothing = result()
        nothing.rows[1].samples = [{}]
        self.assertEqual(tables.case(nothing)[3], "| peer | never ready |")

    def test_targets_are_told_with_what_was_asked(self) -> None:
        self.assertEqual(tables.targets([result()])[2:], ["| copy | 2 | 4 (peer) | 0.25 | ≤ 1 × peer | yes |"])
        self.assertEqual(tables.targets([result(ours=5.0)])[2:], ["| copy | 4 | 4 (peer) | 1.25 | ≤ 1 × peer | **no** |"])


class Documents(unittest.TestCase):
    def test_only_what_is_between_the_marks_is_written(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "page.md")
            path.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n", encoding="utf-8")
            for text in ("one", "two"):
                tables.write(path, [text])
                expected = f"before\n{tables.BEGIN}\n\n{text}\n\n{tables.END}\nafter\n"
                self.assertEqual(path.read_text(encoding="utf-8"), expected)
            path.write_text("no marks", encoding="utf-8")
            with self.assertRaises(ValueError):
                tables.write(path, ["text"])

    def test_the_page_has_marks(self) -> None:
        page = pathlib.Path(__file__).resolve().parents[3] / "docs" / "PERFORMANCE.md"
        text = page.read_text(encoding="utf-8")
        self.assertLess(text.index(tables.BEGIN), text.index(tables.END))


class Stored(unittest.TestCase):
    def test_what_is_saved_is_loaded(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "new", "results.json")
            saved = report(result(), remarks=("A remark.",))
            store.save(saved, path)
            self.assertEqual(store.load(path), saved)

    def test_of_a_case_that_was_measured_twice_the_later_counts(self) -> None:
        both = store.together([report(result("a"), result("b")), report(result("b", ours=5.0), machine="another")])
        self.assertEqual([case.name for case in both.results], ["a", "b"])
        self.assertEqual(both.results[1].rows[0].samples[0], {"seconds": 5.0})
        self.assertEqual(both.remarks, ["The cases were not all measured on one machine."])


if __name__ == "__main__":
    unittest.main()
