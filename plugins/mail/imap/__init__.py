"""Reads a mailbox over IMAP. This package does not use the database."""
