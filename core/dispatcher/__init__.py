"""The loop that hands due runs from the ledger to Redis: one active in the fleet, its work a list of small passes."""
