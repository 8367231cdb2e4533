"""Errors on the terminal: a line with their cause, whatever that says of itself."""

import pytest

from jobs_service import cli
from jobs_service.config import ConfigError


@pytest.mark.parametrize(
    ("cause", "shown"),
    [(None, "wrong"), (OSError("why\nmore"), "wrong (why)"), (OSError(), "wrong (OSError)")],
)
def test_an_error_is_one_line_with_its_cause(
    cause: Exception | None, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise ConfigError("wrong") from cause

    monkeypatch.setattr(cli, "load", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["check"])
    assert ended.value.code == cli.ExitCode.CONFIGURATION
    assert capsys.readouterr().err == f"jobs-service: {shown}\n"
