"""Examples in configs/ for Kubernetes and Envoy, as far as they can be checked without either."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgespec.cli import build_parser
from edgespec.cli.serve_flags import settings_of

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
MANIFESTS = ("embedded", "ray")
Object = dict[str, Any]


def manifest(name: str) -> list[Object]:
    text = (CONFIGS / f"kubernetes/{name}.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def templates(objects: list[Object]) -> Iterator[tuple[Object, dict[str, str]]]:
    """Pod templates, and the labels that their pods have."""
    for one in objects:
        spec = one["spec"]
        if one["kind"] == "StatefulSet":
            yield spec["template"], spec["template"]["metadata"]["labels"]
        if one["kind"] == "RayCluster":  # labels that KubeRay gives
            own = {"ray.io/cluster": one["metadata"]["name"]}
            yield spec["headGroupSpec"]["template"], own | {"ray.io/node-type": "head"}
            for group in spec["workerGroupSpecs"]:
                yield group["template"], own | {"ray.io/node-type": "worker"}


def containers(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    for template, _ in templates(objects):
        for container in template["spec"]["containers"]:
            yield template["spec"], container


def command_lines(objects: list[Object]) -> list[list[str]]:
    """Every `edgespec ...` that a container runs, without the name."""
    found = []
    for _, container in containers(objects):
        words = [*container.get("command", ()), *container.get("args", ())]
        if words[0] == "edgespec":
            found.append(words[1:])
        for script in words:
            found += [
                shlex.split(line)[2:]
                for line in script.splitlines()
                if line.startswith("exec edgespec ")
            ]
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_objects_have_what_the_cluster_asks_for(name: str) -> None:
    versions = {
        "Service": "v1",
        "StatefulSet": "apps/v1",
        "PodDisruptionBudget": "policy/v1",
        "NetworkPolicy": "networking.k8s.io/v1",
        "RayCluster": "ray.io/v1",
    }
    for one in manifest(name):
        assert one["apiVersion"] == versions[one["kind"]]
        assert re.fullmatch("[a-z0-9-]{1,63}", one["metadata"]["name"])
        if one["kind"] == "StatefulSet":
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
            services = [o["metadata"]["name"] for o in manifest(name) if o["kind"] == "Service"]
            assert one["spec"]["serviceName"] in services


@pytest.mark.parametrize("name", MANIFESTS)
def test_names_refer_to_something(name: str) -> None:
    objects = manifest(name)
    for pod, container in containers(objects):
        assert container["image"] and container["name"]
        ports = {port["name"] for port in container.get("ports", ())}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            check = probe.get("tcpSocket") or probe.get("httpGet")
            assert not probe or check["port"] in ports
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        limits, asked = container["resources"]["limits"], container["resources"]["requests"]
        assert "memory" in limits and "memory" in asked
    for one in objects:
        if one["kind"] == "Service":
            chosen = [
                template
                for template, labels in templates(objects)
                if one["spec"]["selector"].items() <= labels.items()
            ]
            names = {
                port["name"]
                for template in chosen
                for container in template["spec"]["containers"]
                for port in container.get("ports", ())
            }
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= names


@pytest.mark.parametrize("name", MANIFESTS)
def test_command_lines_are_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = manifest(name)
    (line,) = command_lines(objects)
    arguments = build_parser()[0].parse_args(line)
    assert arguments.command == "serve"
    mounted = {mount["mountPath"] for _, c in containers(objects) for mount in c["volumeMounts"]}
    for path in (arguments.tls_cert, arguments.tls_key, arguments.tokens_file, arguments.bundle):
        assert str(Path(path).parent) in mounted
    # What it would refuse with real files: open to others without TLS or without asking who.
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"")
    settings = settings_of(arguments)
    assert not settings.insecure and not settings.listen.loopback
    ports = {port["containerPort"] for _, c in containers(objects) for port in c.get("ports", ())}
    assert settings.metrics is not None
    assert {settings.listen.port, settings.metrics.port} <= ports
    for template, _ in templates(objects):
        grace = template["spec"].get("terminationGracePeriodSeconds")
        assert grace is None or grace > settings.grace_s + 10
    assert (arguments.engine == "ray") == (name == "ray")


def test_replicas_are_as_many_as_the_cluster_has_room_for() -> None:
    objects = manifest("ray")
    (line,) = command_lines(objects)
    arguments = build_parser()[0].parse_args(line)
    (cluster,) = [one for one in objects if one["kind"] == "RayCluster"]
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (
        arguments.ray_replicas,
        arguments.ray_max_replicas,
    )
    (worker,) = group["template"]["spec"]["containers"]
    assert float(worker["resources"]["limits"]["nvidia.com/gpu"]) == arguments.ray_gpus
    assert float(worker["resources"]["requests"]["cpu"]) == arguments.ray_cpus


def test_envoy_hashes_sessions_and_checks_health() -> None:
    config = yaml.safe_load((CONFIGS / "envoy/edgespec.yaml").read_text(encoding="utf-8"))
    (listener,), (cluster,) = (config["static_resources"][key] for key in ("listeners", "clusters"))
    (chain,) = listener["filter_chains"]
    (manager,) = (entry["typed_config"] for entry in chain["filters"])
    (host,) = manager["route_config"]["virtual_hosts"]
    (route,) = host["routes"]
    assert route["match"]["prefix"] == "/edgespec.v1.Verifier/"
    assert route["route"]["cluster"] == cluster["name"] == "verifiers"
    (policy,) = route["route"]["hash_policy"]
    assert policy["header"]["header_name"] == "x-session-id"
    assert cluster["lb_policy"] == "RING_HASH"
    (check,) = cluster["health_checks"]
    assert check["grpc_health_check"]["service_name"] == "edgespec.v1.Verifier"
    assert manager["http_filters"][-1]["name"] == "envoy.filters.http.router"
    for side in (chain["transport_socket"], cluster["transport_socket"]):
        assert side["typed_config"]["common_tls_context"]["alpn_protocols"] == ["h2"]
    assert cluster["load_assignment"]["cluster_name"] == cluster["name"]
