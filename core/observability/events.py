"""Every event that Rota logs: its name, fields, level and text. Only this module defines texts of log lines.

An event's name never changes, since dashboards and alerts use it. ``docs/events.md`` lists all events.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Any, ClassVar, TypeVar, dataclass_transform

#: All events by name.
EVENTS: "dict[str, type[Event]]" = {}
E = TypeVar("E", bound="Event")


@dataclass(slots=True)
class Event:
    """The base class of all events. Their fields hold only values that JSON can hold. Spans are in seconds."""

    name: ClassVar[str]
    level: ClassVar[int]
    #: The text for people, with the fields in braces.
    words: ClassVar[str]

    @property
    def severity(self) -> int:
        """The level of this event."""
        return self.level

    @property
    def logger(self) -> str:
        """The name of the logger of this event."""
        return f"rota.{self.name.partition('.')[0]}"

    def fields(self) -> Mapping[str, Any]:
        """Return the fields by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __str__(self) -> str:
        return f"{self.name}: {self.words.format_map(self.fields())}"


@dataclass_transform()
def event(name: str, level: int, words: str) -> Callable[[type[E]], type[E]]:
    """Declare an event. ``name`` has the form ``topic.what_happened``. ``words`` is the event's text for people."""

    def declare(declared: type[E]) -> type[E]:
        made = dataclass(slots=True)(declared)
        made.name, made.level, made.words = name, level, words
        EVENTS[name] = made
        return made

    return declare


def emit(event: Event, error: BaseException | None = None) -> None:
    """Log ``event``, with the traceback of ``error`` if there is one. Never raises."""
    logger = logging.getLogger(event.logger)
    if logger.isEnabledFor(event.severity):
        logger.log(event.severity, event, exc_info=error)


# Runs


@event("run.succeeded", INFO, "run {run} succeeded in {seconds:.3f} s")
class RunSucceeded(Event):
    """The run's success is committed, together with the job's own changes."""

    job: str
    run: int
    attempt: int
    seconds: float


@event("run.failed", WARNING, "run {run} failed after {seconds:.3f} s and is {state}: {error}")
class RunFailed(Event):
    """An attempt failed. The level is warning with the state `retrying`, and error with the state `dead`. The event has
    the traceback.
    """

    job: str
    run: int
    attempt: int
    #: The run's new state: ``retrying`` or ``dead``.
    state: str
    reason: str
    seconds: float
    #: The type and the first line of the error.
    error: str

    @property
    def severity(self) -> int:
        """The level of this event: error if the run will not be tried again."""
        return ERROR if self.state == "dead" else WARNING


@event("run.postponed", INFO, "run {run} was postponed until {until} and is {state}: {reason}")
class RunPostponed(Event):
    """The function raised `Later`, which is not a failure. If the function asked for more than 7 days in all, or for a
    time past the run's `expires`, the run is dead, and the level is error.
    """

    job: str
    run: int
    #: The run's new state: ``queued``, ``retrying`` or ``dead``.
    state: str
    #: The time that the function asked for.
    until: str
    #: How many times the run was postponed.
    laters: int
    #: The reason that the function gave.
    reason: str

    @property
    def severity(self) -> int:
        """The level of this event: error if the run will not be tried again."""
        return ERROR if self.state == "dead" else INFO


@event(
    "run.lease_lost", WARNING, "run {run} was given to another worker after {seconds:.3f} s; nothing was committed here"
)
class RunLeaseLost(Event):
    """This process sent no heartbeat for too long, so another worker has the run now. This process can no longer commit
    the attempt's work.
    """

    job: str
    run: int
    attempt: int
    seconds: float


@event("run.not_connected", WARNING, "PostgreSQL had no connection for run {run}, which is {state}: {error}")
class RunNotConnected(Event):
    """The run was released, uncounted. After an hour without a connection, the run is dead, and the level is error."""

    job: str
    run: int
    #: The run's new state: ``retrying`` or ``dead``.
    state: str
    error: str

    @property
    def severity(self) -> int:
        """The level of this event: error if the run will not be tried again."""
        return ERROR if self.state == "dead" else WARNING


@event("run.interrupted", WARNING, "{runs} running runs are interrupted: their leases are lost")
class RunInterrupted(Event):
    """This process sent no heartbeat for too long, so its runs have lost their leases. It closes the connections of
    these runs, so that PostgreSQL frees their locks.
    """

    runs: int


@event("run.idle_in_transaction", WARNING, "run {run} of {job} has not used its transaction for {seconds} s")
class RunIdleInTransaction(Event):
    """An idle transaction still holds its connection and its locks. The job should call `run.checkpoint()` before it
    waits.
    """

    job: str
    run: int
    seconds: float


