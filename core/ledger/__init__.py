"""The run ledger in PostgreSQL: the runs and the tables that belong to them, with one file for each noun."""
