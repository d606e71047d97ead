"""The middleware around each run, one concern per file; and our hooks into Dramatiq's own middleware.

``core/worker/executor.py`` writes out once what surrounds a run; ``core/main.py`` the order of the hooks. Of Dramatiq's
own we keep CurrentMessage: Retries loses a retry when Redis is away, TimeLimit cannot cancel a statement, AgeLimit and
periodiq's middleware drop work by age.
"""
