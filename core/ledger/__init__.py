"""The run ledger in PostgreSQL: waiting, running and finished runs, and the tables around them; a file per noun."""
