"""Benchmarks: each compares two things in one interleaved run, and prints medians, spread and a ratio last."""
