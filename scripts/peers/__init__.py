"""What scripts/bench-peers is made of: cases in which contestants take turns, and what is told of them."""
