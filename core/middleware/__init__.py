"""The middleware around each run, and Rota's middleware for Dramatiq. Each file has one concern.

``core/worker/executor.py`` lists the layers around a run in their order. ``core/main.py`` lists the middleware for
Dramatiq in its order. Of Dramatiq's own middleware, Rota uses only CurrentMessage: Retries loses a retry when Redis is
unavailable, TimeLimit cannot cancel a statement, and AgeLimit and periodiq's middleware drop old messages.
"""
