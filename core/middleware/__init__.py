"""The middleware around each run, one concern per file; and our hooks into Dramatiq's own middleware.

``core/worker/executor.py`` lists the layers around a run, and ``core/main.py`` the hooks, both in their order. Rota
uses only CurrentMessage of Dramatiq's own middleware: Retries loses a retry when Redis is unavailable, TimeLimit cannot
cancel a statement, and AgeLimit and periodiq's middleware drop old messages.
"""
