"""Declarations of plugins: jobs, schedules, arguments, settings and hooks, and the registry of all of them."""
