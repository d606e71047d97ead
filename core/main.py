"""Where it starts: ``dramatiq core.main`` and ``periodiq core.main``.

In ``SCHEDULER_MODE=local`` neither starts; ``core/worker/local.py`` is what ``rota worker`` runs then.

Importing this reads the settings, loads the plugins and declares their jobs; it connects to nothing. One run, six
stops: a job is declared in a plugin's ``jobs.py``; its slot is written by ``core/ledger/slots.py`` and sent by
``core/worker/actors.py``; a worker claims it through ``core/ledger/claims.py``; the plugin's own functions do the work;
``core/ledger/runs.py`` records success in the same transaction; and Dramatiq acknowledges the message.
"""

import atexit
import signal
import sys
from functools import cache

import dramatiq
from dramatiq.middleware import CurrentMessage

from core.ledger import outbox
from core.middleware.draining import Draining
from core.middleware.fast_lane_retries import FastLaneRetries
from core.middleware.ledger_feed import DirectRuns
from core.middleware.lifecycle import ProcessLife
from core.middleware.occupation import Occupation
from core.middleware.periodiq_options import SchedulingOptions
from core.middleware.recycling import Recycling
from core.middleware.watching import Watching
from core.observability.metrics_server import Exposition
from core.transport import redis
from core.transport.redis import RedisCarrier, RedisWatch, RotaBroker
from core.worker import actors as brokers
from core.worker.completions import Completions
from core.worker.process import Parts, gather

NOT_IN_LOCAL_MODE = (
    "SCHEDULER_MODE=local has everything in one process, without Redis: `dramatiq core.main` and `periodiq core.main` "
    "do not start; run `rota worker`, which needs no scheduler beside it, or set SCHEDULER_MODE to auto"
)


def build(parts: Parts) -> RotaBroker:
    """The broker with everything on it."""
    configured = parts.configured
    assert configured.redis_url is not None, "only local mode goes without"
    url = configured.redis_url.get_secret_value()
    watch = RedisWatch(redis.probe(url), lambda client: broker.wakeups.look_around(client))
    occupation = Occupation()
    life = ProcessLife(
        lambda queues: parts.heartbeat("worker", queues, broker.broker_id),
        lambda: parts.dispatcher(carrier),
        parts.watchdog,
        record_the_rest=lambda: completions.stop(),
    )
    direct = DirectRuns(
        occupation,
        lambda hands, queues: parts.taker(hands, queues, lambda: not (carrier.carries or broker.is_draining)),
    )
    completions = Completions(parts.engine, lambda: life.process_id)
    broker = brokers.build(
        redis.connect(url),
        [
            CurrentMessage(),  # first, so that everything below can ask which message it is about
            SchedulingOptions(),
            occupation,  # before those who ask it
            *([Watching(watch), direct] if configured.mode == "auto" else []),
            Draining(),  # before the heartbeat ends, which it does after the last job
            life,  # registers before the first message, leaves after the last
            Exposition(configured.metrics_port),
            Recycling(parts.endurance, occupation),
            FastLaneRetries(),  # last, so that it decides on a failed message before anyone else looks at it
        ],
        ask_fleet=parts.fleet,
        orphan_seconds=configured.orphan_seconds,
    )
    broker.may_claim = lambda: life.is_registered
    carrier = RedisCarrier(broker, watch.is_away.is_set)
    outbox.attach(carrier)

    @cache
    def announce_scheduler() -> None:
        heartbeat = parts.heartbeat("scheduler")
        heartbeat.start()
        atexit.register(heartbeat.stop)
        if configured.mode == "auto":
            watch.start()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # periodiq has no handler, and would leave no time for it

    executor = parts.executor(lambda: life.process_id, completions)
    brokers.declare(broker, parts.registry, parts.engine, executor, announce_scheduler, carrier=carrier)
    return broker


def start() -> RotaBroker:
    """Gather the parts and build the broker; what is wrong ends the process with a clear message."""
    parts = gather()
    if parts.configured.mode == "local":
        sys.exit(f"rota: {NOT_IN_LOCAL_MODE}")
    return build(parts)


broker = start()
dramatiq.set_broker(broker)