@event("run.cancelling", INFO, "cancelled run {run} is interrupted; it cannot commit")
class RunCancelling(Event):
    """The process that works on the run has noticed the cancel. The run ends when its function has returned."""

    run: int


@event("run.cancelled", INFO, "run {run} was cancelled {by}")
class RunCancelled(Event):
    """A run that was running when it was cancelled has ended, and nothing was committed after the cancel."""

    job: str
    run: int
    #: The person who has cancelled the run, and the reason: ``by ann@host: wrong customers``.
    by: str


@event(
    "run.not_leaving",
    ERROR,
    "run {run} was cancelled, and its thread is stuck in {place}; its process ends and is replaced",
)
class RunNotLeaving(Event):
    """The function of a cancelled run has not returned within 30 seconds, or its thread is stuck in C code. The run
    ends as cancelled. The other runs of the process are released, uncounted.
    """

    job: str
    run: int
    #: The file, line and function in which its thread is.
    place: str


@event("run.skipped", INFO, "run {run} skipped: {reason}")
class RunSkipped(Event):
    """A worker has skipped a slot. [Operating](operating.md#reasons) explains the reasons."""

    job: str
    run: int
    reason: str


@event("run.locked", DEBUG, "run {run} is locked by another transaction, and is sent again soon")
class RunLocked(Event):
    """A transaction has called `enqueue(…, unless="waiting")`, found this run, and locked it. The run starts when that
    transaction has ended.
    """

    job: str
    run: int


@event("run.paused", INFO, "run {run} waits: its job is paused")
class RunPaused(Event):
    """A message arrived for a run whose job is paused. The run waits in the ledger."""

    job: str
    run: int


@event(
    "run.misfit",
    INFO,
    "run {run} is released: its arguments do not fit the job here, but may fit it on another live worker",
)
class RunMisfit(Event):
    """Two live releases declare a job differently, and the arguments of the run do not fit the release that got it. The
    run is released, uncounted, for a worker of the other release. If its arguments fit no live worker, the run is dead
    with the reason `arguments`.
    """

    job: str
    run: int


@event("run.progress", INFO, "{progress}")
class RunProgress(Event):
    """The progress of a long run. Logged at most every ten seconds."""

    #: The progress that the job passed to `run.checkpoint`, as JSON text.
    progress: str


@event("run.isolated", WARNING, "run {run} gets its own process, since processes died while working on it")
class RunIsolated(Event):
    """Several processes died while working on this run, so its last attempt is made in a process of its own. If that
    process dies too, the run is dead, and the worker continues. If the worker ends first, the run is released,
    uncounted.
    """

    job: str
    run: int


@event("run.hard_limit", ERROR, "run {run} passed its hard limit ({limit_seconds:.0f} s); this process ends")
class RunHardLimit(Event):
    """A job did not end in time. Its process exits with status 70 and is restarted. Find out where the job hangs."""

    job: str
    run: int
    limit_seconds: float


@event("run.not_claimed", ERROR, "no run can be claimed: {error}")
class RunNotClaimed(Event):
    """PostgreSQL is away, or this process is not registered. The event is logged once. The runs stay in the ledger."""

    error: str


@event("run.not_claimed_ahead", DEBUG, "runs were not claimed together: {error}")
class RunNotClaimedAhead(Event):
    """A batch of runs could not be claimed together. Each of them is claimed alone."""

    error: str


@event("run.not_woken", WARNING, "{runs} ended runs could not wake the runs that wait for them: {error}")
class RunNotWoken(Event):
    """PostgreSQL was away when runs had ended that other runs may wait for. The dispatcher wakes these other runs
    within seconds.
    """

    runs: int
    error: str


@event("run.waits", DEBUG, "run {run} waits for another run of its key")
class RunWaits(Event):
    """Another run of the same job and key is running or comes first. This run starts when its turn comes."""

    job: str
    run: int


@event("run.limited", DEBUG, "run {run} waits for one of its limits, which is full or closed")
class RunLimited(Event):
    """One of the run's limits is full or closed. The run starts when there is room. `rota why` names the limit."""

    job: str
    run: int


@event("run.not_released", WARNING, "{runs} runs could not be released: {error}")
class RunNotReleased(Event):
    """PostgreSQL went away while a worker released runs that it had claimed and not started. The runs are released
    within half a minute.
    """

    runs: int
    error: str


@event("run.not_recorded", WARNING, "an outcome could not be recorded, trying again: {error}")
class RunNotRecorded(Event):
    """PostgreSQL went away at the end of an attempt. The process tries every second to record the outcome, while the
    lease lasts.
    """

    error: str


@event("run.forgotten", WARNING, "{runs} runs were claimed here and no thread works on them; released: {ids}")
class RunForgotten(Event):
    """The answer to a claim was lost between PostgreSQL and this process, so no thread worked on its run. The run is
    queued again.
    """

    runs: int
    #: The ids of the first runs.
    ids: str


