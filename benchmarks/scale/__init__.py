"""A cost model of rounds of many workers: measured costs, a simulation, checks."""
