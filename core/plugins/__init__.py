"""Finds the installed plugins and judges them."""
