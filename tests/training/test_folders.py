"""Folders that this program owns: nothing foreign is replaced, nothing changed is taken for what was saved."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from rlhf_lab.training.files import SaveError
from rlhf_lab.training.folders import MARK, OutputError, RunFolder, changed_file, checksum, new_folder


def save(path, text="content"):
    with new_folder(path) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_text(text)


def everything(path):
    return {
        p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file() and not p.is_symlink()
    }


# ---- a folder that is saved as a whole -------------------------------------------------------------------------
def foreign_file(place):
    (place / "thesis.txt").write_text("years of work")


def foreign_link(place):
    (place / "thesis.txt").symlink_to("nowhere")


def changed(place):
    (place / "part" / "file").write_text("edited by hand")


def deep(place):
    (place / "part" / "deep").mkdir()
    (place / "part" / "deep" / "thesis.txt").write_text("years of work")


@pytest.mark.parametrize("work", [foreign_file, foreign_link, changed, deep])
def test_a_folder_with_other_work_in_it_is_not_replaced(work, tmp_path):
    save(tmp_path / "place")
    work(tmp_path / "place")
    before = everything(tmp_path)
    with pytest.raises(OutputError, match=r"(this program did not write|was changed since).*another folder|new folder"):
        save(tmp_path / "place", "new")
    assert everything(tmp_path) == before


def test_a_foreign_folder_and_a_file_are_not_replaced(tmp_path):
    (tmp_path / "place").mkdir()
    foreign_file(tmp_path / "place")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        save(tmp_path / "place")
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(OutputError, match="is no folder"):
        save(tmp_path / "file")
    assert sorted(everything(tmp_path)) == ["file", "place/thesis.txt"]


def test_an_empty_folder_is_used_and_a_link_is_followed(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for text in ("one", "two"):
        save(tmp_path / "link", text)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "part" / "file").read_text() == "two"


def test_a_kill_between_the_two_moves_loses_nothing(tmp_path):
    save(tmp_path / "place", "one")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    os.replace(tmp_path / "place", tmp_path / f".place.{child.pid}.rlhf_lab.old")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "place"):
        raise ZeroDivisionError
    assert (tmp_path / "place" / "part" / "file").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_any_changed_bit_is_found(tmp_path):
    save(tmp_path / "place")
    assert changed_file(tmp_path / "place") is None
    file = tmp_path / "place" / "part" / "file"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert changed_file(tmp_path / "place") == "part/file"
    file.unlink()
    assert changed_file(tmp_path / "place") is None  # whoever needs the file sees that it is missing
    assert changed_file(tmp_path) is None  # a foreign folder has no list


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": 1, "files": {}}', "\xff", '{"kind": "model", "files": []}'])
def test_a_damaged_list_is_said(text, tmp_path):
    save(tmp_path / "place")
    (tmp_path / "place" / MARK).write_bytes(text.encode("latin1"))
    for use in (save, changed_file, lambda place: RunFolder(place, "model")):
        with pytest.raises(OutputError, match=r"rlhf_lab\.json is damaged"):
            use(tmp_path / "place")


# ---- a folder that is filled one file after the other ----------------------------------------------------------
def test_a_file_is_there_once_it_is_whole(tmp_path):
    folder = RunFolder(tmp_path / "run", "demo")
    with suppress(ZeroDivisionError), folder.writing("a.txt") as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert not RunFolder(tmp_path / "run", "demo").has("a.txt")
    with folder.writing("a.txt") as path:
        path.write_text("whole")
    again = RunFolder(tmp_path / "run", "demo")
    assert again.has("a.txt")
    assert not again.made
    (tmp_path / "run" / "a.txt").write_text("whol")
    with pytest.raises(OutputError, match=r"a\.txt is damaged"):
        again.has("a.txt")
    with pytest.raises(OutputError, match=r"a\.txt is damaged"), again.writing("a.txt"):
        pytest.fail("an edited file would be lost")
    (tmp_path / "run" / "a.txt").unlink()
    assert not again.has("a.txt")


@pytest.mark.parametrize("make", [lambda p: p.write_text("mine"), lambda p: p.mkdir(), lambda p: p.symlink_to("x")])
def test_what_was_put_into_a_run_by_hand_is_left_alone(make, tmp_path):
    folder = RunFolder(tmp_path / "run", "demo")
    make(tmp_path / "run" / "sft")
    with pytest.raises(OutputError, match="move it away"):
        folder.claim("sft")
    assert not folder.has("sft")
    assert os.path.lexists(tmp_path / "run" / "sft")


def test_another_kind_a_file_and_foreign_files_are_refused(tmp_path):
    RunFolder(tmp_path / "run", "demo")
    with pytest.raises(OutputError, match="holds a demo, and this would be a corpus"):
        RunFolder(tmp_path / "run", "corpus")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is no folder"):
        RunFolder(tmp_path / "file", "demo")
    with pytest.raises(OutputError, match="did not write"):
        RunFolder(tmp_path, "demo")
    with pytest.raises(SaveError, match="cannot write"):
        RunFolder(tmp_path / "file" / "below", "demo")


def test_taken_back_leaves_what_was_there_before(tmp_path):
    (tmp_path / "given").mkdir()
    for name, remains in (("given", True), ("made", False)):
        folder = RunFolder(tmp_path / name, "demo")
        with folder.writing("config.json") as path:
            path.write_text("{}")
        folder.take_back()
        assert (tmp_path / name).exists() == remains
    assert list((tmp_path / "given").iterdir()) == []


def test_a_checksum_of_a_folder_knows_names_and_contents(tmp_path):
    save(tmp_path / "a")
    save(tmp_path / "b")
    assert checksum(tmp_path / "a") == checksum(tmp_path / "b")
    os.replace(tmp_path / "b" / "part" / "file", tmp_path / "b" / "part" / "other")
    assert checksum(tmp_path / "a") != checksum(tmp_path / "b")
    assert json.loads((tmp_path / "a" / MARK).read_text())["files"] == {
        "part/file": checksum(tmp_path / "a" / "part" / "file")
    }


def test_another_name_with_dots_is_nobody_to_sweep(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    others = [f".place.v2.{child.pid}.rlhf_lab.tmp", f".place.{child.pid}.rlhf_lab.keep"]
    for name in others:
        (tmp_path / name).mkdir()
    save(tmp_path / "place")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["place", *others])


def test_a_refused_save_loses_no_folder_that_was_moved_aside(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    save(aside := tmp_path / f".place.{child.pid}.rlhf_lab.old")
    (tmp_path / "place").mkdir()
    foreign_file(tmp_path / "place")
    with pytest.raises(OutputError):
        save(tmp_path / "place")
    assert (aside / "part" / "file").exists()


def test_another_kind_an_empty_folder_and_the_working_folder_are_not_replaced(tmp_path, monkeypatch):
    with RunFolder(tmp_path / "corpus", "corpus").writing("web.txt") as path:
        path.write_text("text")
    with pytest.raises(OutputError, match="holds a corpus, and this would be a model"):
        save(tmp_path / "corpus")
    save(tmp_path / "place")
    (tmp_path / "place" / "notes").mkdir()
    with pytest.raises(OutputError, match="notes, which this program did not write"):
        save(tmp_path / "place")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (".", "..", "/"):
        with pytest.raises(OutputError, match="working folder"):
            save(path)


def test_a_private_folder_stays_private(tmp_path):
    save(tmp_path / "place")
    (tmp_path / "place").chmod(0o700)
    save(tmp_path / "place")
    assert (tmp_path / "place").stat().st_mode & 0o777 == 0o700
