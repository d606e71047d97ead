"""When jobs are due, as periodiq asks it."""
