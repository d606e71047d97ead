"""Merges the metric files of dead processes. The processes of a worker share their metrics in these files.

Without the merge, every replaced process would leave a few files, and every scrape would read them.
"""

import re
import shutil
from contextlib import suppress
from pathlib import Path

from core.observability import metric_folder

#: The names of files whose values are dropped when the process of the file ends.
LIVE = re.compile(r"gauge_live\w+_(\d+)\.db")
#: The names of files whose values are kept when the process of the file ends.
LASTING = re.compile(r"(counter|histogram|gauge_mostrecent)_(\d+)\.db")
#: The process id in the names of merged files. No process has this id.
THE_DEAD = 0


def tidy(folder: Path) -> None:
    """Delete live values of dead processes, and merge their other files. Not thread-safe."""
    for path in folder.glob("*.db"):
        live, lasting = LIVE.fullmatch(path.name), LASTING.fullmatch(path.name)
        if live and not metric_folder.is_alive(int(live[1])):
            path.unlink(missing_ok=True)
        elif lasting and int(lasting[2]) != THE_DEAD and not metric_folder.is_alive(int(lasting[2])):
            remains = folder / f"{lasting[1]}_{THE_DEAD}.db"
            with suppress(OSError):  # on a full disk the files stay as they are
                put_together(path, remains, is_sum=not lasting[1].startswith("gauge"))


def put_together(path: Path, remains: Path, *, is_sum: bool) -> None:
    """Merge the values in ``path`` into ``remains``, as sums or as the most recent values, and delete ``path``.

    A reader sees either the old or the new ``remains``. Raises OSError if the disk is full.
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
