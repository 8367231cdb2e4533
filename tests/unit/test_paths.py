"""How a place in a request is written in an error."""

import pytest

from jobs_service.model.paths import MAX_PATH, field_path


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ([], "root"),
        (["rounds", 0, "sample_size"], "root.rounds[0].sample_size"),
        (["_a1", "B"], "root._a1.B"),
        (["a.b"], 'root["a.b"]'),
        (["a.b", "c", 12], 'root["a.b"].c[12]'),
        ([""], 'root[""]'),
        (["1a"], 'root["1a"]'),
        (["a b"], 'root["a b"]'),
        (['a"]b'], 'root["a\\"]b"]'),
        (["a\n"], 'root["a\\n"]'),
        (["a\0"], 'root["a\\u0000"]'),
        (["\u00e9"], 'root["\\u00e9"]'),
        (["\U0001f600"], 'root["\\ud83d\\ude00"]'),
        ([0, 1], "root[0][1]"),
        (["0", 0], 'root["0"][0]'),
    ],
    ids=repr,
)
def test_a_path_names_the_place(parts: list[str | int], path: str) -> None:
    assert field_path("root", parts) == path


def test_a_path_of_120_characters_is_whole() -> None:
    key = "k" * (MAX_PATH - len("root."))
    assert field_path("root", [key]) == f"root.{key}"


@pytest.mark.parametrize(
    "parts",
    [
        ["k" * (MAX_PATH - len("root.") + 1)],
        ["k" * 100_000],
        ["\U0001f600" * 100],
        ["k"] * 1000,
        [0] * 1000,
        ["\0" * 50, "k"],
    ],
    ids=["one too many", "a huge key", "a key that grows", "many keys", "many indexes", "NULs"],
)
def test_a_longer_path_is_cut_at_120_characters(parts: list[str | int]) -> None:
    path = field_path("root", parts)
    assert len(path) == MAX_PATH
    assert path.endswith("...")
    assert path.isascii()
    assert path.isprintable()
