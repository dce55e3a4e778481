"""Each scenario of ``scenarios.json`` is the same natively and in WebAssembly: requests, answers, events, counters and bytes."""

from __future__ import annotations

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import scenarios  # noqa: E402
import world  # noqa: E402
from backend import module_path, over_module  # noqa: E402

import blkmirror  # noqa: E402


class Same(unittest.TestCase):
    def test_byte_for_byte(self) -> None:
        self.assertTrue(module_path().exists(), "make wasm")
        one = over_module()
        for number, scenario in enumerate(scenarios.load()):
            with self.subTest(scenario=scenario["name"]):
                native = world.play(scenario, blkmirror)
                self.assertGreater(len(native), 200)
                # Now and then in an instance of its own, else in one that has seen others.
                self.assertEqual(world.play(scenario, over_module() if number % 4 == 0 else one), native)


if __name__ == "__main__":
    unittest.main()
