"""Dramatiq's own tests of its Redis broker, run against ours: ``python -m tests.conformance``.

They come with Dramatiq's source distribution, which is downloaded into ``.bench/``; nothing of it is kept here.
"""
