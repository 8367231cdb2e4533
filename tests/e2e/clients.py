"""Three clients of different makes behind one interface: messages in the JSON form of proto3, both ways."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from jobs.v1 import jobs_pb2, jobs_pb2_grpc

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
NODE_SOURCE = Path(__file__).parent / "node"
SECONDS = 30


@dataclass(frozen=True, slots=True)
class Refusal:
    """The status of a refused call, its rich part decoded by the client's own means; empty without one."""

    code: str
    message: str
    domain: str
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]


class CallRefused(Exception):
    """A call was refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class AnyClient(Protocol):
    """What the tests ask of a client."""

    def call(self, rpc: str, request: Json, headers: Mapping[str, str]) -> Json:
        """Call an RPC of JobsService. Raises CallRefused."""

    def close(self) -> None:
        """End whatever runs."""


class PythonStubs:
    """The stubs in generated/."""

    def __init__(self, target: str, *options: tuple[str, str | int]) -> None:
        self._channel = grpc.insecure_channel(target, options=options)
        self._stub = jobs_pb2_grpc.JobsServiceStub(self._channel)

    def call(self, rpc: str, request: Json, headers: Mapping[str, str]) -> Json:
        """Call with a message made from the JSON."""
        message = json_format.ParseDict(request, getattr(jobs_pb2, f"{rpc}Request")())
        try:
            response = getattr(self._stub, rpc)(message, metadata=tuple(headers.items()), timeout=SECONDS)
        except grpc.RpcError as error:
            raise CallRefused(_refusal_of_stubs(error)) from error
        answered: Json = json_format.MessageToDict(response)
        return answered

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class BufCurl:
    """`buf curl`, which learns the API by server reflection. reflection: grpc-v1 or grpc-v1alpha."""

    def __init__(self, target: str, reflection: str = "grpc-v1") -> None:
        self._base = f"http://{target}"
        self._command = [
            *(str(Path(sys.executable).with_name("buf")), "curl", "--protocol", "grpc"),
            *("--http2-prior-knowledge", "--reflect-protocol", reflection),
        ]

    def call(self, rpc: str, request: Json, headers: Mapping[str, str]) -> Json:
        """Run it once."""
        flags = [part for name, text in headers.items() for part in ("-H", f"{name}: {text}")]
        result = self._run(*flags, "-d", json.dumps(request), f"{self._base}/jobs.v1.JobsService/{rpc}")
        if result.returncode:
            raise CallRefused(_refusal_of_buf(result.stderr))
        answered: Json = json.loads(result.stdout)
        return answered

    def list_methods(self) -> list[str]:
        """The methods that the server says it has."""
        result = self._run("--list-methods", self._base)
        assert result.returncode == 0, result.stderr
        return result.stdout.split()

    def close(self) -> None:
        """Nothing runs between calls."""

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


class NodeClient:
    """client.js, one process for many calls. It has of ours nothing but protos/."""

    def __init__(self, target: str, modules: Path, *service_config: str) -> None:
        self._process = subprocess.Popen(
            ["node", str(NODE_SOURCE / "client.js"), target, str(PROTOS), *service_config],
            env=os.environ | {"NODE_PATH": str(modules)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, rpc: str, request: Json, headers: Mapping[str, str]) -> Json:
        """Write the call, read the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(
            json.dumps({"rpc": rpc, "request": request, "headers": dict(headers)}),
            file=self._process.stdin,
            flush=True,
        )
        line = self._process.stdout.readline()
        assert line, f"node ended with {self._process.wait(SECONDS)}"
        answer = json.loads(line)
        if "refused" not in answer:
            answered: Json = answer["response"]
            return answered
        refused = answer["refused"]
        infos = refused.pop("infos") or [{"domain": "", "reason": ""}]
        (info,) = infos
        raise CallRefused(Refusal(**refused, **{"metadata": {}, **info}))

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=SECONDS)
        assert self._process.returncode == 0


def node_modules() -> Path:
    """The folder of the packages that client.js needs, installed once; skips by name without Node."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node")
    package = NODE_SOURCE / "package.json"
    wanted = ROOT / ".cache" / "node" / sha256(package.read_bytes()).hexdigest()[:12]
    if not wanted.exists():
        wanted.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=wanted.parent))
        shutil.copy(package, draft)
        flags = ("--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund")
        result = subprocess.run(
            [npm, "install", *flags], cwd=draft, capture_output=True, text=True, timeout=240, check=False
        )
        assert result.returncode == 0, result.stderr
        try:
            # Whole or not at all, also when two runs install at the same time.
            draft.rename(wanted)
        except OSError:
            shutil.rmtree(draft)
    return wanted / "node_modules"


def _refusal_of_stubs(error: Any) -> Refusal:
    status = rpc_status.from_call(error)
    if status is None:
        return Refusal(error.code().name, error.details(), "", "", {}, {})
    details = [(detail.type_url.rpartition("/")[2], detail.value) for detail in status.details]
    return _refusal(error.code().name, error.details(), details)


def _refusal_of_buf(stderr: str) -> Refusal:
    error = json.loads(stderr)
    # Base64 without its padding.
    details = [
        (detail["type"], base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4)))
        for detail in error["details"]
    ]
    return _refusal(error["code"].upper(), error["message"], details)


def _refusal(code: str, message: str, details: Iterable[tuple[str, bytes]]) -> Refusal:
    packed = list(details)
    (info,) = (
        error_details_pb2.ErrorInfo.FromString(data)
        for name, data in packed
        if name == "google.rpc.ErrorInfo"
    )
    violations = {
        violation.field: violation.description
        for name, data in packed
        if name == "google.rpc.BadRequest"
        for violation in error_details_pb2.BadRequest.FromString(data).field_violations
    }
    return Refusal(code, message, info.domain, info.reason, dict(info.metadata), violations)
