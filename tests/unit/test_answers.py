"""Answers that clients have not taken."""

from jobs_service.transport.interceptors.answers import UntakenAnswers

LIMIT = 1600


def test_each_owner_has_a_sixteenth_and_it_is_free_again_when_it_is_taken() -> None:
    untaken = UntakenAnswers(LIMIT)
    untaken.add(("connection", "caller"), 101)
    assert untaken.refusal_of("connection") is not None
    assert untaken.refusal_of("caller") is not None
    assert untaken.refusal_of("other") is untaken.refusal() is None
    untaken.remove(("connection", "caller"), 101)
    assert untaken.refusal_of("caller") is None


def test_nothing_is_remembered_of_who_has_taken_all_or_was_given_nothing() -> None:
    untaken = UntakenAnswers(LIMIT)
    for size in (0, 5):
        untaken.add(("connection", "caller"), size)
        untaken.remove(("connection", "caller"), size)
    assert not untaken._owners
