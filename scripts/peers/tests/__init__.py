"""Tests of what scripts/bench-peers is made of."""
