"""``rota up``: runs everything on this machine, under one supervisor."""

import os
import shlex
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import click
from sqlalchemy.exc import DBAPIError

from core import settings
from core.cli import actor, environment
from core.cli.output import say
from core.cli.programs import guarded, pool_size, script
from core.cli.worker import metrics_server, number_of, refuse_reservations, workers
from core.embedded import EmbeddedPostgres, EmbeddedRedis, EmbeddedServer
from core.errors import EmbeddedServerError, RotaError
from core.ledger.audit import Actor
from core.observability import logs
from core.observability.events import UpInterrupted, UpStarting, UpStopped, UpStopping, emit
from core.settings import Settings
from core.supervisor.guard import Guard
from core.supervisor.programs import Command, Signals
from core.supervisor.supervisor import Supervisor
from core.supervisor.worker_channel import ChannelServer

#: Servers end after the processes that use them.
SERVER_RANK = 1
#: The time-out of the statements that make a link to log in.
LINK_SECONDS = 5
#: Placeholders for the URLs of servers that have not been started, for the check of the settings.
YET_TO_COME = {"DATABASE_URL": "postgresql:///rota", "REDIS_URL": "redis://localhost"}


class CommandLine(click.ParamType[list[str]]):
    """A command with its arguments, split as a shell does."""

    name = "command"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        try:
            words = shlex.split(value)
        except ValueError as error:
            self.fail(f"{value!r} cannot be read: {error}", param, ctx)
        if not words or shutil.which(words[0]) is None:
            self.fail(f"{value!r} is not a program that can be run", param, ctx)
        return words


@click.command()
@click.option("--processes", type=click.IntRange(1, 64), help="Worker processes.  [default: 2; 1 in local mode]")
@click.option(
    "--threads", type=click.IntRange(1, 500), default=8, show_default=True, help="Threads per worker process."
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=environment.DATA_FOLDER,
    show_default=True,
    metavar="DIR",
    help="The folder for the data of the embedded servers.",
)
@click.option(
    "--also", type=CommandLine(), multiple=True, metavar="COMMAND", help="Also run this command; may be repeated."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=1),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="At a stop: the time in which running jobs may finish.",
)
def up(processes: int | None, threads: int, data: Path, also: tuple[list[str], ...], grace: float) -> None:
    """Start everything on this machine, and stop it with Ctrl-C.

    If DATABASE_URL is not set, an embedded PostgreSQL is started, and if REDIS_URL is not set, an embedded Redis. Both
    keep their data in DIR. Then the tables are upgraded, and workers and the scheduler are started; if they die, they
    are started again. With SCHEDULER_MODE=local there is one worker process, without Redis and without a scheduler. All
    logs go to this terminal. Ctrl-C waits for running jobs; a second Ctrl-C does not.

    The URLs of the servers are written to DIR/env. If DIR is .rota, commands in the same folder read that file.
    `dramatiq` and `periodiq` never read it.

    \b
      rota up
      rota up --also "python -m plugins.customer_service.simulation"
    """
    configured = checked_settings()
    logs.configure(configured.log_format, configured.log_level)
    refuse_reservations(configured, threads)
    with Signals() as signals, guarded() as guard:
        try:
            run_everything(signals, guard, configured, number_of(processes, configured), threads, data, also, grace)
        except KeyboardInterrupt:
            emit(UpInterrupted())


def checked_settings() -> Settings:
    """Return the settings, with placeholders for missing URLs. Raises SettingsError."""
    given = {name: value for name, value in os.environ.items() if value}
    return settings.load({**YET_TO_COME, **given})


def run_everything(
    signals: Signals,
    guard: Guard,
    configured: Settings,
    processes: int,
    threads: int,
    data: Path,
    also: tuple[list[str], ...],
    grace: float,
) -> None:
    """Start all programs, keep them running, and end them when asked to."""
    from core.operations import fitness

    is_local = configured.mode == "local"
    with ExitStack() as stack:
        channel = stack.enter_context(ChannelServer())
        supervisor = Supervisor(signals, guard, channel)
        urls = start_servers(supervisor, guard, data, stack, is_local=is_local)
        metrics = data.absolute() / "metrics"
        clear(metrics)
        environ = {**os.environ, "ROTA_METRICS_DIR": str(metrics), "ROTA_DB_POOL_SIZE": pool_size(threads)}
        environ.update(given_settings() | urls)
        stack.callback(environment.write_env(data, urls).unlink, missing_ok=True)
        if supervisor.run(Command("migrations", [script("rota"), "db", "upgrade"], environ)) and not signals.asked:
            raise RotaError("the tables could not be upgraded; see above")
        stack.callback(supervisor.stop, grace)
        configured = settings.load(environ)
        fitness.refuse_unfit(configured)
        for command in [
            *workers(environ, configured, channel, processes, threads, grace=grace),
            *metrics_server(environ, configured),
            *http_service(environ, configured),
            *([] if is_local else [Command("scheduler", [script("periodiq"), "core.main"], environ)]),
            *(Command(shlex.join(words), words, environ, may_finish=True) for words in also),
        ]:
            if not signals.asked:
                supervisor.start(command)
        announce(configured, urls, data, login_link(configured))
        supervisor.keep_running()
        emit(UpStopping(grace))
    emit(UpStopped())


