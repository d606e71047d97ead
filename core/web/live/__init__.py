"""Live pages: one watcher of the ledger in each process, and a stream of events for each browser."""
