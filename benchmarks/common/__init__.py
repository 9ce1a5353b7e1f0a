"""What several benchmarks share: data, stopwatch, tables, plots, and the calls under test."""
