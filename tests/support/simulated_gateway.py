"""The simulated gateway of the plugin ``invites``, in a process of its own, with orders for its faults."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from plugins.invites.gateway import Address
from tests.support.fleet import ROOT


@dataclass
class GatewayProcess:
    """A running gateway."""

    url: str
    process: subprocess.Popen[str]
    client: httpx2.Client
    token: str | None = None
    #: The file with its own certificate.
    ca_file: Path | None = None

    def address(self, **options: Any) -> Address:
        """Return the address for the adapter."""
        return Address(self.url, **{"token": self.token, **options})

    def control(self, action: str, body: Any = None) -> Any:
        """Order something from the gateway beside its API."""
        answer = self.client.post(f"{self.url}/_control/{action}", json=body)
        assert answer.status_code == 200, action
        return answer.json()

    def team(self, team: str, seats: int, members: Mapping[str, str] | None = None) -> None:
        """Make a team, or change it."""
        self.control("team", {"team": team, "seats": seats, "members": dict(members or {})})

    def fault(self, *kinds: str, on: str = "any", seconds: float | None = None) -> None:
        """Let the next requests of a sort have these faults, one each."""
        self.control("faults", [{"on": on, "kind": kind, "seconds": seconds} for kind in kinds])

    def chance(self, share: float, *kinds: str, seed: int = 0, seconds: float | None = None) -> None:
        """Let each request have one of these faults with the probability ``share``."""
        self.control("chance", {"share": share, "kinds": kinds, "seed": seed, "seconds": seconds})

    def find(self, team: str, email: str) -> bool:
        """Return whether a team has a person."""
        return email in self.control("members", {"team": team})

    def sent(self) -> dict[tuple[str, str], int]:
        """Return how many invitations each person was sent, by the gateway's own count."""
        return {(team, email): times for team, email, times in self.control("sent")}


@contextmanager
def gateway_process(*options: str, token: str | None = None) -> Iterator[GatewayProcess]:
    """Yield a gateway that is ended afterwards."""
    command = [sys.executable, "-m", "plugins.invites.gateway.simulated", *options]
    command += ["--token", token] if token else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            with httpx2.Client(timeout=30, trust_env=False) as client:
                yield GatewayProcess(process.stdout.readline().strip(), process, client, token)
        finally:
            process.kill()