@event("run.lost_too_often", ERROR, "run {run} was lost too often by a living process; it is dead")
class RunLostTooOften(Event):
    """A living process claimed the run several times, and the answer to the claim was lost each time. The run is dead,
    with the reason `lost`.
    """

    job: str
    run: int


@event("run.conflict", INFO, "run {run} was interrupted by PostgreSQL, trying again at once: {error}")
class RunConflict(Event):
    """PostgreSQL aborted the job's transaction because of another transaction (serialization failure, deadlock), the
    connection was cut before the first answer, or a function had executed DEALLOCATE. The attempt is repeated at once,
    uncounted, a few times.
    """

    job: str
    run: int
    error: str


@event("run.not_isolated_yet", INFO, "run {run} waits for its own process: another run has one here")
class RunNotIsolatedYet(Event):
    """A worker process isolates one run at a time. This run is sent again later."""

    job: str
    run: int


@event("middleware.failed", ERROR, "{middleware} of plugin {plugin}: {problem}")
class MiddlewareFailed(Event):
    """A plugin's middleware raised an error, hung, or swallowed the job's error. The run's outcome does not change."""

    plugin: str
    middleware: str
    problem: str


@event("run.recovered", WARNING, "run {run} of a dead worker is {state} after attempt {attempt}")
class RunRecovered(Event):
    """The run of a dead worker is queued again, or dead after too many crashes."""

    job: str
    run: int
    attempt: int
    state: str


@event("run.orphaned", WARNING, "{runs} runs ended: no process has their job ({reason}); `rota orphans` lists them")
class RunOrphaned(Event):
    """Waiting runs ended because no live process has their job; see `rota orphans`."""

    job: str
    runs: int
    reason: str


@event("run.no_subject", WARNING, "run {run} of {job} is orphaned: its row of {table} does not exist")
class RunHasNoSubject(Event):
    """The row that the run is about did not exist before the run's first attempt. The run can be adopted when the row
    exists.
    """

    job: str
    run: int
    table: str


@event("run.subject_unknown", WARNING, "run {run} of {job} waits: its subject could not be looked up: {error}")
class RunSubjectUnknown(Event):
    """The run was released, uncounted, and is sent again after `ROTA_RESEND_SECONDS`."""

    job: str
    run: int
    error: str


@event("run.readopted", WARNING, "{job} is back: {runs} runs that were orphaned in its absence are adopted")
class RunReadopted(Event):
    """A job that no live process had is back. Its runs that were orphaned meanwhile have their former states again."""

    job: str
    runs: int


@event("run.moved", WARNING, "{runs} runs on queue {queue} are moved to the queue that their job has now")
class RunMoved(Event):
    """Runs were waiting on a queue that no job uses any more. They are moved to the queue that their job has now."""

    queue: str
    runs: int


@event("run.expired", WARNING, "{count} runs of {job} have expired before they were started")
class RunExpired(Event):
    """The `expires` of these runs has passed. They are missed with the reason `expired`: no worker was free, or their
    job was paused.
    """

    job: str
    count: int


# Slots


@event("slot.not_sent", WARNING, "{slots} slots were not recorded: {error}; the dispatcher will record them")
class SlotNotSent(Event):
    """The scheduler could not reach PostgreSQL or Redis. The dispatcher records and sends the slots."""

    slots: int
    error: str


@event("slot.skipped", INFO, "{slots} slots skipped: {reason}")
class SlotSkipped(Event):
    """Slots that came due were skipped, for example because their job was paused."""

    job: str
    slots: int
    reason: str


@event("schedule.backs_off", WARNING, "run {run} of {job} is dead: its key has one slot in {every_seconds} s at most")
class KeyBacksOff(Event):
    """Several runs of a key were dead in a row. Until a run of the key succeeds, only some of its slots come due."""

    job: str
    run: int
    every_seconds: int


@event(
    "schedule.differs",
    WARNING,
    "schedules of {job} differ from the wanted ones: {missing} missing, {different} different, {unwanted} not wanted",
)
class SchedulesDiffer(Event):
    """The daily check found differences, and changed nothing. `rota schedules sync JOB --dry-run` shows the keys."""

    job: str
    missing: int
    different: int
    unwanted: int


@event("schedule.not_compared", ERROR, "schedules of {job} not compared with those that its plugin wants: {error}")
class SchedulesNotCompared(Event):
    """The plugin's function that reads the wanted schedules raised an error, or returned an invalid schedule."""

    job: str
    error: str


@event("schedule.unreadable", ERROR, "no slots of schedules {schedule!r} of {job}: this host lacks the time zone")
class ScheduleUnreadable(Event):
    """The leader cannot read a cron expression that another process has stored, so the keys with it get no slots.

    Install the same time zones on all hosts.
    """

    job: str
    schedule: str


