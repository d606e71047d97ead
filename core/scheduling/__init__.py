"""Answers periodiq's question when jobs are due, and applies misfire policies."""
