"""The permission matrix of CreateJob, complete: role x on behalf of x run type x levels.

What is expected is written here a second time, as in test_permission_matrix.py.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Role
from jobs_service.model.job import RunType
from tests.support.client import Client
from tests.support.matrix import (
    ALLOWED,
    ITSELF,
    LEVELS,
    ROLE_REQUIRED,
    SENDERS,
    Cast,
    answer,
    assert_none,
    in_threads,
)
from tests.support.world import World


@dataclass(frozen=True, slots=True)
class CreateCell:
    """A CreateJob. levels: of who counts; the other of the two has the opposite, so that a mix-up shows."""

    role: Role
    acts_for: str
    run_type: RunType
    validate_only: bool
    level: str
    source_levels: tuple[str, ...] = ()


OPPOSITE = {"none": "admin", "read": "write", "write": "read", "admin": "none"}
PARAMETERS: dict[RunType, dict[str, Any]] = {
    RunType.IMPORT: {"file_path": "landing/a.csv"},
    RunType.SAMPLING: {"sample_size": 10},
    RunType.EXPLORATION: {"table_key": "primary"},
}


def create_cells(role: Role, acts_for: str) -> list[CreateCell]:
    plain = itertools.product(PARAMETERS, (False, True), ALLOWED)
    sources = [*itertools.product(ALLOWED), *itertools.product(ALLOWED, ALLOWED)]
    return [
        *(CreateCell(role, acts_for, *rest) for rest in plain),
        *(
            CreateCell(role, acts_for, RunType.SQL_TRANSFORM, *rest)
            for rest in itertools.product((False, True), ALLOWED, sources)
        ),
    ]


def expected_of_create(cell: CreateCell) -> set[str]:
    """What may be answered: where two data sets are refused, it may name either."""
    alone = cell.acts_for in ITSELF
    if not alone and cell.role not in SENDERS:
        return {ROLE_REQUIRED}
    levels = {"target": cell.level} | dict(zip(("first", "second"), cell.source_levels, strict=False))
    if alone and cell.role is Role.ADMIN:
        missing = {name for name, level in levels.items() if level == "missing"}
        return {f"NOT_FOUND DATASET_NOT_FOUND dataset_id=<{name}>" for name in missing} or {"OK"}
    needed = {"target": ("explore", "read") if cell.run_type is RunType.EXPLORATION else ("write", "write")}
    needed |= dict.fromkeys(("first", "second"), ("use as a source", "read"))
    return {
        f"PERMISSION_DENIED DATASET_PERMISSION_DENIED dataset_id=<{name}> required_permission={word}"
        for name, (action, word) in needed.items()
        if name in levels and action not in ALLOWED[levels[name]]
    } or {"OK"}


class CreateStage(Cast):
    """For each level three data sets: one to write, two to read from."""

    def __init__(self, world: World, role: Role, acts_for: str) -> None:
        super().__init__(world)
        self.subject = self.sender if acts_for in ITSELF else self.other
        other = self.other if self.subject is self.sender else self.sender
        self.datasets = {pair: world.dataset() for pair in itertools.product(LEVELS, self.places)}
        for (level, _), dataset_id in self.datasets.items():
            self.set_level(self.subject, dataset_id, LEVELS[level])
            self.set_level(other, dataset_id, LEVELS[OPPOSITE[level]])
        self.datasets |= {("missing", place): 900_000_000 + n for n, place in enumerate(self.places)}
        world.access.put_user(self.sender.soeid, role)

    places = ("target", "first", "second")

    def answer(self, client: Client, cell: CreateCell) -> str:
        dataset_id = self.datasets[cell.level, "target"]
        places = dict(zip(self.places[1:], cell.source_levels, strict=False))
        sources = {place: self.datasets[level, place] for place, level in places.items()}
        names = {str(number): f"<{place}>" for place, number in {"target": dataset_id, **sources}.items()}
        sql = {
            "sql": "select 1",
            "sources": [{"dataset_id": number, "alias": place} for place, number in sources.items()],
        }

        def create() -> str:
            job = client.create(
                dataset_id=dataset_id,
                run_type=jobs_pb2.RunType.Value(f"RUN_TYPE_{cell.run_type}"),
                run_parameters=PARAMETERS.get(cell.run_type, sql),
                validate_only=cell.validate_only,
            ).job
            creator = "" if self.subject is self.sender else self.sender.soeid
            right = (job.user_soeid, job.creator_soeid) == (self.subject.soeid, creator)
            return "OK" if right and bool(job.job_id) != cell.validate_only else f"OK, but it is {job}"

        return answer(create, names)


@pytest.mark.parametrize("acts_for", [*ITSELF, "another user"])
@pytest.mark.parametrize("role", Role)
def test_a_job_is_created_by_whom_the_contract_allows(world: World, role: Role, acts_for: str) -> None:
    cells = create_cells(role, acts_for)
    stage = CreateStage(world, role, acts_for)
    client = stage.client(acts_for)
    answers = in_threads(lambda cell: stage.answer(client, cell), cells)
    assert_none(
        [
            f"CreateJob of {cell}: got '{got}', expected one of {expected_of_create(cell)}"
            for cell, got in zip(cells, answers, strict=True)
            if got not in expected_of_create(cell)
        ]
    )