@event("schedule.backoff_not_recorded", WARNING, "back-off after run {run} of {job} not recorded: {error}")
class KeyBackoffNotRecorded(Event):
    """PostgreSQL was away, so the end of this run does not count for the key's back-off. The end of the next run
    counts.
    """

    job: str
    run: int
    error: str


@event("slot.missed", WARNING, "{slots} slots missed ({reasons}): {note}")
class SlotMissed(Event):
    """Slots were recorded as missed, by their job's misfire policy. `reasons` has the number of slots for each reason.
    `rota why` explains each slot.
    """

    job: str
    slots: int
    #: The number of slots for each reason: ``superseded: 3, grace: 1``.
    reasons: str
    note: str


@event("slot.overdue", ERROR, "{slots} slots overdue; last success: {last_success}; see `rota check`")
class SlotOverdue(Event):
    """At least the last two slots of the job had no success: see `rota check` and [the dead man's
    switch](metrics.md#the-dead-mans-switch).
    """

    job: str
    slots: int
    #: The time as an ISO 8601 instant; null if there was no success.
    last_success: str | None


@event("slot.caught_up", INFO, "slots of {job} are no longer overdue")
class SlotCaughtUp(Event):
    """A slot of the job has succeeded again."""

    job: str


@event("slot.forgotten", WARNING, "slots of {job} are no longer accounted for: {reason}")
class SlotForgotten(Event):
    """The slots of a job that no process has are no longer accounted for, until the job returns."""

    job: str
    reason: str


# Messages


@event("message.dead", ERROR, "message {message} failed after {retries} retries and is dead-lettered")
class MessageDead(Event):
    """A message of the fast lane has used up its retries. It stays in the dead-letter queue for a week."""

    job: str
    message: str
    retries: int


@event("message.hard_limit", ERROR, "message {message} passed its hard limit ({limit_seconds:.0f} s); the process ends")
class MessageHardLimit(Event):
    """A job on the fast lane did not end in time. Its process exits with status 70 and is restarted. The message is
    dead-lettered at once, even if it has retries left, since it would also end the next process.
    """

    job: str
    message: str
    limit_seconds: float


@event("message.retry_waits", WARNING, "the retry of message {message} waits for Redis: {error}")
class MessageRetryWaits(Event):
    """Redis is away. A retry of the fast lane waits until Redis is back."""

    message: str
    error: str


@event("message.rejected", ERROR, "an entry on queue {queue} is not a message ({problem}); it is dead-lettered")
class MessageRejected(Event):
    """An entry on a queue is not one of Rota's messages. It stays in the dead-letter queue for a week. Find out which
    program writes such entries.
    """

    queue: str
    problem: str


@event("message.requeued", INFO, "{messages} messages on queue {queue} were assigned here but never received; requeued")
class MessageRequeued(Event):
    """Redis had assigned messages to this process, but the process did not receive them. They are requeued."""

    queue: str
    messages: int


@event("message.lost", WARNING, "{messages} messages were lost: the fast lane of local mode is in memory")
class MessageLost(Event):
    """In local mode, the process ended before all messages of the fast lane had started, since its grace was over."""

    job: str
    messages: int


@event("message.not_acknowledged", ERROR, "messages could not be acknowledged; trying again")
class MessageNotAcknowledged(Event):
    """An acknowledgement failed because of an error that does not come from Redis. It is tried again."""


@event("message.orphaned", WARNING, "no process has the job of a message on queue {queue}; it is dead-lettered")
class MessageOrphaned(Event):
    """No live process has the job of a message of the fast lane. The message is in the dead-letter queue for a week."""

    job: str
    queue: str


@event("message.dropped", INFO, "no process has the job of a message on queue {queue}; the ledger has its run")
class MessageDropped(Event):
    """A message of a run was dropped, since no live process has its job. The ledger still has the run."""

    job: str
    queue: str


@event("message.not_requeued", WARNING, "{messages} messages for other processes could not be requeued: {error}")
class MessageNotRequeued(Event):
    """Redis is away. Messages for other processes are requeued when Redis is back."""

    messages: int
    error: str


@event("message.undecided", ERROR, "no decision about {messages} messages for other processes; trying again")
class MessageUndecided(Event):
    """Rota had an error of its own while it decided about messages for other processes. It tries again. Please report
    the error.
    """

    messages: int


@event("message.cleared", WARNING, "{messages} messages left queue {queue}, which no process serves: {outcome}")
class MessageCleared(Event):
    """No process serves that queue any more. Its messages were dropped (the ledger has their runs), moved to their
    job's present queue, or dead-lettered as orphaned.
    """

    queue: str
    job: str
    messages: int
    outcome: str


