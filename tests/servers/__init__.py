"""Tests that need servers of the system's packages; `make servers` runs them."""
