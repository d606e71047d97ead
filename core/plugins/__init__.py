"""Finds the installed plugins, and loads those that are valid."""