@event("leftovers.removed", INFO, "{leftovers} removed from Redis for {by}: {kind}, queue {queue!r}, job {job!r}")
class LeftoversRemoved(Event):
    """Old messages or results of no use were removed from Redis. `by` is the person or the job that asked."""

    kind: str
    queue: str
    job: str
    leftovers: int
    by: str


@event("leftovers.not_searched", WARNING, "leftovers in Redis are not searched: {error}")
class LeftoversNotSearched(Event):
    """The search for leftovers was not requested when the worker started, since PostgreSQL cannot be used. The daily
    search goes on.
    """

    error: str


# Operations


@event("operation.confirmed", INFO, "operation {operation} begins for {by}: {action} {items}")
class OperationConfirmed(Event):
    """A person has confirmed a plan. The job `carry-out-operation` carries it out."""

    operation: int
    action: str
    items: int
    by: str


@event("operation.finished", INFO, "operation {operation} is done: {action}, {changed} changed, {left_out} left out")
class OperationFinished(Event):
    """All items of an operation (runs, or leftovers in Redis) were changed, or left as they are since they were no
    longer as planned."""

    operation: int
    action: str
    changed: int
    left_out: int


@event("operation.stopped", WARNING, "operation {operation} stopped after {changed} of {items}: {reason}")
class OperationStopped(Event):
    """The person who confirmed an operation may no longer do it. A person with the rights can confirm it again."""

    operation: int
    action: str
    changed: int
    items: int
    reason: str


@event("operation.cancelled", INFO, "{by} cancelled operation {operation} after {changed} of {items}")
class OperationCancelled(Event):
    """A person has cancelled an operation. The items that it has changed stay changed."""

    operation: int
    action: str
    changed: int
    items: int
    by: str


# Outbox


@event("outbox.not_delivered", WARNING, "after a commit: {error}; the dispatcher will send the runs")
class OutboxNotDelivered(Event):
    """Redis was away just after a commit. The dispatcher sends the runs. Publications are lost."""

    error: str


# Processes


@event("process.registered", INFO, "{kind} registered as {id}")
class ProcessRegistered(Event):
    """A worker or scheduler has registered with the ledger."""

    kind: str
    id: int


@event("process.resumed", INFO, "{kind} {id} continues: its connection was cut, and it has a new one")
class ProcessResumed(Event):
    """The connection that shows that this process is alive was cut. The process has a new connection, and keeps its
    runs.
    """

    kind: str
    id: int


@event("process.not_registered", ERROR, "not registered: {error}; trying again")
class ProcessNotRegistered(Event):
    """PostgreSQL is away or not migrated, or the role lacks the named right. Until the process is registered, it claims
    no runs and fetches no messages from queues of the ledger. It tries to register twice a second.
    """

    error: str


@event("process.expired", WARNING, "{id}: its leases are lost; registering again")
class ProcessExpired(Event):
    """This process was paused, or PostgreSQL was away, for longer than the lease. It registers again."""

    id: int


@event("process.released", INFO, "{runs} runs released: {reason}")
class ProcessReleased(Event):
    """A process that stops, or that has lost its registration, released its runs, uncounted."""

    runs: int
    reason: str


@event("process.lost", WARNING, "{kind} {id} ({process}) died or sent no heartbeat")
class ProcessLost(Event):
    """A worker or scheduler died, or sent no heartbeat. Its log, or the log of its supervisor, may tell the reason."""

    kind: str
    id: int
    #: The host and the pid of the process.
    process: str


@event("process.unfit", ERROR, "{problems}")
class ProcessUnfit(Event):
    """PostgreSQL or Redis answers, but this process can never work with it. For example, Redis now belongs to another
    ledger. The process ends. The event and `rota check` say what is wrong and what to do.
    """

    problems: str


@event("process.child_ended", WARNING, "process {pid}, which the job forked, left the job's function with {error}")
class ProcessChildEnded(Event):
    """A child process that a job has forked returned from the job's function with an error, and was ended there. The
    run continues in the parent. The traceback is logged.
    """

    pid: int
    #: The type of the error.
    error: str


@event("process.state_put_back", WARNING, "{what} was changed by {jobs}, and is restored")
class ProcessStatePutBack(Event):
    """A run changed the state of its process. The former state was restored. The event is logged once for each kind of
    state and job.
    """

    #: The job; several jobs if their runs were running at the same time; ``a job`` if the job is unknown.
    jobs: str
    what: str


@event("process.state_kept", INFO, "{what} was changed by {jobs}, and is not restored")
class ProcessStateKept(Event):
    """A run changed the state of its process, or left threads. The change stays, since a library may need it. The event
    is logged once for each kind of state and job.
    """

    #: The job; several jobs if their runs were running at the same time.
    jobs: str
    what: str


@event("process.recycling", INFO, "this process asks to be replaced after {messages} messages: {reason}")
class ProcessRecycling(Event):
    """This process has worked on many messages or uses much memory, and asks for a replacement. It has not failed."""

    reason: str
    messages: int


