"""Other ways to choose levels, for comparison: the methods that the QUIVER paper measures.

Written from the papers for these benchmarks and used by nothing else. The exact ones work on
a `Curve` (sorted float64 data in the area form of docs/numerics.md), whose prefix sums are
built apart from the solve, so that either can be timed alone. All run on one thread.
"""
