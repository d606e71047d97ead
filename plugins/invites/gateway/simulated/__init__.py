"""A gateway for tests and for the sample data: a real HTTP server in a process of its own, with faults by order.

``python -m plugins.invites.gateway.simulated`` starts it, and prints its address.
"""