@event("process.not_recycled", WARNING, "this process cannot be replaced: {reason}")
class ProcessNotRecycled(Event):
    """Under `dramatiq` with several processes, one process cannot be replaced alone: start workers with `rota worker`.
    If there is a traceback, the process could not ask its supervisor, and continues.
    """

    reason: str


@event("process.stuck", ERROR, "a thread has made no progress for {seconds} s at {place}")
class ProcessStuck(Event):
    """A thread makes no progress, either outside of any job or in an attempt whose lease is lost. `rota check` names
    the process. If the thread makes no progress for six leases, the process ends.
    """

    seconds: int
    #: The place in the code: a file, a line and a function.
    place: str


@event("process.stuck_ends", ERROR, "a thread has made no progress for {seconds} s at {place}; the process ends")
class ProcessStuckEnds(Event):
    """The process ends, since one of its threads made no progress for six leases. Its runs are recovered."""

    seconds: int
    place: str


@event("limit.not_enforced", ERROR, "a time limit was not enforced")
class LimitNotEnforced(Event):
    """An action at a time limit failed. The traceback has the reason."""


# The dispatcher


@event("dispatcher.leading", INFO, "the dispatcher of this process leads")
class DispatcherLeading(Event):
    """Every worker has a dispatcher, but only one of them works at a time. Now the dispatcher of this process works."""


@event("dispatcher.deposed", WARNING, "the connection of leader {leader} was closed: its process sent no heartbeat")
class DispatcherDeposed(Event):
    """The leader's process sent no heartbeat, and its connection was closed so that another process can lead."""

    #: The application name of the leader's connections in PostgreSQL.
    leader: str


@event(
    "dispatcher.stepped_down",
    WARNING,
    "the leader steps down: this process cannot reach Redis, and another worker may reach it",
)
class DispatcherSteppedDown(Event):
    """The leader has not reached Redis for 10 seconds, and there are other live workers, so another worker leads now.
    If that worker cannot reach Redis either, it steps down as well.
    """


@event("dispatcher.interrupted", ERROR, "the dispatcher was interrupted: {error}; trying again")
class DispatcherInterrupted(Event):
    """The dispatcher's connection broke, or PostgreSQL is away. The dispatcher tries again. Meanwhile the dispatcher of
    another worker may lead.
    """

    error: str


@event("dispatcher.failed", ERROR, "the dispatcher failed, and continues")
class DispatcherFailed(Event):
    """The dispatcher had an error of its own, and continues. Please report the error with its traceback."""


@event("dispatcher.step_failed", ERROR, "step {step} failed: {error}; the other steps continue")
class DispatcherStepFailed(Event):
    """A step of the dispatcher fails, and the other steps continue. Logged once. If the event has a traceback, please
    report the error.
    """

    step: str
    error: str


@event("recovery.interrupted", ERROR, "the recovery of runs was interrupted: {error}; trying again")
class RecoveryInterrupted(Event):
    """The connection of the thread that recovers the runs of dead processes broke. The thread connects again."""

    error: str


@event("recovery.failed", ERROR, "recovering the runs of dead processes failed; trying again")
class RecoveryFailed(Event):
    """The thread that recovers the runs of dead processes had an error of its own, and continues. Please report the
    error.
    """


@event("dispatcher.not_sent", WARNING, "{runs} due runs could not be sent: {error}")
class DispatcherNotSent(Event):
    """Redis is away. Due runs stay in the ledger until Redis is back."""

    runs: int
    error: str


@event("dispatcher.sent_again", INFO, "{runs} runs are sent again: their messages were lost")
class DispatcherSentAgain(Event):
    """Messages were lost from Redis. Their runs are sent again."""

    runs: int


@event("dispatcher.recalled", INFO, "{runs} runs on queue {queue} wait in the ledger again: there were too many")
class DispatcherRecalled(Event):
    """A few keys had so many messages on the queue that runs with other keys would have waited for long. Most of the
    messages were removed, and their runs are sent again later.
    """

    queue: str
    runs: int


@event("dispatcher.not_recovered", WARNING, "messages of dead workers could not be requeued: {error}")
class DispatcherNotRecovered(Event):
    """Redis is away. Messages that a dead worker had fetched are requeued later."""

    error: str


@event("dispatcher.queues_not_searched", WARNING, "queues that no process serves could not be searched: {error}")
class DispatcherQueuesNotSearched(Event):
    """Redis is away. The search for queues that no process serves is repeated later."""

    error: str


@event("dispatcher.queue_not_cleared", WARNING, "queue {queue} could not be cleared: {error}")
class DispatcherQueueNotCleared(Event):
    """Redis is away, or a key with the name of a queue is not a queue. The dispatcher tries again."""

    queue: str
    error: str


