"""edgespec profile --remote: a device's part of a bundle is profiled with its server's target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgespec_runtime
from edgespec.cli import main
from edgespec.latency import load_profile
from edgespec.sizing import Sized
from edgespec_export.exporter import ExportRequest, export_bundle
from edgespec_runtime.defaults import usual_policy
from edgespec_runtime.profiling import elsewhere
from edgespec_runtime.remote import RemoteSettings
from tests.support.servers import RunningServer, running_server
from tests.support.zoo import Zoo

NAME = "gqa"
FEW = ("--quick", "--max-nodes", "8", "--max-context", "64", "--threads", "1")


@pytest.fixture(scope="module")
def server(zoo: Zoo) -> Iterator[RunningServer]:
    with running_server(zoo.bundle(NAME)) as running:
        yield running


@pytest.fixture(scope="module")
def device(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What drafts, without the target."""
    out = tmp_path_factory.mktemp("device") / "device.bundle"
    target, draft = zoo.checkpoint(NAME), zoo.checkpoint(NAME, "shared")
    export_bundle(ExportRequest(str(target), out, str(draft), compressor="pool:4", part="device"))
    return out


def profiled(bundle: Path, out: Path, *more: str) -> int:
    words: Sequence[str] = ("profile", "--bundle", str(bundle), "--out", str(out), *FEW, *more)
    return main(words)


def test_a_device_is_profiled_with_its_servers_target(
    zoo: Zoo,
    server: RunningServer,
    device: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, took = elsewhere._Looking._open, list[float]()

    def taking(self: Any, words: int, pictures: int) -> float:
        """As if a busy machine did not make single opens take any time at all."""
        took.append(opened(self, words, pictures))
        return 7.0 + 5.0 * pictures

    monkeypatch.setattr(elsewhere._Looking, "_open", taking)
    out = tmp_path / "device.yaml"
    report = tmp_path / "page.html"
    assert profiled(device, out, "--remote", server.address, "--report", str(report)) == 0
    said = capsys.readouterr().out
    assert f"{server.address}: round trip" in said and "of ceiling" in said
    assert report.stat().st_size > 10_000
    profile = load_profile(out)
    remote, costs = profile.remote, profile.costs
    assert remote is not None and remote.url == server.address
    assert 0 < remote.round_trip_ms <= remote.round_trip_p95_ms
    assert costs.verify == remote.verify and remote.verify.sizes[0] == 1
    # The times of prompts and pictures are the server's, not those of the device's hollow target.
    assert set(costs.prefill.median_ms[0]) == {7.0} and costs.vision.median_ms == ((5.0,),)
    assert len(took) > 10 and min(took) > 0
    assert costs.draft_vision is not None and costs.draft_step is not None
    assert profile.memory.target_mb == 0 and profile.memory.draft_mb > 0

    settings = RemoteSettings((server.address,), mode="hybrid")
    model = edgespec_runtime.load(device, threads=1, profile=out, remote=settings)
    try:
        assert isinstance(usual_policy(model.profile), Sized)
        found = model.generate(zoo.picture(NAME, 3), "what is it", max_new_tokens=30)
    finally:
        model.close()
    plain = zoo.model(NAME).generate(
        zoo.picture(NAME, 3), "what is it", max_new_tokens=30, draft="none"
    )
    assert found.token_ids == plain.token_ids and found.sizing is not None


def test_a_whole_bundle_keeps_its_own_target_beside_the_servers(
    zoo: Zoo, server: RunningServer, tmp_path: Path
) -> None:
    out = tmp_path / "whole.yaml"
    assert profiled(zoo.bundle(NAME), out, "--remote", server.address) == 0
    profile = load_profile(out)
    assert profile.remote is not None and profile.costs.verify != profile.remote.verify
    assert replace(profile, remote=None).card.graph("target") is not None


def test_what_cannot_be_measured_is_said(
    device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.yaml"
    assert profiled(device, out) == 2
    assert "say with --remote which server has it" in capsys.readouterr().err
    trace = str(tmp_path / "t.json")
    assert profiled(device, out, "--remote", "127.0.0.1:9", "--trace", trace) == 2
    assert "--trace shows rounds with the target here" in capsys.readouterr().err
    assert profiled(device, out, "--tls-ca", "ca.pem") == 2
    assert "--remote names none" in capsys.readouterr().err
    assert not out.exists()


def test_without_a_target_and_a_draft_there_is_nothing_to_measure(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.bundle"
    export_bundle(ExportRequest(str(zoo.checkpoint(NAME)), bare, part="device"))
    assert profiled(bare, tmp_path / "p.yaml", "--remote", "127.0.0.1:9") == 2
    assert "neither a target nor a draft" in capsys.readouterr().err
