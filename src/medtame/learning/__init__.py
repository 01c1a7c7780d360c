"""How things are learnt: one loop, and the objectives of the three learning strategies."""
