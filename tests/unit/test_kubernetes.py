"""The Kubernetes manifest: its settings are settings, and its ports, probes and times fit them."""

from pathlib import Path
from typing import Any

import yaml

from jobs_service import config

MANIFEST = Path(__file__).parents[2] / "scripts/kubernetes.yaml"
OBJECTS: dict[str, Any] = {item["kind"]: item for item in yaml.safe_load_all(MANIFEST.read_text())}
POD = OBJECTS["Deployment"]["spec"]["template"]["spec"]
[SERVICE] = POD["containers"]
[MIGRATION] = POD["initContainers"]
CLOSING_SECONDS = 5
"""For what comes after the calls in progress: batches, pools, the last log lines."""


def environment(container: dict[str, Any]) -> dict[str, str]:
    """What a container gets: the config map where it is named, and a stand-in for each secret."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        assert source["configMapRef"]["name"] == OBJECTS["ConfigMap"]["metadata"]["name"]
        values |= OBJECTS["ConfigMap"]["data"]
    for variable in container["env"]:
        assert variable["valueFrom"]["secretKeyRef"]["name"] == "jobs-database"
        values[variable["name"]] = "postgresql://jobs_app@db/jobs"
    return values


def settings() -> config.Config:
    """What the service makes of it."""
    return config.load(environment(SERVICE))


def test_every_variable_of_the_manifest_is_a_setting_that_can_be_served_with() -> None:
    known = {name for name, _, _ in config.variables()}
    given = environment(SERVICE) | environment(MIGRATION)
    assert given.keys() <= known
    config.check_serving(settings())


def test_the_service_encrypts_and_takes_no_development_key() -> None:
    loaded = settings()
    assert loaded.tls_cert_file
    assert not loaded.insecure_listen
    assert not loaded.uses_development_key


def test_the_key_files_are_in_the_folder_that_is_mounted() -> None:
    loaded = settings()
    [mount] = SERVICE["volumeMounts"]
    files = [loaded.tls_cert_file, loaded.tls_key_file, loaded.jwt_jwks_file]
    assert {str(file.parent) for file in files if file} == {mount["mountPath"]}
    # A single file that is mounted never changes.
    assert "subPath" not in mount


def test_the_ports_are_those_that_are_listened_on() -> None:
    loaded = settings()
    assert loaded.metrics_listen is not None
    ports = {port["name"]: port["containerPort"] for port in SERVICE["ports"]}
    assert ports == {"grpc": loaded.listen.port, "metrics": loaded.metrics_listen.port}
    annotations = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(loaded.metrics_listen.port)
    assert OBJECTS["Service"]["spec"]["ports"][0]["port"] == loaded.listen.port


def test_the_probes_ask_for_readiness_and_liveness_where_they_are_answered() -> None:
    asked = {probe: SERVICE[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/live", "port": "metrics"},
        "liveness": {"path": "/live", "port": "metrics"},
        "readiness": {"path": "/ready", "port": "metrics"},
    }


def test_a_pod_has_the_time_to_drain() -> None:
    loaded = settings()
    needed = loaded.drain_delay_seconds + loaded.drain_seconds + CLOSING_SECONDS
    assert POD["terminationGracePeriodSeconds"] > needed


def test_the_containers_may_do_nothing_that_the_service_does_not_need() -> None:
    assert POD["securityContext"]["runAsUser"] == 10001
    assert POD["securityContext"]["runAsNonRoot"]
    for container in (SERVICE, MIGRATION):
        restricted = container["securityContext"]
        assert restricted["readOnlyRootFilesystem"]
        assert not restricted["allowPrivilegeEscalation"]
        assert restricted["capabilities"] == {"drop": ["ALL"]}


def test_only_the_migration_knows_the_owner_of_the_tables() -> None:
    keys = [container["env"][0]["valueFrom"]["secretKeyRef"]["key"] for container in (SERVICE, MIGRATION)]
    assert keys == ["url", "owner-url"]
