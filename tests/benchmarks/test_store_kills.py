"""What is called saved survives a kill: a few kills now, and what the stored ones found."""

import sys

import pytest
import store
from rows import read_rows


def test_the_stored_kills_lost_nothing():
    rows = read_rows(store.RESULTS)
    assert {int(row["bytes"]) for row in rows} == set(store.SIZES)
    for row in rows:
        assert (int(row["kills"]), int(row["writers"])) == (store.KILLS, store.WRITERS)
        assert (row["lost"], row["gaps"]) == ("0", "0")
        assert int(row["acknowledged"]) > store.KILLS


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("size", store.SIZES)
def test_a_kill_loses_nothing(size, tmp_path):
    said, lost, gaps = store.killed(tmp_path, size, seed=0)
    assert said > 0
    assert (lost, gaps) == (0, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_is_lost_would_be_counted(tmp_path, monkeypatch):
    """A store that says saved before it is: it acknowledges, and writes nothing at every other call."""
    add = store.Store.add

    def forgetful(self, *events):
        if int(events[0].id.rpartition("-")[2]) % 2 == 0:
            add(self, *events)

    monkeypatch.setattr(store.Store, "add", forgetful)
    _, lost, gaps = store.killed(tmp_path, 400, seed=0)
    assert lost > 0
    assert 1 <= gaps <= store.WRITERS  # on a busy machine a writer may be killed before its second event is there
