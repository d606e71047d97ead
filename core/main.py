"""Entry point of the processes ``dramatiq core.main`` and ``periodiq core.main``.

With ``SCHEDULER_MODE=local`` neither of them starts; ``rota worker`` then runs ``core/worker/local.py``. Importing this
module reads the settings, loads the plugins and declares their jobs. It does not connect to a server.

To follow a run through the code: a job is declared in a plugin's ``jobs.py``. ``core/ledger/slots.py`` inserts a slot
of the job as a run, and ``core/scheduling/firing.py`` sends the run's message. A worker claims the run in
``core/middleware/overlap_lock.py``. The plugin's functions do the work in the transaction of
``core/middleware/db_session.py``. ``core/ledger/runs.py`` records the success in the same transaction. Then Dramatiq
acknowledges the message.
"""

import atexit
import signal
import sys
from functools import cache

import dramatiq
from dramatiq.middleware import CurrentMessage

from core.ledger import outbox
from core.middleware.fast_lane_retries import FastLaneRetries
from core.middleware.fitness import FitServers
from core.middleware.ledger_feed import LedgerFeeding
from core.middleware.leftovers_search import LeftoversSearch
from core.middleware.lifecycle import Lifecycle
from core.middleware.liveness import Liveness
from core.middleware.metrics_server import MetricsServer
from core.middleware.periodiq_options import PeriodiqOptions
from core.middleware.recycling import Recycling
from core.transport import redis
from core.transport.redis import RedisCarrier, RedisWatch, RotaBroker
from core.transport.redis.misfits import Misfits
from core.worker import actors
from core.worker.claiming import ClaimingAhead
from core.worker.completions import Completions
from core.worker.process import WorkerProcess, gather

NOT_IN_LOCAL_MODE = (
    "SCHEDULER_MODE=local runs everything in one process, without Redis: `dramatiq core.main` and `periodiq core.main` "
    "do not start; run `rota worker`, which needs no other process, or set SCHEDULER_MODE to auto"
)


def build(process: WorkerProcess) -> RotaBroker:
    """Return the broker with all its parts. Each object is made before the objects that need it."""
    configured = process.configured
    assert configured.redis_url is not None, "only local mode works without Redis"
    url = configured.redis_url.get_secret_value()
    heartbeat = process.heartbeat("worker")
    completions = Completions(process.engine, heartbeat)
    executor = process.executor(heartbeat, completions)
    broker = RotaBroker(
        redis.connect(url),
        ledger_queues=process.registry.ledger_queues,
        may_claim=heartbeat.registered.is_set,
        preparation=ClaimingAhead(process.registry, executor.claims),
        ask_fleet=process.fleet,
        orphan_seconds=configured.orphan_seconds,
        reserved=process.reserved,
    )
    watch = RedisWatch(redis.probe(url), broker.wakeups.look_around)
    carrier = RedisCarrier(broker.redis_queues, watch.is_away.is_set)
    outbox.attach(carrier)
    fitness = process.fitness(redis.probe(url))
    may_lose_redis = configured.mode == "auto"

    lease_seconds = configured.lease_seconds
    broker.add_middleware(
        Liveness(process.engine, heartbeat, lease_seconds)
    )  # shows from the very beginning that the process lives
    broker.add_middleware(CurrentMessage())  # outermost, so that later middleware can read the current message
    broker.add_middleware(PeriodiqOptions())  # before actors are declared with these options
    if may_lose_redis:
        broker.add_middleware(LedgerFeeding(process.ledger_feed(carrier)))  # takes runs from the ledger without Redis
    broker.add_middleware(FitServers(fitness))  # checks the servers before they are used
    broker.add_middleware(  # registers before the first message, leaves after the last
        Lifecycle(
            heartbeat,
            process.dispatcher(carrier),
            process.watchdog(),
            completions,
            watch=watch if may_lose_redis else None,
        )
    )
    broker.add_middleware(LeftoversSearch(process.engine, process.registry, heartbeat))  # after the registration
    broker.add_middleware(MetricsServer(configured.metrics_port))  # Dramatiq forks it before it starts the workers
    broker.add_middleware(Recycling(process.recycling_limits))  # counts messages that have ended
    broker.add_middleware(  # last, so that it is the first to see a failed message
        FastLaneRetries(Misfits(broker.redis_queues, process.fits_elsewhere))
    )

    @cache
    def announce_scheduler() -> None:
        fitness.refuse_unfit()
        announced = process.heartbeat("scheduler")
        announced.start()
        atexit.register(announced.stop)
        if may_lose_redis:
            watch.start()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # periodiq has no handler, so atexit would not run

    actors.declare(broker, process.registry, process.engine, executor, carrier, announce_scheduler)
    return broker


def start() -> RotaBroker:
    """Create the parts and build the broker. An error in the configuration ends the process with a clear message."""
    process = gather()
    if process.configured.mode == "local":
        sys.exit(f"rota: {NOT_IN_LOCAL_MODE}")
    return build(process)


broker = start()
dramatiq.set_broker(broker)
