"""One process that works: claims runs, executes them, and keeps its leases."""