@event("ledger_feed.interrupted", ERROR, "taking runs from the ledger was interrupted: {error}; trying again")
class LedgerFeedInterrupted(Event):
    """PostgreSQL failed while this process took runs directly from the ledger. The process tries again."""

    error: str


@event("ledger_feed.failed", ERROR, "taking runs from the ledger failed; trying again")
class LedgerFeedFailed(Event):
    """An error of Rota's own occurred while this process took runs directly from the ledger. The process continues.
    Please report the error.
    """


# Redis


@event("redis.trouble", ERROR, "{error}; trying again until Redis can be reached ({failures} failures so far)")
class RedisTrouble(Event):
    """Redis is away, full (`OOM`), a replica (`READONLY`) or slow; the text comes from Redis. This is logged once, and
    again every minute. Nothing is lost: messages stay in Redis, and acknowledgements are sent when Redis can be
    reached.
    """

    error: str
    failures: int


@event("redis.recovered", WARNING, "Redis can be used again after {failures} failures")
class RedisRecovered(Event):
    """Redis has worked again for 5 seconds."""

    failures: int


@event("redis.away", WARNING, "Redis is away, so runs are taken from the ledger: {error}")
class RedisAway(Event):
    """In the mode `auto`: Redis cannot be used, so workers take runs directly from the ledger."""

    error: str


@event("redis.back", WARNING, "Redis is back, and runs go through it again")
class RedisBack(Event):
    """In the mode `auto`: Redis can be used again, so runs go through Redis."""


# Plugins and settings


@event("plugin.broken", ERROR, "plugin {plugin} is broken: {error}")
class PluginBroken(Event):
    """The plugin has no jobs until it is fixed; see `rota plugins`."""

    plugin: str
    error: str


@event("plugin.failed", DEBUG, "plugin {plugin} could not be loaded")
class PluginFailed(Event):
    """The event has the traceback of the error that `plugin.broken` names."""

    plugin: str


@event("plugin.not_installed", WARNING, "ROTA_DISABLED_PLUGINS names {plugin}, which is not installed{suggestion}")
class PluginNotInstalled(Event):
    """`ROTA_DISABLED_PLUGINS` names a plugin that is not installed: the name is misspelt, or the plugin was
    uninstalled.
    """

    plugin: str
    suggestion: str


@event("setting.unknown", WARNING, "{variable} {reason}")
class SettingUnknown(Event):
    """No part of Rota reads this variable. It does no harm. Unset it, or install the plugin that reads it."""

    variable: str
    reason: str


@event(
    "reservation.unused", WARNING, "no threads are reserved for queue {queue}, since no loaded job uses it{suggestion}"
)
class ReservationUnused(Event):
    """`ROTA_RESERVED_THREADS` names this queue, which no loaded job uses. Correct the name, or install the plugin that
    has jobs on this queue.
    """

    queue: str
    suggestion: str


@event("job.outlives_its_runs", WARNING, "{reason}")
class JobOutlivesItsRuns(Event):
    """The job's `misfire_grace` is longer than `ROTA_RETENTION_DAYS`."""

    job: str
    reason: str


# Metrics and logs


@event("metrics.serving", INFO, "metrics are served on port {port}")
class MetricsServing(Event):
    """`/metrics` can be read on this port."""

    port: int


@event(
    "metrics.not_served",
    WARNING,
    "metrics cannot be served on port {port}: {error}; set ROTA_METRICS_PORT to another port, or to 0 for none",
)
class MetricsNotServed(Event):
    """The port cannot be used, usually because another worker on the host uses it. Give each worker a
    `ROTA_METRICS_PORT` of its own.
    """

    port: int
    error: str


@event("metrics.given_up", WARNING, "{error}; this process works without metrics")
class MetricsGivenUp(Event):
    """The disk with the metrics is full, or another user owns the folder. Work continues without metrics."""

    error: str


@event("thread.not_started", WARNING, "thread {thread} could not be started: {error}; callers do its work")
class ThreadNotStarted(Event):
    """The machine allows no more threads for this user. The threads that needed the missing thread do its work
    themselves, which is slower.
    """

    thread: str
    error: str


@event("metrics.not_written", ERROR, "a measurement was not written")
class MetricsNotWritten(Event):
    """A metric could not be written, for example because the disk is full. The run continued."""


@event("log.dropped", WARNING, "{lines} lines were dropped: the reader of this log did not keep up")
class LogDropped(Event):
    """The program that reads the log was gone or too slow. Lines were dropped so that work could continue."""

    lines: int


# Sweeps


@event("sweep.rows_refused", ERROR, "{rows} rows of {table} were refused ({reason}): {ids}")
class SweepRowsRefused(Event):
    """Rows violate a constraint, so a sweep left them unchanged. All other rows were processed. Check the named
    rows.
    """

    table: str
    rows: int
    ids: str
    reason: str


