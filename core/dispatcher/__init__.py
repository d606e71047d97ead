"""The dispatcher sends due runs from the ledger to Redis, in small passes. One dispatcher of the fleet leads."""
