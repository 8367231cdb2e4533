"""Files of keys: taken when their content changed, refused and told so, and never the end of the service."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs_service.transport.key_files import KeyFiles
from jobs_service.transport.tokens import UnusableKey


class Taker:
    """Two files that fit where they hold the same."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / "one", folder / "two"]
        self.taken: list[bytes] = []
        self.files = KeyFiles("the pair", self.paths, self.take)
        self.write(b"first", b"first")

    def take(self, contents: Sequence[bytes]) -> dict[str, object]:
        one, two = contents
        if one == b"odd":
            raise RuntimeError("a secret of the parser's")
        if one != two:
            raise UnusableKey("one is not two")
        self.taken.append(one)
        return {"name": one.decode()}

    def write(self, *contents: bytes) -> None:
        for path, content in zip(self.paths, contents, strict=True):
            path.write_bytes(content)

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.files.update(self.files.read())


@pytest.fixture
def taker(tmp_path: Path) -> Taker:
    return Taker(tmp_path)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def levels(told: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in told.records]


def test_what_was_loaded_is_not_taken_again(taker: Taker, told: pytest.LogCaptureFixture) -> None:
    assert taker.files.load() == {"name": "first"}
    os.utime(taker.paths[0], (0, 0))
    taker.write(b"first", b"first")
    taker.look(3)
    assert (taker.taken, levels(told)) == ([b"first"], [])


def test_a_change_is_taken_and_told_once(taker: Taker, told: pytest.LogCaptureFixture) -> None:
    taker.files.load()
    taker.write(b"next", b"next")
    taker.look(3)
    assert (taker.taken, levels(told)) == ([b"first", b"next"], ["INFO"])
    assert told.records[0].__dict__["fields"] == {"name": "next"}


def test_a_moment_in_which_the_files_do_not_fit_is_not_told(
    taker: Taker, told: pytest.LogCaptureFixture
) -> None:
    taker.files.load()
    taker.write(b"next", b"first")
    taker.look()
    taker.write(b"next", b"next")
    taker.look()
    assert (taker.taken, levels(told)) == ([b"first", b"next"], ["INFO"])


def test_what_can_not_be_used_is_told_once_for_each_change(
    taker: Taker, told: pytest.LogCaptureFixture
) -> None:
    taker.files.load()
    for wrong in (b"wrong", b"as wrong"):
        taker.write(wrong, b"first")
        taker.look(4)
    taker.paths[1].unlink()
    taker.look(4)
    assert (taker.taken, levels(told)) == ([b"first"], ["ERROR"] * 3)
    errors = [record.__dict__["fields"]["error"] for record in told.records]
    assert errors == ["one is not two"] * 2 + [f"{taker.paths[1]} can't be read: No such file or directory"]
    # Back as it was, and wrong again: that is a change.
    taker.write(b"first", b"first")
    taker.look()
    taker.write(b"wrong", b"first")
    taker.look(4)
    assert (taker.taken, levels(told)) == ([b"first"], ["ERROR"] * 4)


def test_what_stays_refused_is_told_again_every_five_minutes(
    taker: Taker, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    taker.files.load()
    taker.write(b"wrong", b"first")
    for minutes, lines in ((0, 1), (4, 1), (6, 2), (10, 2), (11, 3)):
        now = 1000.0 + 60 * minutes
        taker.look(3)
        assert levels(told) == ["ERROR"] * lines


def test_files_are_refused_until_they_can_be_used_or_are_as_before(taker: Taker) -> None:
    taker.files.load()
    assert not taker.files.refused
    for good in (b"first", b"next"):
        taker.write(b"wrong", b"first")
        taker.look()
        assert taker.files.refused
        taker.write(good, good)
        taker.look()
        assert not taker.files.refused


def test_what_nobody_expects_of_a_parser_is_refused_without_its_words(
    taker: Taker, told: pytest.LogCaptureFixture
) -> None:
    taker.files.load()
    taker.write(b"odd", b"odd")
    taker.look(3)
    assert [record.__dict__["fields"] for record in told.records] == [{"error": "RuntimeError"}]


def test_a_swapped_link_is_a_change(taker: Taker, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for path in taker.paths:
            (tmp_path / name / path.name).write_bytes(name.encode())
    link = tmp_path / "..data"
    link.symlink_to("a")
    taker.files.paths = [link / path.name for path in taker.paths]
    taker.files.load()
    new = tmp_path / "..data_tmp"
    new.symlink_to("b")
    new.rename(link)
    taker.look()
    assert taker.taken == [b"a", b"b"]
