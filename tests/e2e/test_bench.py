"""scripts/bench runs, and prints every row. How fast is for whoever runs it in quiet."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.__main__ import CALLERS
from tests.bench.workloads import EMPTY

ROOT = Path(__file__).parents[2]
ROWS = [EMPTY, "health Check", "CreateJob", "GetJob", "GetJobStatus", "ListJobs", "CancelJob"]


@pytest.mark.long
def test_a_quick_run_prints_every_row_and_writes_the_same_as_json(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", "--quick", "--json", str(file)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert result.returncode == 0, result.stderr
    for name in ROWS:
        assert result.stdout.count(f"\n| {name} ") + result.stdout.count(f"\n| {name},") >= len(CALLERS), name
    rows = json.loads(file.read_text())["rows"]
    assert all(row["rate"] > 0 and row["server_us"] > 0 for row in rows)
    assert {row["callers"] for row in rows} == set(CALLERS)
    assert [row["ratio"] for row in rows if row["workload"] == EMPTY] == [1.0] * len(CALLERS)
