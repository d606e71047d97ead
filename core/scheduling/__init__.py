"""Tells periodiq when jobs are due, and applies misfire policies."""