# Programs


@event("worker.not_drained", WARNING, "{messages} messages on queue {queue} could not be requeued: {error}")
class WorkerNotDrained(Event):
    """A stopping worker could not requeue messages that it had not started, since Redis is away. Their runs are sent
    again.
    """

    queue: str
    messages: int
    error: str


@event("worker.stopping", INFO, "stopping; waits up to {seconds:.0f} s for running jobs")
class WorkerStopping(Event):
    """`rota worker` was told to stop."""

    seconds: float


@event("worker.stopped", INFO, "stopped")
class WorkerStopped(Event):
    """`rota worker` has ended all its processes."""


@event("worker.replaced", INFO, "{worker} was replaced by a new process")
class WorkerReplaced(Event):
    """A worker process had asked for a replacement. The replacement was working before the old process ended."""

    worker: str


@event("worker.silent", ERROR, "{worker} does not respond; it is killed and restarted")
class WorkerSilent(Event):
    """A worker process hangs or was stopped by a signal: its supervisor received no sign of life for longer than a
    lease.
    """

    worker: str


@event("worker.left", WARNING, "{worker}, which was replaced, ended with {status}")
class WorkerLeft(Event):
    """A replaced process did not end normally. Its runs are recovered."""

    worker: str
    status: str


@event("supervisor.restarting", WARNING, "{program} {reason}; restarts in {seconds:.0f} s")
class SupervisorRestarting(Event):
    """A program that `rota up` or `rota worker` started has ended and is restarted after 1 to 30 seconds."""

    program: str
    reason: str
    seconds: float


@event("supervisor.finished", INFO, "{program} has finished")
class SupervisorFinished(Event):
    """A program that is meant to run once has ended."""

    program: str


@event("supervisor.killing", WARNING, "killing {programs}, which did not end in time")
class SupervisorKilling(Event):
    """Programs did not end within `--grace`, and are killed. Their runs are recovered after the next start."""

    programs: str


@event(
    "supervisor.guard_lost",
    WARNING,
    "the guard has ended: {error}; if this process is killed, its programs may keep running",
)
class SupervisorGuardLost(Event):
    """The guard has ended, which ends all programs if `rota up` or `rota worker` is killed. Restart the command when it
    is convenient.
    """

    error: str


@event("up.starting", INFO, "{server} starts, with its data in {data}")
class UpStarting(Event):
    """`rota up` starts an embedded server."""

    server: str
    data: str


@event("up.interrupted", INFO, "stopped: interrupted while starting")
class UpInterrupted(Event):
    """`rota up` was told to stop before everything had started."""


@event("up.stopping", INFO, "stopping; waits up to {seconds:.0f} s for running jobs; Ctrl-C again ends them")
class UpStopping(Event):
    """`rota up` was told to stop."""

    seconds: float


@event("up.stopped", INFO, "stopped")
class UpStopped(Event):
    """`rota up` has ended everything that it started."""


@event("embedded.account_created", WARNING, "account {account} was created: the servers do not run as root")
class EmbeddedAccountCreated(Event):
    """Root started `rota up`, so the embedded servers run as this account. The account must be able to reach their
    data.
    """

    account: str


# The HTTP service


@event("web.serving", INFO, "serves HTTP on {address}")
class WebServing(Event):
    """`rota web` answers requests."""

    address: str


@event("web.stopping", INFO, "stopping")
class WebStopping(Event):
    """`rota web` ends within a second."""


@event("web.failed", ERROR, "{method} {route} failed: {error} (request {request})")
class WebFailed(Event):
    """A request ended with an unexpected error, and its status was 500. The event has the traceback."""

    method: str
    #: The path of the route, without the values in it.
    route: str
    #: The type of the error.
    error: str
    #: The id that the answer names.
    request: str


@event("web.watch_failed", WARNING, "live pages wait until the ledger can be read again: {error}")
class WebWatchFailed(Event):
    """The watcher of the live pages could not read the ledger. It tries again every 2 seconds.

    If PostgreSQL cannot be reached, the pages say so.
    """

    #: The type of the error.
    error: str


@event("web.routes_broken", ERROR, "the routes of plugin {plugin} are not served: {error}")
class WebRoutesBroken(Event):
    """`rota web` cannot use a function of the plugin's routes. It serves none of these routes, but all others."""

    plugin: str
    error: str


@event("web.refused", WARNING, "{method} {path} from {address} was refused: {code} (request {request})")
class WebRefused(Event):
    """A caller was not known, had too few rights, came from a page of another site, made too many changes in a
    minute, or sent too many wrong secrets.
    """

    method: str
    path: str
    #: ``not-authenticated``, ``forbidden``, ``cross-origin``, ``too-many`` or ``too-many-failures``.
    code: str
    address: str
    request: str
