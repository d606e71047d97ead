"""Dovecot from Debian's package, with its own mailboxes."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.embedded.accounts import pgserver_account
from tests.support.eventually import eventually
from tests.support.servers import DOVECOT

PASSWORD = "sesame"
#: One process serves many connections, so that a hundred connections are quick. The mail users are not users of the
#: system.
CONFIGURATION = """
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols = imap
ssl = no
disable_plaintext_auth = no
listen = 127.0.0.1
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 1
first_valid_gid = 1
mail_location = maildir:{folder}/mail/%u
mail_max_userip_connections = 10
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}/mail/%u
}}
service anvil {{
  chroot =
}}
service imap-login {{
  chroot =
  service_count = 0
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service imap {{
  service_count = 0
  process_limit = 200
}}
"""


@dataclass(frozen=True)
class Dovecot:
    """A running server, whose users all have the password ``sesame``."""

    port: int
    folder: Path
    uid: int
    gid: int

    def deliver(self, user: str, name: str, content: bytes) -> None:
        """Deliver a message to the inbox of ``user`` as a delivery agent does: write a file elsewhere, then rename
        it.
        """
        inbox = self.folder / "mail" / user
        for part in ("tmp", "new", "cur"):
            (inbox / part).mkdir(parents=True, exist_ok=True)
        written = inbox / "tmp" / name
        written.write_bytes(content)
        for path in (inbox, *inbox.iterdir(), written):
            os.chown(path, self.uid, self.gid)
        written.rename(inbox / "new" / name)

    def forget_numbers(self, user: str) -> None:
        """Delete the index of ``user``. The folder gets another UIDVALIDITY, and its messages get other UIDs."""
        for path in (self.folder / "mail" / user).glob("dovecot*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def dovecot(folder: Path) -> Iterator[Dovecot]:
    """Yield Dovecot with its data in ``folder``, which its account must be able to reach."""
    uid, gid = (pgserver_account().uid, pgserver_account().gid) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    for name in ("run", "state", "mail"):
        (folder / name).mkdir()
    for path in (folder, folder / "mail", folder / "state"):
        os.chown(path, uid, gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    configuration = folder / "dovecot.conf"
    user, group = names_of(uid, gid)
    configuration.write_text(
        CONFIGURATION.format(folder=folder, user=user, group=group, uid=uid, gid=gid, port=port, password=PASSWORD)
    )
    with subprocess.Popen([DOVECOT, "-F", "-c", configuration], stderr=subprocess.PIPE) as running:
        server = Dovecot(port, folder, uid, gid)
        try:
            eventually(lambda: running.poll() is not None or listens(port))
            if running.poll() is not None:
                raise RuntimeError(running.stderr.read().decode() if running.stderr else "")
            yield server
        finally:
            running.terminate()
            running.wait(30)


def names_of(uid: int, gid: int) -> tuple[str, str]:
    """Return the names of a user and of a group."""
    import grp
    import pwd

    return pwd.getpwuid(uid).pw_name, grp.getgrgid(gid).gr_name


def listens(port: int) -> bool:
    """Return whether a server listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
