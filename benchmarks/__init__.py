"""Benchmarks: each compares two things in one interleaved run, and prints medians, the spread and a ratio."""
