"""The files in which the processes of a worker share their metrics: what dead processes have left is put together.

Every process that is replaced would leave a handful of files, each of which each scrape would read, for ever.
"""

import re
import shutil
from contextlib import suppress
from pathlib import Path

from core.observability import metric_folder

#: What tells of a living process alone, and what counts for ever.
LIVE = re.compile(r"gauge_live\w+_(\d+)\.db")
LASTING = re.compile(r"(counter|histogram|gauge_mostrecent)_(\d+)\.db")
#: Under this number, which is no process's, are all the dead.
THE_DEAD = 0


def tidy(folder: Path) -> None:
    """Delete what told of dead processes as living, and put together what else they have left. Not thread-safe."""
    for path in folder.glob("*.db"):
        live, lasting = LIVE.fullmatch(path.name), LASTING.fullmatch(path.name)
        if live and not metric_folder.is_alive(int(live[1])):
            path.unlink(missing_ok=True)
        elif lasting and int(lasting[2]) != THE_DEAD and not metric_folder.is_alive(int(lasting[2])):
            remains = folder / f"{lasting[1]}_{THE_DEAD}.db"
            with suppress(OSError):  # without room they are read one by one
                put_together(path, remains, is_sum=not lasting[1].startswith("gauge"))


def put_together(path: Path, remains: Path, *, is_sum: bool) -> None:
    """Add the values in ``path`` to ``remains``, or keep the more recent ones, and delete ``path``.

    What is read meanwhile is the former remains or the new ones. Raises OSError if there is no room for these.
    """
    from prometheus_client.mmap_dict import MmapedDict

    from core.observability.metric_values import StrictlyAllocated

    new = remains.with_suffix(".new")
    new.unlink(missing_ok=True)
    try:
        if remains.exists():
            shutil.copyfile(remains, new)
        added = StrictlyAllocated(str(new))
        for key, value, at, _ in MmapedDict.read_all_values_from_file(str(path)):
            former, former_at = added.read_value(key)
            if is_sum:
                added.write_value(key, former + value, 0.0)
            elif at >= former_at:
                added.write_value(key, value, at)
        added.close()
    except OSError:
        new.unlink(missing_ok=True)
        raise
    new.replace(remains)
    path.unlink()
