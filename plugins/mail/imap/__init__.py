"""Reading a mailbox over IMAP; nothing here knows of the database."""
