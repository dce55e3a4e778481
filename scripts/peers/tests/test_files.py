"""Whether a copy that was not made, or not whole, would be seen."""

import pathlib
import shutil
import tempfile
import unittest

from peers import files


class Copies(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.one, self.other = pathlib.Path(folder.name, "one"), pathlib.Path(folder.name, "other")

    def test_a_target_that_was_spoilt_differs_in_each_mib(self) -> None:
        files.fill(self.one, 3 * files.MIB)
        shutil.copy(self.one, self.other)
        self.assertTrue(files.same(self.one, self.other))
        files.spoil(self.other)
        self.assertFalse(files.same(self.one, self.other))
        before, after = self.one.read_bytes(), self.other.read_bytes()
        self.assertEqual(len(before), len(after))
        for at in range(0, 3 * files.MIB, files.MIB):
            self.assertNotEqual(before[at:at + files.MIB], after[at:at + files.MIB])

    def test_data_where_the_other_has_a_hole_is_seen(self) -> None:
        files.scatter(self.one, 4 * files.PIECE, 64 * files.PIECE)
        self.assertEqual(sum(end - begin for begin, end in files.data_in(self.one)), 4 * files.PIECE)
        with self.other.open("wb") as file:
            file.truncate(64 * files.PIECE)
        self.assertFalse(files.same(self.one, self.other), "only the first has data")
        self.assertFalse(files.same(self.other, self.one), "only the second has data")
        shutil.copy(self.one, self.other)
        self.assertTrue(files.same(self.one, self.other))
        with self.other.open("r+b") as file:
            file.truncate(65 * files.PIECE)
        self.assertFalse(files.same(self.one, self.other), "another length")


if __name__ == "__main__":
    unittest.main()
