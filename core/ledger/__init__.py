"""The run ledger in PostgreSQL: what is to run, what runs, what became of it. A file per noun."""
