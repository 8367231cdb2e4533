"""Bytes that are nearly messages: made by a seeded dice, along the descriptor, or with no plan at all."""

import random
import struct
from collections.abc import Callable, Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.support.judge import EVERY_METHOD, message, tagged, varint
from tests.support.request_cases import UUID

DEEPEST = 40
_VARINTS = (0, 1, -1, 5, 100, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, -(2**63), 2**64 - 1)
_DOUBLES = (0.0, -0.0, 1.5, 2.0**53, 5e-324, 1e308, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    b"",
    b"a",
    b"\0",
    b"\xff",
    b"a\xc3",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    "\u202e\u0301\U0001f600".encode(),
    b"\r\n\x1b[31m",
    b"' OR 1=1 --",
    b"${jndi:x}",
    b"%s%n",
    UUID.encode(),
    UUID.upper().encode(),
    b"ab" * 32,
    b"us10000",
    b"AQ" * 22,
    b"x" * 200,
    b"x" * 5000,
    b'{"a":1}',
)
_SOURCES = [{"dataset_id": 1, "alias": "a"}, {"dataset_id": 2, "alias": "b", "ref": "main"}]
_IMPORT = {"dataset_id": 1, "run_type": 1, "run_parameters": {"file_path": "a"}}
_LEASE = {"job_id": UUID, "lease_token": "ab" * 16}
# Requests that are good, each of another kind; damage is done to these.
GOOD: dict[str, list[Message]] = {
    "CreateJob": [
        message("CreateJob", dataset_id=1, run_type=1, run_parameters={"file_path": "a", "n": [1, None]}),
        message("CreateJob", dataset_id=2, run_type=2, run_parameters={"rounds": [{"sample_size": 5}]}),
        message("CreateJob", dataset_id=3, run_type=3, run_parameters={"table_key": "k"}, request_id=UUID),
        message("CreateJob", dataset_id=1, run_type=4, run_parameters={"sql": "select", "sources": _SOURCES}),
        message("CreateJob", dataset_id=1, run_type=3, run_parameters={}, description="d", external_id="e"),
    ],
    "ListJobs": [
        message("ListJobs"),
        message("ListJobs", filter={"dataset_id": 1, "statuses": [1, 2]}, page_size=3, view=2),
        message("ListJobs", filter={"create_time_from": {"seconds": 1}}, include_total_size=True, skip=2),
        message("ListJobs", filter={"user_soeid": "zz00000", "external_id": "e"}),
    ],
    "GetJob": [message("GetJob", job_id=UUID, view=1)],
    "GetJobStatus": [message("GetJobStatus", job_id=UUID)],
    "CancelJob": [message("CancelJob", job_id=UUID, reason="r")],
    "RetryJob": [message("RetryJob", job_id=UUID)],
    "BatchCreateJobs": [
        message("BatchCreateJobs", requests=[_IMPORT, _IMPORT | {"depends_on_indexes": [0]}])
    ],
    "BatchGetJobs": [message("BatchGetJobs", job_ids=[UUID, UUID], view=2)],
    "BatchCancelJobs": [
        message("BatchCancelJobs", job_ids=[UUID], reason="r"),
        message("BatchCancelJobs", filter={"external_id": "e", "statuses": [1]}),
    ],
    "ClaimJobs": [
        message("ClaimJobs", worker_id="w", run_types=[1, 2], max_jobs=3, lease_duration={"seconds": 60})
    ],
    "HeartbeatJobs": [
        message("HeartbeatJobs", leases=[_LEASE | {"progress": {"percent": 5, "details": {"a": [1]}}}])
    ],
    "CompleteJob": [message("CompleteJob", **_LEASE, output_summary={"rows": 3}, output_commit_id="c")],
    "FailJob": [
        message("FailJob", **_LEASE, error={"type": "t", "message": "m"}, retry_delay={"seconds": 1})
    ],
    "ReleaseJob": [message("ReleaseJob", **_LEASE, delay={"seconds": 1})],
    "FinishJobs": [
        message("FinishJobs", items=[{"complete": _LEASE}, {"fail": _LEASE}, {"release": _LEASE}])
    ],
    "PutUser": [message("PutUser", user_soeid="us00001", role=1)],
    "DeleteUser": [message("DeleteUser", user_soeid="us00001")],
    "PutDataset": [message("PutDataset", dataset_id=1, name="n")],
    "DeleteDataset": [message("DeleteDataset", dataset_id=1)],
    "SetDatasetLimit": [message("SetDatasetLimit", dataset_id=1, max_running=2)],
    "GrantPermission": [message("GrantPermission", user_soeid="us00001", dataset_id=1, level=1)],
    "RevokePermission": [message("RevokePermission", user_soeid="us00001", dataset_id=1)],
    "GrantRunType": [message("GrantRunType", user_soeid="us00001", run_type=1)],
    "RevokeRunType": [message("RevokeRunType", user_soeid="us00001", run_type=1)],
    "ListPermissions": [message("ListPermissions", page_size=3)],
}
_NUMBERS = (0, 2**29 - 1, 18_999, 19_500, 2**29, 2**32)


