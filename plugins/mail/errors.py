"""The errors of this plugin.

MailError                 a RotaError
├── BadAccount
├── AccountTaken
├── AccountPaused
├── UnknownAccount        also a NotFound
├── SecretMissing
├── BadKey
├── PollFailed            a poll that did not reach its end
│   ├── ConnectFailed
│   ├── FolderMissing
│   ├── ServerBusy
│   ├── ConnectionCut
│   │   └── AnswerUnreadable
│   └── LoginRefused
│       └── LoginGivenUp
└── MessageFailed
"""

from core import NotFound, RotaError


class MailError(RotaError):
    """The base class of this plugin's errors."""


class BadAccount(MailError):
    """A part of an account is invalid. The message names every such part."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))


class AccountTaken(MailError):
    """Another account has this name, or this mailbox."""

    def __init__(self, name: str, other: str) -> None:
        if name == other:
            super().__init__(f"there is an account {name!r} already; choose another name, or change that account")
        else:
            super().__init__(f"account {other!r} polls this mailbox already; change that account")


class UnknownAccount(MailError, NotFound):
    """There is no account with this name, or it is being deleted."""

    def __init__(self, account: object, hint: str = "") -> None:
        super().__init__(f"unknown account {account!r}{hint}")


class AccountPaused(MailError):
    """The account is not polled until it is resumed."""

    def __init__(self, name: str, state: str) -> None:
        super().__init__(f"the account {name!r} is {state}; resume it, and it is polled at once")


class SecretMissing(MailError):
    """The secret with this name is neither in the folder of secrets nor in the environment."""

    def __init__(self, name: str, places: list[str]) -> None:
        super().__init__(f"there is no secret {name!r}; expected it in {' or '.join(places)}")


class BadKey(MailError):
    """ROTA_MAIL_KEY is missing, is not a key, or is not the key with which a token was encrypted."""


class PollFailed(MailError):
    """A poll ended before it was complete. The messages that it has stored stay stored."""


class ConnectFailed(PollFailed):
    """The server cannot be found or reached, or no encrypted connection to it is possible."""


class FolderMissing(PollFailed):
    """The folder is not on the server."""

    def __init__(self, folder: str, answer: str) -> None:
        super().__init__(f"folder {folder!r} cannot be opened: {answer}; check its name, with `rota mail change`")


class ServerBusy(PollFailed):
    """The server asks to come back later: too many connections, a quota, a restart."""


class ConnectionCut(PollFailed):
    """The connection was lost, or the server sent nothing for too long."""


class AnswerUnreadable(ConnectionCut):
    """The server has sent something that is not IMAP, such as a message with a wrong size. The connection was
    closed.
    """


class LoginRefused(PollFailed):
    """The server has refused the credentials."""


class LoginGivenUp(LoginRefused):
    """The server has refused the credentials so often that the account is not polled until a person acts."""


class MessageFailed(MailError):
    """A message cannot be fetched. Other messages can."""
