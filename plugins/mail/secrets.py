"""Passwords by their names, from files in a folder or from the environment. They are neither stored nor logged."""

import os

from plugins.mail.errors import SecretMissing
from plugins.mail.settings import MailSettings

#: The environment variable of a secret begins with this. The plugin's own prefix is for its settings.
PREFIX = "MAIL_SECRET_"
#: A secret is not longer than this. A longer file has another purpose.
LONGEST = 100_000


def secret(name: str) -> str:
    """Return the secret ``name``, without the end of its line."""
    folder, variable = MailSettings.current().secrets_dir, variable_of(name)
    places = [f"the variable {variable}"]
    if folder is not None:
        path = folder / name
        try:
            with path.open(encoding="utf-8") as file:
                found = file.read(LONGEST + 1).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            places.insert(0, f"the file {path} ({getattr(error, 'strerror', None) or 'not UTF-8'})")
        else:
            if 0 < len(found) <= LONGEST:
                return found
            places.insert(0, f"the file {path} ({'too long' if found else 'empty'})")
    if found := os.environ.get(variable, ""):
        return found
    raise SecretMissing(name, places)


def variable_of(name: str) -> str:
    """Return the environment variable of a secret."""
    return PREFIX + "".join(each if each.isalnum() else "_" for each in name).upper()
