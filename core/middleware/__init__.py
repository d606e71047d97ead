"""The middleware around each run, with one concern per file; and Rota's hooks into Dramatiq's own middleware.

``core/worker/executor.py`` lists the layers around a run, and ``core/main.py`` lists the hooks, both in their order. Of
Dramatiq's own middleware, Rota uses only CurrentMessage: Retries loses a retry when Redis is unavailable, TimeLimit
cannot cancel a statement, and AgeLimit and periodiq's middleware drop old messages.
"""
