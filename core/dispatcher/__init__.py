"""The dispatcher sends due runs from the ledger to Redis, in small passes; one dispatcher leads in the fleet."""
