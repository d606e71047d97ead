"""Runs Dramatiq's own tests of its Redis broker against Rota's broker: ``python -m tests.conformance``.

The tests come with Dramatiq's source distribution, which is downloaded into ``.bench/``. They are not kept in this
repository.
"""