def start_servers(
    supervisor: Supervisor, guard: Guard, data: Path, stack: ExitStack, *, is_local: bool
) -> dict[str, str]:
    """Start the servers that the environment does not name. Return the variables that name all servers.

    ``stack`` stops the servers. If a URL in the environment is that of an embedded server of this folder, as in a shell
    that has read ``.rota/env``, that server is started too. In local mode the variables have SCHEDULER_MODE instead of
    REDIS_URL.
    """
    urls = {"SCHEDULER_MODE": "local"} if is_local else {}
    servers: list[tuple[str, type[EmbeddedPostgres | EmbeddedRedis], signal.Signals]] = [
        ("DATABASE_URL", EmbeddedPostgres, signal.SIGINT),
        *([] if is_local else [("REDIS_URL", EmbeddedRedis, signal.SIGTERM)]),
    ]
    data.mkdir(parents=True, exist_ok=True)
    for name, kind, farewell in servers:
        server, given = kind(data), os.environ.get(name)
        if given and not is_own(server, given):
            urls[name] = given
            continue
        stack.callback(end_server, server, guard)
        emit(UpStarting(server.name, str(server.data)))
        supervisor.start(server, farewell, rank=SERVER_RANK)
        urls[name] = server.url
    return urls


def is_own(server: EmbeddedPostgres | EmbeddedRedis, url: str) -> bool:
    """Return whether ``url`` is the URL of ``server``, which need not run. A server's URL follows from its folder."""
    with suppress(EmbeddedServerError):
        return server.url == url
    return False


def end_server(server: EmbeddedServer, guard: Guard) -> None:
    """Stop an embedded server."""
    server.stop()
    guard.forget(server)


def given_settings() -> dict[str, str]:
    """Return the settings in the environment."""
    return {name: os.environ[name] for name in settings.names() if os.environ.get(name)}


def clear(folder: Path) -> None:
    """Empty ``folder``, so that the metrics of ended processes are not counted again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)


def http_service(environ: Mapping[str, str], configured: Settings) -> Iterator[Command]:
    """Yield the command that serves HTTP, if its packages are installed and ROTA_WEB_PORT is not 0."""
    if serves_http(configured):
        yield Command("web", [script("rota"), "web"], environ)


def serves_http(configured: Settings) -> bool:
    """Return whether `rota web` is started too."""
    is_wanted = bool(configured.web_port or configured.web_socket)
    return is_wanted and all(find_spec(name) for name in ("fastapi", "uvicorn"))


def login_link(configured: Settings) -> str | None:
    """Return a new link with which a browser can log in once.

    Return None if `rota web` is not started, if PostgreSQL is unavailable, or if browsers cannot use the address.
    """
    from core.operations import connections, tokens, web_address

    if not serves_http(configured):
        return None
    with (
        suppress(DBAPIError, RotaError),
        connections.ledger(configured, "rota-cli", LINK_SECONDS) as engine,
        engine.begin() as connection,
    ):
        return web_address.login_link(configured, tokens.link(connection, Actor(actor.login(), via="cli")))
    return None


def announce(configured: Settings, urls: Mapping[str, str], data: Path, link: str | None) -> None:
    """Print the addresses of the servers and of the web pages, without passwords. One browser can use ``link``."""
    lines = [f"{name:13} {without_password(url)}" for name, url in urls.items()]
    if configured.metrics_port:
        lines.append(f"{'metrics':13} http://{reachable(configured.metrics_host)}:{configured.metrics_port}/metrics")
    if link:
        lines.append(f"{'log in':13} {link}")
    lines.append(f"{'try':13} {hint(data)}")
    say("", "Rota is up; Ctrl-C stops it.", *(f"  {line}" for line in lines), "", err=True)


def hint(data: Path) -> str:
    """Return an example of a command for a second terminal."""
    rota = "rota" if shutil.which("rota") else os.path.relpath(script("rota"))
    if data == environment.DATA_FOLDER:
        return f"{rota} runs (in another terminal, in {Path.cwd()})"
    return f"(set -a; . {shlex.quote(str(data.absolute() / environment.ENV_FILE))}; {rota} runs)"


def without_password(url: str) -> str:
    """Return ``url`` with its password replaced by stars."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":***@", 1) if password else url


def reachable(host: str) -> str:
    """Return an address that a browser on this machine can use."""
    return "localhost" if host in {"0.0.0.0", "::", ""} else host
