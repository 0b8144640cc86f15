"""Is what the store calls saved on the disk? Writers that are killed while they write, and 10,000 judgements timed.

    python run.py bench store                 200 kills at each size of a record; rows in data/results/store.csv
    python run.py bench store --kills 10      a quick look that stores nothing
    python run.py bench store --scale         10,000 judgements: a click, opening, memory; prints, stores nothing

A kill is a `kill -9` of two processes that write to one store at the same time, at a moment drawn at random. Each
writes a line to a file of its own, unbuffered, as soon as the store has returned. Afterwards every event that was so
acknowledged must be in the store, the store must open and pass its full check, and the numbers of each writer must
have no gap.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path

from rows import RESULTS as FOLDER, Row, at_least, put_rows
from tqdm.auto import tqdm

from rlhf_lab.feedback.events import new_event
from rlhf_lab.feedback.store import Store
from rlhf_lab.records import Event, Rating

RESULTS = FOLDER / "store.csv"
KILLS, WRITERS, SIZES = 200, 2, (400, 300_000)
CLICKS = 10_000


def write(path: Path, name: str, size: int) -> None:
    """Add events until killed, and say each as soon as it counts as saved."""
    said = os.open(f"{path}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    store = Store(path)
    for number in itertools.count():
        store.add(Event(f"{name}-{number}", Rating("Where is the zoo?", "x" * size, 3), study=name))
        os.write(said, b"%d\n" % number)


def killed(folder: Path, size: int, seed: int) -> tuple[int, int, int]:
    """One kill of all writers: (acknowledged, of these missing, writers whose numbers have a gap)."""
    path, moment = folder / "feedback.db", random.Random(f"{size} {seed}").uniform(0.02, 0.5)
    names = [f"w{i}" for i in range(WRITERS)]
    said = [Path(f"{path}.{name}") for name in names]
    writers = [multiprocessing.get_context("fork").Process(target=write, args=(path, name, size)) for name in names]
    for writer in writers:
        writer.start()
    while not all(file.exists() and file.stat().st_size for file in said):  # all have begun to write
        if not all(writer.is_alive() for writer in writers):
            raise RuntimeError(f"a writer ended by itself at seed {seed} and {size} bytes; its error stands above")
        time.sleep(0.005)
    time.sleep(moment)
    for writer in writers:
        writer.kill()
    for writer in writers:
        writer.join()
    acknowledged = {f"{file.suffix[1:]}-{number}" for file in said for number in file.read_text().split()}
    with Store(path) as store:
        store.check()
        there = [event.id for event in store.events()]
    gaps = sum([i for i in there if i.startswith(n)] != [f"{n}-{k}" for k in range(_count(there, n))] for n in names)
    return len(acknowledged), len(acknowledged - set(there)), gaps


def _count(ids: list[str], name: str) -> int:
    return sum(id_.startswith(name) for id_ in ids)


def kills(size: int, count: int) -> Row:
    """The row of one size of a record; a store that does not open or fails its check ends the run with its error."""
    total = lost = gaps = 0
    for seed in tqdm(range(count), desc=f"kills at {size} bytes"):
        with tempfile.TemporaryDirectory() as folder:
            said, missing, broken = killed(Path(folder), size, seed)
        total, lost, gaps = total + said, lost + missing, gaps + broken
    return {"bytes": size, "writers": WRITERS, "kills": count, "acknowledged": total, "lost": lost, "gaps": gaps}


def scale() -> None:
    """10,000 judgements of 400 bytes: seconds of a click and of opening, and memory before and after."""
    record = Rating("Where is the zoo?", "x" * SIZES[0], 3)
    with tempfile.TemporaryDirectory() as folder:
        path, clicks, memory = Path(folder) / "feedback.db", [], []
        with Store(path) as store:
            for number in range(CLICKS):
                event: Event = new_event(record, study="s", question=str(number))
                start = time.perf_counter()
                store.add(event)
                clicks.append(time.perf_counter() - start)
                if number in (CLICKS // 10, CLICKS - 1):
                    memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        start = time.perf_counter()
        with Store(path) as store:
            store.count()
            opening = time.perf_counter() - start
            standing = len(store.standing())
            reading = time.perf_counter() - start - opening
    print(f"a click: median {1000 * statistics.median(clicks):.2f} ms, 99 % under {1000 * sorted(clicks)[-100]:.2f} ms")
    print(f"opening: {opening:.3f} s; all {standing:,} judgements read: {reading:.2f} s")
    print(f"memory: {memory[0]:.0f} MB after a tenth of the clicks, {memory[1]:.0f} MB after all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=at_least(1), default=KILLS, help=f"for each size ({KILLS})")
    parser.add_argument("--scale", action="store_true", help="time 10,000 judgements instead")
    options = parser.parse_args()
    if options.scale:
        return scale()
    os.environ["OMP_NUM_THREADS"] = "1"
    for size in SIZES:
        row = kills(size, options.kills)
        print(row)
        if options.kills == KILLS:
            put_rows(RESULTS, [row], ["bytes"])


if __name__ == "__main__":
    main()
