"""Lines of feedback: how files may be wrapped, damage that is named, and nothing half written."""

import contextlib
import gzip
import json
import os
import re
import threading
from pathlib import Path

import pytest
from feedback_files import GOOD, saved
from hypothesis import given, strategies as st

from rlhf_lab.feedback import lines
from rlhf_lab.feedback.events import read_events, write_events
from rlhf_lab.feedback.formats import read_preferences, write_csv, write_preferences, write_unpaired
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.records import Comparison, as_conversation
from rlhf_lab.training.files import SaveError


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (json.dumps(GOOD).encode(), "mine.jsonl"),  # no line end
        (json.dumps(GOOD).encode() + b"\r\n\r\n  \n", "mine.jsonl"),
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n", "mine.txt"),
        (b"\xef\xbb\xbf\n" + json.dumps(GOOD).encode(), "mine.txt"),
        (gzip.compress(json.dumps(GOOD).encode()), "mine.jsonl"),  # told by the content, not by the name
        (json.dumps(GOOD).encode(), "mine.jsonl.gz"),
        (gzip.compress(json.dumps(GOOD).encode() + b"\n") + gzip.compress(b"\n"), "two_parts.gz"),
    ],
    ids=["no line end", "CRLF", "mark", "mark and line", "gzip by content", "gzip by name only", "two parts"],
)
def test_harmless_wrapping(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert list(read_preferences(tmp_path / name)) == [Comparison(as_conversation("Hi"), "Hello.", "Go away.")]


def test_line_separators_inside_texts_do_not_end_a_line(tmp_path):
    text = "one\u2028two\x85three\x0cfour"
    [c] = read_preferences(saved(tmp_path, json.dumps(GOOD | {"chosen": text}, ensure_ascii=False)))
    assert c.chosen == text.replace("\n", "")


def whole(folder, content=None):
    path = folder / "mine.jsonl"
    if content is not None:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda d: whole(d), "cannot be read (No such file"),
        (lambda d: d, "is a folder; expected a file"),
        (lambda d: whole(d, b""), "holds no line of feedback. Write one object a line"),
        (lambda d: whole(d, b"\n \r\n"), "holds no line of feedback"),
        (lambda d: whole(d, gzip.compress(b"")), "holds no line of feedback"),
        (lambda d: whole(d, json.dumps(GOOD).encode("utf-16")), "is UTF-16; expected UTF-8. Save it again"),
        (lambda d: whole(d, gzip.compress(json.dumps(GOOD).encode() * 2)[:-20]), "breaks off here"),
        (lambda d: whole(d, gzip.compress(json.dumps(GOOD).encode())[:-1] + b"?"), "breaks off here"),
        (lambda d: whole(d, b"\x1f\x8bnot gzip at all"), "breaks off here"),
        (lambda d: whole(d, b"PAR1\x15\x04\xff\x15 parquet"), "is Parquet; expected text. Write it as JSON Lines"),
        (lambda d: whole(d, b"ARROW1\0\0"), "is Arrow; expected text"),
        (lambda d: whole(d, b"PK\x03\x04\x14"), "is a zip archive"),
        (lambda d: whole(d, b"\x28\xb5\x2f\xfd\x04"), "is compressed with zstd"),
        (lambda d: whole(d, b"\xfd7zXZ\0"), "is compressed with xz"),
        (lambda d: whole(d, b"BZh91AY"), "is compressed with bzip2"),
        (lambda d: whole(d, gzip.compress(gzip.compress(b"{}"))), "is gzipped twice"),
        (lambda d: whole(d, gzip.compress(b"PAR1")), "is Parquet"),
        (lambda d: whole(d, b"\0\x01\x02"), "is a binary file"),
        (
            lambda d: whole(d, json.dumps([GOOD], indent=1).encode()),
            "is one JSON list; expected JSON Lines. Write each",
        ),
        (lambda d: whole(d, b"[" + b",\n".join([json.dumps(GOOD).encode()] * 3) + b"]"), "is one JSON list; expected"),
        (lambda d: whole(d, json.dumps(GOOD, indent=1).encode()), "is JSON over several lines; expected JSON Lines"),
        (lambda d: whole(d, b'{"rows": [\n{}\n]}'), "is JSON over several lines"),
        (
            lambda d: whole(d, b"prompt,chosen,rejected\na,b,c\n"),
            "none of its 2 lines is JSON; expected JSON Lines. The",
        ),
        (lambda d: Path("a\0b"), "cannot be read (embedded null byte)"),
    ],
)
def test_a_useless_file_is_one_line_of_reason_and_remedy(make, expected, tmp_path):
    with pytest.raises(FeedbackError) as caught:
        read_preferences(make(tmp_path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    other_end = threading.Timer(0.5, lambda: (tmp_path / "pipe").write_bytes(b""))  # frees a reader that waits
    other_end.start()
    with pytest.raises(FeedbackError, match="is a pipe or a device; expected a file"):
        read_preferences(tmp_path / "pipe")
    other_end.cancel()


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="this system has no such device")
def test_a_device_is_refused():
    with pytest.raises(FeedbackError, match="is a pipe or a device; expected a file"):
        read_preferences("/dev/null")


def test_the_first_line_may_break_off_like_any_other(tmp_path):
    path = saved(tmp_path, '{"prompt": "Hi", "cho', GOOD)
    with pytest.raises(FeedbackError, match="line 1, line: not JSON"):
        read_preferences(path)
    assert len(read_preferences(path, skip_bad=True)) == 1


# ---- bad lines ---------------------------------------------------------------------------------------------


def test_an_endless_line_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    path = saved(tmp_path, GOOD | {"chosen": "x" * 5000}, GOOD)
    with pytest.raises(FeedbackError, match=r"line 1, line: the line is longer than 1000 bytes. Write one"):
        read_preferences(path)
    assert len(read_preferences(path, skip_bad=True)) == 1


def test_all_bad_lines_are_collected_and_ten_are_shown(tmp_path):
    path = saved(tmp_path, GOOD, *[GOOD | {"chosen": i} for i in range(25)], GOOD)
    with pytest.raises(FeedbackError, match=re.escape("mine.jsonl: 25 of 27 lines cannot be used")) as caught:
        read_preferences(path)
    message = str(caught.value).splitlines()
    assert [bad.number for bad in caught.value.bad] == list(range(2, 27))
    assert len(message) == 12
    assert message[1].startswith("  line 2, chosen: got 0; expected text")
    assert message[-1] == "  and 15 more"


def test_damage_after_good_lines_is_reported_when_skipping(tmp_path):
    many = b"".join(json.dumps(GOOD | {"chosen": f"reply {i * i}"}).encode() + b"\n" for i in range(5000))
    path = whole(tmp_path, gzip.compress(many)[:-2000])
    with pytest.raises(FeedbackError, match="breaks off here"):
        read_preferences(path)
    good = read_preferences(path, skip_bad=True)
    assert 0 < len(good) < 5000
    assert "breaks off here" in str(good.skipped[-1])


def test_thousands_of_lines(tmp_path):
    path = saved(tmp_path, *[GOOD | {"chosen": f"reply {i}"} for i in range(5_000)])
    comparisons = read_preferences(path)
    assert [comparisons[0].chosen, comparisons[-1].chosen] == ["reply 0", "reply 4999"]


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    for read in (read_preferences, read_events):
        with contextlib.suppress(FeedbackError):
            read(path)


# ---- writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_events, write_preferences, write_unpaired, write_csv])
def test_nothing_half_written(write, tmp_path):
    path = saved(tmp_path, "what was there")

    def broken():
        yield from ()
        raise RuntimeError("the source of the records failed")

    with pytest.raises(RuntimeError):
        write(path, broken())
    assert path.read_text() == "what was there\n"
    with pytest.raises(SaveError, match="Free some space or choose a folder"):
        write(path / "below_a_file.jsonl", [])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.jsonl"]
