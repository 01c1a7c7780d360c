"""Benchmarks: `python -m benchmarks [--json] [--only NAME]`. One thread, CPU time, ours and the plain loop in turn, minima."""
