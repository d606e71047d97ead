"""The account under which a server runs when root starts it."""

import os
import pwd
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.errors import EmbeddedServerError
from core.observability.events import EmbeddedAccountCreated, emit

ACCOUNT = "pgserver"


@dataclass(frozen=True)
class Account:
    """The ids of the user under which a server runs."""

    uid: int
    gid: int


def pgserver_account() -> Account:
    """Return the account for servers that root starts.

    If the account is missing, create it as a system account without a log-in.
    """
    with suppress(KeyError):
        return _account_named(ACCOUNT)
    emit(EmbeddedAccountCreated(ACCOUNT))
    problem = _create_account(ACCOUNT)
    try:
        # Another process may have created the account, so check whether it exists.
        return _account_named(ACCOUNT)
    except KeyError:
        raise EmbeddedServerError(f"cannot create the account {ACCOUNT!r}: {problem}; run as a normal user") from None


def _account_named(name: str) -> Account:
    entry = pwd.getpwnam(name)
    return Account(entry.pw_uid, entry.pw_gid)


def _create_account(name: str) -> str:
    """Create the account. Return the system's message."""
    options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    try:
        return subprocess.run(["useradd", *options, name], capture_output=True, text=True, check=False).stderr.strip()
    except OSError as error:
        return str(error)


def may_reach(path: Path, account: Account) -> bool:
    """Return whether ``account`` can pass through all existing folders above ``path``."""
    above = {*path.parents, *path.resolve().parents}
    return all(may_pass(folder.stat(), account) for folder in above if folder.exists())


def may_pass(found: os.stat_result, account: Account) -> bool:
    """Return whether ``account`` can pass through a folder."""
    if found.st_uid == account.uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == account.gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


def advice(account: Account | None) -> str:
    if account is None:
        return ""
    return f"; user {account.uid} must be able to read and run it: install it for all users, or run as a normal user"
