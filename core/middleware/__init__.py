"""Dramatiq middleware, one concern to a file; ``core/main.py`` puts them in order.

Of Dramatiq's own we keep CurrentMessage. Retries loses a retry when Redis is away, TimeLimit cannot cancel a statement,
AgeLimit and periodiq's middleware drop work by age: what they are for is done by the ledger, or in this folder.
"""
