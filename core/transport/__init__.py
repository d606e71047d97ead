"""Carries messages to workers: over Redis, or within one process."""
