"""Each scenario of ``scenarios.json`` ends as it must: no acknowledged write is lost, equal sides at the switch."""

from __future__ import annotations

import re
import unittest
from collections import Counter

import scenarios
import world
from backend import b


class Scenarios(unittest.TestCase):
    def test_the_file_is_what_is_drawn(self):
        self.assertEqual(scenarios.FILE.read_text(), scenarios.text(), "python3 scenarios.py writes it anew")
        self.assertGreaterEqual(len(scenarios.load()), 280)

    def test_each_holds_and_together_they_see_everything(self):
        seen = Counter()
        for scenario in scenarios.load():
            with self.subTest(scenario=scenario["name"]):
                transcript = world.play(scenario, b)
                for kind, pattern in THINGS.items():
                    seen[kind] += bool(re.search(pattern, transcript, re.M))
        # A vocabulary that is spoken: each of these is in some scenarios.
        self.assertEqual({kind: count for kind, count in seen.items() if count < 2}, {})

    def test_a_scenario_that_is_played_again_is_the_same(self):
        for scenario in scenarios.load()[::8]:
            self.assertEqual(world.play(scenario, b), world.play(scenario, b), scenario["name"])


THINGS = {
    "a switch": r"^the disk is on the target",
    "a job that ends where it was": r"^the disk is on the source",
    "a copy by a soft cancel": r"^CompletedEvent\(errno=0\)[\s\S]*^the disk is on the source",
    "a force": r"^CancelledEvent",
    "a failure": r"^CompletedEvent\(errno=[1-9]",
    "a disk that is switched in another's place": r"^the other disk is on the target",
    "a gate that opens again": r"^opened",
    "a completion that is told twice": r"^(source|target) is refused: ",
    "a job after a job": r"^- job\nwoken|^- job\nStatus",
    "a base that is attached": r"^overlay[\s\S]*^prepare$",
    "a source that becomes the base": r"^over-source[\s\S]*^prepare$",
    "a commit": r"^commit[\s\S]*^prepare$",
    "a top": r"^top[\s\S]*^prepare$",
    "what is written from now on": r"^none[\s\S]*^prepare$",
    "a base that grows": r"^target truncate",
    "a pause by an error": r"action=<Action.STOP",
    "an error that is tried again": r"action=<Action.IGNORE",
    "a job without its space": r"IoStatus.NOSPACE",
    "a finalize": r"^finalize: ok",
    "a drain": r"^drain: ok",
    "a job that is freed": r"^- free",
    "options that make no sense": r"^refused: .*\b(granularity|max_io|max_in_flight|id)\b",
    "a verb in the wrong state": r"^\w+: \[Errno 1\] .*cannot accept command verb",
    "room that is missing": r" again$",
    "carried writes": r"active=Counter\(ops=[1-9]",
    "zeroes that were left out": r"skipped_zeroes=[1-9]",
    "the host's own requests": r"^guest \d+: ok, on the ",
    "hosts that are turned away, or wait": r"is turned away|EOPNOTSUPP|\[Errno 95\]",
    "a copy without buffers": r"^target completes a copy",
    "one that fails": r"^target copy .* fails with 5",
    "one after which there are no more": r"^target copy .* fails with (18|38|95)",
    "buffers that must be aligned": r"bounce_copies=any",
    "torn requests": r"fails with \d+ torn",
    "errors raised by a poll": r"^poll raises",
    "hurry": r"is to hurry",
    **{
        "a %s that fails at the %s" % (kind, side): r"^%s %s .*fails" % (side, kind)
        for side in ("source", "target")
        for kind in ("read", "write", "zero", "flush", "extents")
        if (side, kind) not in (("target", "read"), ("target", "extents"), ("source", "flush"))
    },
}


if __name__ == "__main__":
    unittest.main()
