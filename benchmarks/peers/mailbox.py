"""One poll of a mailbox with Python's own library, for a loop and for Celery: the commands that Rota sends."""

import imaplib


def poll(host: str, port: int, username: str, password: str) -> int:
    """Fetch every message of the inbox; return how many there are."""
    client = imaplib.IMAP4(host, port)
    client.login(username, password)
    client.select("INBOX", readonly=True)
    (found,) = client.uid("SEARCH", "UID 1:*")[1]
    uids = found.split()
    client.uid("FETCH", b",".join(uids).decode(), "(RFC822.SIZE INTERNALDATE)")
    for uid in uids:
        client.uid("FETCH", uid.decode(), "(BODY.PEEK[]<0.1048576>)")
    client.logout()
    return len(uids)
