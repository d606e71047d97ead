"""Queries and operations of people, used by the command line and by HTTP."""
