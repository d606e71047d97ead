"""periodiq and Dramatiq, set up as in their documentation, with ten or more jobs that are each due every minute."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from periodiq import PeriodiqMiddleware, cron

from benchmarks import meter

broker = RedisBroker(url=os.environ["REDIS_URL"])
broker.add_middleware(PeriodiqMiddleware())
dramatiq.set_broker(broker)

for number in range(int(os.environ.get("BENCH_SCHEDULES", "10"))):

    @dramatiq.actor(actor_name=f"bench-periodic-{number}", queue_name="bench-periodic", periodic=cron("* * * * *"))
    def periodic() -> None:
        """A no-op that leaves its time."""
        meter.tick()