class Mutator:
    """Makes inputs; the same seed makes the same ones."""

    def __init__(self, seed: str) -> None:
        self.dice = random.Random(seed)
        self._damages: tuple[Callable[[bytes], bytes], ...] = (
            self._cut,
            self._flipped,
            self._with_a_stray_field,
            self._doubled,
            self._without_a_part,
            self._with_rubbish,
            self._shuffled,
        )

    def inputs(self, number: int) -> Iterator[tuple[str, bytes]]:
        """That many pairs of a method's name and what to send it."""
        for _ in range(number):
            rpc = self.dice.choice(list(EVERY_METHOD))
            yield rpc, self.input(rpc)

    def input(self, rpc: str) -> bytes:
        """One input for this method."""
        plan = self.dice.random()
        if plan < 0.1:
            return self.dice.randbytes(self.dice.choice([0, 1, 2, 3, 8, 30, 300]))
        if plan < 0.6:
            return self._nearly_good(rpc)
        data = self.message(EVERY_METHOD[rpc].input_type, 0)
        for _ in range(self.dice.choice([0, 0, 1, 1, 2, 4])):
            data = self.dice.choice(self._damages)(data)
        return data

    def _nearly_good(self, rpc: str) -> bytes:
        """A good request with one field or two replaced, or a little damage."""
        good = self.dice.choice(GOOD[rpc])
        chosen = type(good).FromString(good.SerializeToString())
        extra = b""
        for _ in range(self.dice.choice([0, 1, 1, 2])):
            each = self.dice.choice(EVERY_METHOD[rpc].input_type.fields)
            chosen.ClearField(each.name)
            extra += self._field(each, 0)
        data = chosen.SerializeToString() + extra
        return self.dice.choice(self._damages)(data) if self.dice.random() < 0.2 else data

    def message(self, descriptor: Descriptor, depth: int) -> bytes:
        """A message of this type, most of whose fields are of the right kind."""
        parts = []
        for each in descriptor.fields:
            if self.dice.random() < (0.75 if depth < 2 else 0.4):
                repeats = self.dice.choice([1, 1, 1, 2, 12]) if each.is_repeated else 1
                parts += [self._field(each, depth) for _ in range(repeats)]
        return b"".join(parts)

    def _field(self, each: FieldDescriptor, depth: int) -> bytes:
        if self.dice.random() < 0.04:
            return tagged(each.number, self.dice.choice([0, 1, 2, 3, 4, 5]), self._text())
        match each.cpp_type:
            case each.CPPTYPE_MESSAGE:
                return self._inner(each, depth)
            case each.CPPTYPE_STRING:
                return tagged(each.number, 2, self._text())
            case each.CPPTYPE_DOUBLE:
                return tagged(each.number, 1, struct.pack("<d", self.dice.choice(_DOUBLES)))
        return tagged(each.number, 0, self._varint())

    def _inner(self, each: FieldDescriptor, depth: int) -> bytes:
        assert each.message_type is not None
        if each.message_type.full_name == "google.protobuf.Struct" and self.dice.random() < 0.5:
            return tagged(each.number, 2, self._struct())
        if depth > 4:
            return tagged(each.number, 2, self._nested(each.number))
        return tagged(each.number, 2, self.message(each.message_type, depth + 1))

    def _struct(self) -> bytes:
        """Parameters that a schema may even take."""
        entries = [
            (b"file_path", tagged(3, 2, self._text())),
            (b"sample_size", tagged(2, 1, struct.pack("<d", self.dice.choice(_DOUBLES)))),
            (b"sql", tagged(3, 2, b"select 1")),
            (b"output_format", tagged(3, 2, b"json")),
            (b"user_id", tagged(2, 1, struct.pack("<d", self.dice.choice(_DOUBLES)))),
            (self._text(), tagged(4, 0, b"\1")),
        ]
        chosen = [entry for entry in entries if self.dice.random() < 0.5]
        return b"".join(tagged(1, 2, tagged(1, 2, key) + tagged(2, 2, value)) for key, value in chosen)

    def _nested(self, number: int) -> bytes:
        content = b""
        for _ in range(self.dice.choice([1, 5, 20, DEEPEST])):
            content = tagged(number, 2, content)
        return content

    def _varint(self) -> bytes:
        if self.dice.random() < 0.05:
            return b"\x80" * self.dice.choice([1, 5, 9, 10, 20]) + b"\x01"
        return varint(self.dice.choice([*range(8), *_VARINTS]))

    def _text(self) -> bytes:
        return self.dice.choice(_TEXTS)

    def _cut(self, data: bytes) -> bytes:
        return data[: self.dice.randrange(len(data) + 1)]

    def _flipped(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        for _ in range(self.dice.choice([1, 1, 3, 9]) if data else 0):
            damaged[self.dice.randrange(len(damaged))] ^= 1 << self.dice.randrange(8)
        return bytes(damaged)

    def _with_a_stray_field(self, data: bytes) -> bytes:
        number = self.dice.choice([*_NUMBERS, self.dice.randrange(1, 40)])
        kind = self.dice.choice([0, 1, 2, 3, 4, 5, 6, 7])
        length = self.dice.choice([b"", varint(2**31 - 1), varint(2**63), varint(3) + b"abc"])
        return data + varint(number << 3 | kind) + length

    def _doubled(self, data: bytes) -> bytes:
        return data * self.dice.choice([2, 2, 3, 12])

    def _without_a_part(self, data: bytes) -> bytes:
        start = self.dice.randrange(len(data) + 1)
        return data[:start] + data[start + self.dice.randrange(1, 9) :]

    def _with_rubbish(self, data: bytes) -> bytes:
        place = self.dice.randrange(len(data) + 1)
        return data[:place] + self.dice.randbytes(self.dice.randrange(1, 9)) + data[place:]

    def _shuffled(self, data: bytes) -> bytes:
        place = self.dice.randrange(len(data) + 1)
        return data[place:] + data[:place]
