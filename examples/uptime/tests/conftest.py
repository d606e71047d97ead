"""Real PostgreSQL and Redis, a new database for each test, and jobs run through the real claim and commit."""

pytest_plugins = ["core.testing"]
