"""The command that looks after stores: python run.py feedback show | export | import | merge | check | backup."""

import argparse
from pathlib import Path
from typing import Any

from rlhf_lab.training.printing import printable

STORE = "a store; your own if left out"


def add_feedback_command(commands: Any) -> None:
    """Add the command and its actions to the parser's commands."""
    parser = commands.add_parser("feedback", help="your judgements: show, export, import, merge, check, backup")
    actions = parser.add_subparsers(required=True, metavar="show | export | import | merge | check | backup")

    show = actions.add_parser("show", help="where a store is, what is in it, and how its raters agree")
    show.add_argument("store", nargs="?", metavar="STORE", help=STORE)
    show.set_defaults(run=_show)

    export = actions.add_parser("export", help="write the judgements as a file")
    export.add_argument("out", metavar="FILE", help="the file to write")
    export.add_argument("--form", default="events", help="events (lossless), preferences, unpaired, prompts or csv")
    export.add_argument("--store", metavar="STORE", help=STORE)
    export.add_argument("--study", help="only the judgements of one study")
    export.set_defaults(run=_export)

    add = actions.add_parser("import", help="add logs and stores to your own store")
    add.add_argument(
        "files", nargs="+", metavar="FILE", help="stores, or logs in JSON Lines, also of the first version"
    )
    add.set_defaults(run=_import)

    merge = actions.add_parser("merge", help="put the stores of a class into one")
    merge.add_argument("out", metavar="STORE", help="the store that all are put into")
    merge.add_argument("files", nargs="+", metavar="FILE", help="stores, or logs in JSON Lines")
    merge.add_argument("--keep-names", action="store_true", help='leave raters called "you" as they are')
    merge.set_defaults(run=_merge)

    check = actions.add_parser("check", help="read every page and every event of a store")
    check.add_argument("store", nargs="?", metavar="STORE", help=STORE)
    check.set_defaults(run=_check)

    backup = actions.add_parser("backup", help="copy a store, also while somebody writes to it")
    backup.add_argument("out", metavar="FILE", help="the copy")
    backup.add_argument("--store", metavar="STORE", help=STORE)
    backup.set_defaults(run=_backup)


def _show(options: argparse.Namespace) -> None:
    from collections import Counter

    from rlhf_lab.classroom.summary import format_interval
    from rlhf_lab.feedback.merging import agreement_of_raters

    store = _store(options.store)
    judgements = store.standing()
    print(f"{store.path}: {store.count()} events, {len(judgements)} judgements that count")
    kinds = Counter((event.rater or "(no name)", type(event.record).__name__.lower()) for event in judgements)
    for (rater, kind), count in sorted(kinds.items()):
        print(f"  {printable(rater)[:60]:20} {count:6} {kind}")
    for found in agreement_of_raters(judgements):
        if found.share and found.kappa is not None:
            names = " and ".join(printable(name)[:60] for name in found.raters)
            share = f"{format_interval(found.share)} of {found.share.count} pairs"
            print(f"  {names} agree on {share}, kappa {found.kappa:.2f}")


def _export(options: argparse.Namespace) -> None:
    from rlhf_lab.feedback.exports import export

    print(f"{options.out}: {export(options.out, _store(options.store).events(options.study), options.form)}")


def _import(options: argparse.Namespace) -> None:
    _merge_into(None, options.files, keep_names=True)


def _merge(options: argparse.Namespace) -> None:
    _merge_into(options.out, options.files, options.keep_names)


def _merge_into(out: str | None, files: list[str], keep_names: bool) -> None:
    from rlhf_lab.feedback.merging import merge
    from rlhf_lab.feedback.store import Store

    store = Store(out)
    for done in merge(store, files, keep_names):
        raters = ", ".join(printable(name)[:60] or "(no name)" for name in done.raters) or "nobody"
        print(f"{done.path}: {done.new} of {done.events} events are new; judged by {raters}")
    print(f"{store.path}: {store.count()} events. `python run.py feedback show {store.path}` says who agrees with whom")


def _check(options: argparse.Namespace) -> None:
    store = _store(options.store)
    print(f"{store.path}: all {store.check()} events are whole")


def _backup(options: argparse.Namespace) -> None:
    _store(options.store).backup(options.out)
    print(f"wrote {options.out}")


def _store(path: str | None) -> Any:
    """A store that is there."""
    from rlhf_lab.feedback.store import Store

    store = Store(path)
    if not Path(store.path).exists():
        raise ValueError(f"there is no store {store.path}; it is made at the first judgement in a notebook")
    return store
