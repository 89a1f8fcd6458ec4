"""Cost curves between measured points, profile files, and which profile fits where."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgespec.errors import ConfigError, InputError
from edgespec.latency import Curve, dump, load_profile, parse, save_profile
from tests.support.profiles import curve, profile

STAIRS = curve((2.0, 2.0, 2.0, 4.0, 4.0, 6.5), sizes=(1, 7, 8, 9, 16, 17))
DIPS = curve((3.0, 2.5, 2.8, 2.7), (3.5, 3.6, 3.1, 4.0))


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    sizes = draw(st.lists(st.integers(1, 300), min_size=1, max_size=8, unique=True))
    contexts = draw(st.lists(st.integers(0, 4000), min_size=1, max_size=4, unique=True))
    ms = st.floats(1e-3, 1e4)
    rows = [tuple(draw(ms) for _ in sizes) for _ in contexts]
    table = tuple(rows)
    return Curve(tuple(sorted(sizes)), tuple(sorted(contexts)), table, table)


@given(curves())
def test_a_curve_says_at_a_measured_point_what_was_measured(measured: Curve) -> None:
    for context, medians in zip(measured.contexts, measured.median_ms, strict=True):
        row = measured.row(context, measured.sizes[-1])
        for size, median in zip(measured.sizes, medians, strict=True):
            assert measured.at(size, context) == median == row[size]


@given(curves(), st.integers(0, 400), st.floats(0, 8000))
def test_a_curve_is_finite_and_positive_everywhere(
    measured: Curve, size: int, context: float
) -> None:
    assert 0 < measured.at(size, context) < math.inf


@given(curves(), st.integers(0, 400), st.floats(0, 8000))
def test_a_row_is_the_curve_at_every_size(measured: Curve, most: int, context: float) -> None:
    row = measured.row(context, most)
    assert row.shape == (most + 1,)
    assert row.tolist() == [measured.at(size, context) for size in range(most + 1)]


def test_between_two_sizes_a_curve_is_a_straight_line() -> None:
    assert curve((2.0, 3.0), sizes=(4, 8)).at(5) == pytest.approx(2.25)


def test_a_staircase_stays_one() -> None:
    row = STAIRS.row(0, 17)
    assert row[1:9].tolist() == [2.0] * 8
    assert row[9:17].tolist() == [4.0] * 8
    assert row[17] == 6.5


def test_a_dip_is_kept_and_not_smoothed_away() -> None:
    assert DIPS.row(0, 8)[[1, 2, 4, 8]].tolist() == [3.0, 2.5, 2.8, 2.7]


def test_below_the_smallest_size_a_curve_costs_what_the_smallest_cost() -> None:
    assert curve((2.0, 3.0), sizes=(4, 8)).row(0, 4).tolist() == [2.0] * 5


def test_above_the_largest_size_the_last_slope_goes_on() -> None:
    assert curve((2.0, 2.0, 3.0), sizes=(1, 4, 8)).at(16) == pytest.approx(5.0)


def test_a_curve_that_falls_at_its_end_does_not_fall_on() -> None:
    assert DIPS.at(1000) == 2.7


def test_a_single_point_holds_for_every_size_and_context() -> None:
    assert Curve.constant(1.5).row(700, 3).tolist() == [1.5] * 4


def test_contexts_are_interpolated_clamped_below_and_continued_above() -> None:
    measured = Curve((1, 2), (100, 200), ((2.0, 4.0), (3.0, 3.0)), ((2.0, 4.0), (3.0, 3.0)))
    assert measured.at(1, 150) == pytest.approx(2.5)
    assert measured.at(1, 0) == 2.0
    assert measured.at(1, 400) == pytest.approx(5.0)
    assert measured.at(2, 400) == 3.0  # it fell from 100 to 200, and does not go on falling


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sizes": ()}, "sizes is empty"),
        ({"contexts": ()}, "contexts is empty"),
        ({"sizes": (0, 2)}, "start at 1"),
        ({"contexts": (-1,)}, "start at 0"),
        ({"sizes": (2, 2)}, "2 after 2; they must ascend"),
        ({"median_ms": ((1.0, 2.0), (1.0, 2.0))}, "2 rows for 1 contexts"),
        ({"p95_ms": ((1.0,),)}, "a row of 1 values for 2 sizes"),
        ({"median_ms": ((math.nan, 2.0),)}, "nan"),
        ({"p95_ms": ((1.0, math.inf),)}, "inf"),
        ({"median_ms": ((0.0, 2.0),)}, "above 0"),
        ({"p95_ms": ((0.9, 2.0),)}, "below its median"),
    ],
)
def test_points_that_make_no_curve_are_refused(change: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {
        "sizes": (1, 2),
        "contexts": (0,),
        "median_ms": ((1.0, 2.0),),
        "p95_ms": ((1.0, 2.0),),
    }
    with pytest.raises(ValueError, match=said):
        Curve(**{**good, **change})


def test_a_profile_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "board.yaml"
    save_profile(profile(), path)
    assert load_profile(path) == profile()
    assert [p.name for p in path.parent.iterdir()] == ["board.yaml"]


@given(curves())
def test_a_round_trip_changes_nothing_but_digits_nobody_measured(measured: Curve) -> None:
    given_profile = replace(profile(), costs=replace(profile().costs, verify=measured))
    once = parse(dump(given_profile), "it")
    np.testing.assert_allclose(once.costs.verify.median_ms, measured.median_ms, rtol=1e-4)
    assert parse(dump(once), "it") == once


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    odd = replace(profile(), noise=np.float64(1.25), seconds=np.float32(2.0))
    odd = replace(odd, telemetry={"power_w": np.float64(7.5), "clocks": [np.int64(1)]})
    assert parse(dump(odd), "it").telemetry == {"power_w": 7.5, "clocks": [1]}
    assert json.loads(json.dumps(odd.as_json()))["noise"] == 1.25


def test_a_profile_printed_as_json_is_a_profile_file_too(tmp_path: Path) -> None:
    small = replace(profile(), costs=replace(profile().costs, commit_ms=1e-05))
    path = tmp_path / "board.json"
    path.write_text(json.dumps(small.as_json()), encoding="utf-8")
    assert load_profile(path) == small


def test_a_profile_file_says_what_it_is_and_keeps_rows_on_lines() -> None:
    text = dump(profile())
    assert text.startswith("# What every operation of 'b' costs, measured on board")
    assert "    - [2.0, 2.2, 2.6, 4.0]\n" in text
    assert "ESTIMATED" in dump(replace(profile(), kind="estimate"))


def test_where_nothing_can_be_written_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(InputError, match=r"writing profile '.*taken' failed"):
        save_profile(profile(), tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def _without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for key in keys[:-1]:
            values = values[key]
        del values[keys[-1]]

    return change


def _with(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("version"), "no 'version'"),
        (_with(2, "version"), "version 2, this edgespec reads 1; measure again"),
        (
            _with(1, "costs", "verfiy"),
            r"p\.costs has .* key 'verfiy'; did you mean verify",
        ),
        (_without("costs", "verify"), r"p\.costs lacks verify"),
        (_without("costs", "verify", "p95_ms"), r"p\.costs\.verify lacks p95_ms"),
        (_with([], "costs", "verify", "sizes"), r"p\.costs\.verify: sizes is empty.*measure again"),
        (_with([[-1.0]], "costs", "vision", "median_ms"), r"vision\.median_ms\[0\]\[0\] is -1\.0"),
        (_with([[math.nan]], "costs", "vision", "p95_ms"), r"vision\.p95_ms\[0\]\[0\] is nan"),
        (_with([[math.inf]], "costs", "vision", "p95_ms"), "is inf; it must be a number, finite"),
        (_with(3.5, "costs", "chain_steps"), "chain_steps is 3.5; it must be a whole number"),
        (_with(0, "costs", "chain_steps"), "chain_first, chain_next and chain_steps"),
        (_with(None, "costs", "draft_step"), "draft_first and draft_step belong together"),
        (_with("1e-3", "noise"), "noise is '1e-3'; it must be a number, as in 12 or 0.001"),
        (_with(0.5, "noise"), "noise is 0.5"),
        (_with("guess", "kind"), "kind is 'guess'; there are: measured, estimate"),
        (_with(True, "device", "cores"), "cores is True"),
        (_with(7, "device", "name"), "name is 7; it must be text"),
        (_with("x", "bundle"), "bundle is 'x'; 'key: value' lines are expected"),
        (_with(3, "sources"), "sources is 3; a list is expected"),
        (_with(4, "telemetry"), "telemetry is 4"),
    ],
)
def test_a_damaged_profile_is_refused_with_the_place_and_a_way_out(
    change: Callable[[dict[str, Any]], None], said: str
) -> None:
    values = copy.deepcopy(profile().as_json())
    change(values)
    for text in (yaml.safe_dump(values), json.dumps(values)):
        with pytest.raises(ConfigError, match=said) as caught:
            parse(text, "p")
        assert str(caught.value).startswith("p")


@pytest.mark.parametrize("text", ["", "- 1\n", "{", "a: [", "{} {}", "a: b: c"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"p\.yaml"):
        load_profile(path)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml' cannot be read: No such file"):
        load_profile(tmp_path / "no.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.yaml' cannot be read"):
        load_profile(tmp_path / "bytes.yaml")
