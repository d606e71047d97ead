"""Keeps worker processes running, and replaces them without a gap."""
