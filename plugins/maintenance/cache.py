"""Deletes entries of the application's cache in Redis that have no TTL and were not used for a week.

An entry is a key ``cache:…`` without a TTL that contains a time: a JSON object or a hash with ``last_used_at`` or
``timestamp``. If it has both, the newer time is used. A time is one of these:

- a number of seconds since the Unix epoch, from 1e9 to 1e10 (2001 to 2286), or the same in milliseconds;
- ISO 8601, with or without separators (``20260710``, ``20260710120000``), in UTC if it has no zone. A date without a
  time means the end of that day.

Any other number (``2026``, ``12``) is not a time. Redis itself deletes keys that have a TTL. Keys without a valid time
are not deleted, and are counted.

The job reads the time and decides. Then a script in Redis deletes the key only if it still has no TTL and the same
time.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from core import Checkpoint, require_aware
from plugins.maintenance.application_redis import Client, scan

#: An entry is deleted when it has been unused for longer than this.
KEPT = timedelta(days=7)
PATTERN = b"cache:*"
#: Numbers in this range are seconds since 1970, from 9 September 2001 to 20 November 2286.
SECONDS = (1e9, 1e10)
#: Numbers in this range are milliseconds since 1970, for the same years.
MILLISECONDS = (1e12, 1e13)
#: A date, with or without separators.
DATE = re.compile(r"\d{8}|\d{4}-\d{2}-\d{2}")
#: A date and a time of day, as digits without separators.
DIGITS = re.compile(r"(\d{8})(\d{4}|\d{6})")
#: Larger values are not decoded, since Redis would serve no other command meanwhile.
LARGEST = 1_000_000

Times: TypeAlias = Sequence[bytes]

#: Returns the two times of a key without TTL, as strings, which are empty if the key has none. Returns nothing for
#: other keys.
READ = f"""
    local function as_string(value)
        if type(value) == 'number' then return string.format('%.17g', value) end
        if type(value) == 'string' then return value end
        return ''
    end
    local function times(key)
        if redis.call('PTTL', key) ~= -1 then return nil end
        local kind = redis.call('TYPE', key).ok
        if kind == 'hash' then
            local found = redis.call('HMGET', key, 'last_used_at', 'timestamp')
            return {{as_string(found[1]), as_string(found[2])}}
        end
        if kind == 'string' and redis.call('STRLEN', key) <= {LARGEST} then
            local readable, entry = pcall(cjson.decode, redis.call('GET', key))
            if readable and type(entry) == 'table' then
                return {{as_string(entry.last_used_at), as_string(entry.timestamp)}}
            end
        end
        return {{'', ''}}
    end
"""
READ_ALL = f"""{READ}
    local all = {{}}
    for number, key in ipairs(KEYS) do all[number] = times(key) or {{}} end
    return all
"""
DELETE_UNCHANGED = f"""{READ}
    local deleted = 0
    for number, key in ipairs(KEYS) do
        local now = times(key)
        if now and now[1] == ARGV[2 * number - 1] and now[2] == ARGV[2 * number] then
            deleted = deleted + redis.call('UNLINK', key)
        end
    end
    return deleted
"""


def delete_unused(redis: Client, now: datetime, *, checkpoint: Checkpoint | None = None) -> dict[str, int]:
    """Delete cache entries that were unused for more than 7 days.

    Return the numbers of ``deleted`` keys, and of ``untimed`` keys, which are kept.
    """
    require_aware(now=now)
    read, delete = redis.register_script(READ_ALL), redis.register_script(DELETE_UNCHANGED)
    counts = {"deleted": 0, "untimed": 0}
    for keys in scan(redis, PATTERN):
        found = zip(keys, read(keys=keys), strict=True)
        last_used = [(key, times, _last_used(times)) for key, times in found if times]
        unused = [(key, times) for key, times, used_at in last_used if used_at is not None and used_at < now - KEPT]
        if unused:
            args = [time for _, times in unused for time in times]
            counts["deleted"] += delete(keys=[key for key, _ in unused], args=args)
        counts["untimed"] += sum(used_at is None for _, _, used_at in last_used)
        if checkpoint is not None:
            checkpoint(counts)
    return counts


def _last_used(times: Times) -> datetime | None:
    read = [instant for time in times if (instant := _instant(time)) is not None]
    return max(read, default=None)


def _instant(time: str | bytes) -> datetime | None:
    text = (time.decode(errors="replace") if isinstance(time, bytes) else time).strip()
    try:
        return _from_number(text) or _from_text(text)
    except (ValueError, OverflowError):
        return None


def _from_number(text: str) -> datetime | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if SECONDS[0] <= number < SECONDS[1]:
        return datetime.fromtimestamp(number, UTC)
    if MILLISECONDS[0] <= number < MILLISECONDS[1]:
        return datetime.fromtimestamp(number / 1000, UTC)
    return None


def _from_text(text: str) -> datetime:
    parsed = datetime.fromisoformat(DIGITS.sub(r"\1T\2", text) if DIGITS.fullmatch(text) else text)
    instant = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)
    return instant + timedelta(days=1) if DATE.fullmatch(text) else instant
