"""The worker process: claims runs, executes them, and keeps its leases."""
