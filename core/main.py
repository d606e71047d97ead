"""Where it starts: ``dramatiq core.main`` and ``periodiq core.main``.

Importing this reads the settings, loads the plugins and declares their jobs; it connects to nothing. One run, six
stops: a job is declared in a plugin's ``jobs.py``; its slot is written by ``core/ledger/slots.py`` and sent by
``core/broker.py``; a worker claims it through ``core/ledger/leases.py``; the plugin's own functions do the work;
``core/ledger/runs.py`` records success in the same transaction; and Dramatiq acknowledges the message.
"""

import atexit
import signal
import sys
from datetime import timedelta
from functools import cache

import dramatiq
from dramatiq.middleware import CurrentMessage

from core import broker as brokers
from core import database, logs, metrics, plugins, redis_broker, settings
from core.broker import RedisCarrier
from core.completions import Completions
from core.dispatcher.loop import Dispatcher
from core.errors import RotaError
from core.execution import Executor
from core.heartbeat import Heartbeat, application_name, process_name
from core.ledger import outbox, releases
from core.ledger.processes import Identity
from core.ledger.releases import Fleet
from core.middleware.draining import Draining
from core.middleware.exposition import Exposition
from core.middleware.fast_lane_retries import FastLaneRetries
from core.middleware.process_life import ProcessLife
from core.middleware.scheduling import SchedulingOptions
from core.redis_broker import RotaBroker
from core.registry import Registry
from core.settings import Settings


def build(configured: Settings, registry: Registry) -> RotaBroker:
    """The broker with everything on it."""
    application = application_name()
    engine = database.connect(
        configured.database_url.get_secret_value(), pool_size=configured.db_pool_size, application=application
    )
    lease = timedelta(seconds=configured.lease_seconds)

    def make_heartbeat(kind: str, queues: tuple[str, ...] = ()) -> Heartbeat:
        identity = Identity(kind, process_name(), application, broker.broker_id if kind == "worker" else None, queues)
        return Heartbeat(
            engine, identity, every_seconds=configured.heartbeat_seconds, lease=lease, release=releases.of(registry)
        )

    def ask_fleet() -> Fleet:
        with database.autocommit(engine) as connection:
            return releases.fleet(connection)

    def make_dispatcher() -> Dispatcher:
        return Dispatcher(
            engine,
            registry,
            carrier,
            every_seconds=configured.dispatch_seconds,
            resend_seconds=configured.resend_seconds,
            max_crashes=configured.max_crashes,
            orphan_seconds=configured.orphan_seconds,
        )

    life = ProcessLife(lambda queues: make_heartbeat("worker", queues), make_dispatcher, lambda: completions.stop())
    completions = Completions(engine, lambda: life.process_id)
    broker = brokers.build(
        redis_broker.connect(configured.redis_url.get_secret_value()),
        [
            CurrentMessage(),  # first, so that everything below can ask which message it is about
            SchedulingOptions(),
            Draining(),  # before the heartbeat ends, which it does after the last job
            life,  # registers before the first message, leaves after the last
            Exposition(configured.metrics_port),
            FastLaneRetries(),  # last, so that it decides on a failed message before anyone else looks at it
        ],
        ask_fleet=ask_fleet,
        orphan_seconds=configured.orphan_seconds,
    )
    carrier = RedisCarrier(broker)
    outbox.attach(carrier)

    @cache
    def announce_scheduler() -> None:
        heartbeat = make_heartbeat("scheduler")
        heartbeat.start()
        atexit.register(heartbeat.stop)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # periodiq has no handler, and would leave no time for it

    executor = Executor(
        engine,
        lambda: life.process_id,
        process_name(),
        suspected_after=max(configured.max_crashes - 1, 1),
        completions=completions,
    )
    brokers.declare(broker, registry, engine, executor, announce_scheduler)
    return broker


def start() -> RotaBroker:
    """Read the settings, load the plugins, build the broker; what is wrong ends the process with a clear message."""
    try:
        configured = settings.current()
        logs.configure(configured.log_format, configured.log_level)
        metrics.share(configured.metrics_dir)
        registry = plugins.current()
        refuse_broken(registry, strict=configured.strict_plugins)
    except RotaError as error:
        sys.exit(f"rota: {error}")
    for plugin in registry.plugins:
        if not plugin.is_disabled:
            metrics.plugin(plugin.name, is_up=not plugin.error)
    return build(configured, registry)


def refuse_broken(registry: Registry, *, strict: bool) -> None:
    """Raise PluginError for broken plugins, if that was asked for."""
    broken = [f"  {plugin.name}: {plugin.error}" for plugin in registry.broken()]
    if strict and broken:
        raise RotaError("ROTA_STRICT_PLUGINS is set, and plugins are broken:\n" + "\n".join(broken))


broker = start()
dramatiq.set_broker(broker)
