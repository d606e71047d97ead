"""Messages on their way to workers: by Redis, or within one process."""
