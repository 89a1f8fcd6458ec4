"""The report: a page that stands alone, says what the profile says, and believes no name."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgespec.errors import InputError
from edgespec.latency import (
    BundleFacts,
    Card,
    Costs,
    Curve,
    Device,
    DeviceProfile,
    EngineFacts,
    GraphCard,
    Memory,
    RemoteCosts,
)
from edgespec_runtime.profiling.ceiling import floor_ms, usual_context
from edgespec_runtime.profiling.page.charts import Frame, Series, line_chart, ticks
from edgespec_runtime.profiling.page.gains import LENGTHS, surfaces
from edgespec_runtime.profiling.page.heatmap import EDGES, colour, heat_map
from edgespec_runtime.profiling.page.markup import figure, tag
from edgespec_runtime.profiling.page.style import DARK, LIGHT, style_sheet
from edgespec_runtime.profiling.report import render, write_report
from edgespec_runtime.profiling.surface import (
    Drafting,
    break_even,
    draft_ms,
    plain_ms,
    round_ms,
    speedup,
    surface,
    ways,
)
from edgespec_runtime.profiling.telemetry.reading import Reading, total_watts
from edgespec_runtime.profiling.telemetry.summary import summarise

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = '<script>alert(\'x\')</script>" onload="y" & \x00\x1b\ud800 --> ]]> ünïcödé'
ROWS = (1, 2, 4, 8, 12, 16, 17, 24, 32, 33)


def curve(
    cost: Callable[[int, int], float], sizes: Sequence[int], contexts: Sequence[int] = (0,)
) -> Curve:
    """Medians from a formula, the 95th percentile an eighth above."""
    medians = tuple(tuple(cost(size, context) for size in sizes) for context in contexts)
    tails = tuple(tuple(ms * 1.125 for ms in row) for row in medians)
    return Curve(tuple(sizes), tuple(contexts), medians, tails)


def verify_ms(rows: int, context: int) -> float:
    """A staircase: a tile more every 16 rows."""
    return 20 + 4 * math.ceil(rows / 16) + rows / 8 + context / 256


COSTS = Costs(
    vision=curve(lambda n, _: 88.0 * n, (1, 2)),
    prefill=curve(lambda n, _: 30 + n / 2, (64, 512)),
    verify=curve(verify_ms, ROWS, (128, 512, 1024)),
    draft_vision=curve(lambda n, _: 4.0 * n, (1, 2)),
    draft_prefill=curve(lambda n, _: 4 + n / 16, (64, 512)),
    draft_first=curve(lambda n, _: 2 + n / 4, (1, 2, 4, 8)),
    draft_step=curve(lambda n, _: 1.5 + n / 8, (1, 2, 4, 8)),
    chain_first=curve(lambda n, _: 9 + n / 4, (1, 2, 4, 8)),
    chain_next=curve(lambda n, _: 8.0, (1,)),
    chain_steps=8,
    commit_ms=0.5,
    pick_ms=0.25,
    host_round_ms=1.0,
    host_token_ms=0.125,
)
PROFILE = DeviceProfile(
    kind="measured",
    created="2026-11-25T21:30:00Z",
    seconds=184.0,
    device=Device("Orin Nano", "Cortex-A78AE", 6, "Ampere", 7620, "JetPack 6.2", "MAXN_SUPER"),
    engine=EngineFacts("onnxruntime", "1.23.2", "CUDAExecutionProvider", 6),
    bundle=BundleFacts("llava-7b", "f" * 64, "d" * 64, "vlm", "pool:4", "ort", "int4"),
    card=Card(
        (
            GraphCard("vision", "fp16", 2**20 * 600, 0, 6e8),
            GraphCard("target", "int4", 1_388_000_000, 23438, 2.4e9),
        ),
        bandwidth_gb_s=100.0,
        gflops=20000.0,
        measured=True,
    ),
    costs=COSTS,
    memory=Memory(310.0, 1520.0, 131.0, 2**20, 2**20),
    noise=1.125,
)
BARE = replace(
    COSTS, draft_vision=None, draft_prefill=None, draft_first=None, draft_step=None,
    chain_first=None, chain_next=None, chain_steps=0,
)  # fmt: skip


class Page(HTMLParser):
    """Checks that tags are balanced; keeps elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def rows_of(page: str) -> list[list[str]]:
    """Every table row's cells."""
    return [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    ]


def tiles_of(page: str) -> list[str]:
    return [
        re.sub(r"<[^>]*>", "|", tile)
        for tile in re.findall(r'<div class="tile">(.*?)</div>', page, re.DOTALL)
    ]


def pictures(page: str) -> list[ElementTree.Element]:
    """The pictures as XML, which HTML does not ask for but other readers do."""
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def readings() -> list[Reading]:
    watts = [{"VDD_GPU_SOC": 4.0 + i, "VDD_CPU_CV": 1.0, "VIN_SYS_5V0": 3.0} for i in range(4)]
    return [
        Reading(7.0 + i, w, total_watts(w), {"tj": 50.0 + i}, power_mode="15W")
        for i, w in enumerate(watts)
    ]


# -- the page ---------------------------------------------------------------------------------


def test_the_page_is_balanced_and_fetches_nothing() -> None:
    remote = RemoteCosts("https://server.example/v1", 18.0, 41.0, curve(lambda n, _: 9.0, (1, 8)))
    page = render(replace(PROFILE, remote=remote), summarise(readings()), readings())
    parsed = Page(page)
    names = {name for name, _ in parsed.elements}
    assert {"html", "main", "svg", "table"} <= names
    assert not names & {"script", "link", "img", "iframe", "object", "image", "use", "a"}
    for _, attributes in parsed.elements:
        assert not set(attributes) & {"src", "href", "xlink:href", "srcset", "style"}
        assert not [name for name in attributes if name.startswith("on")]
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(style) == 1 and not re.search(r"url\(|@import|</", style[0])
    assert page.count("https://") == 1  # the server's name, as text
    assert "https://server.example/v1" in parsed.text


def test_hostile_names_stay_names() -> None:
    profile = replace(
        PROFILE,
        device=Device(HOSTILE, HOSTILE, 6, HOSTILE, 7620, HOSTILE, HOSTILE),
        engine=EngineFacts(HOSTILE, HOSTILE, HOSTILE, 6),
        bundle=BundleFacts(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        card=replace(PROFILE.card, graphs=(GraphCard(HOSTILE, HOSTILE, 1, 1, 1.0),)),
        created=HOSTILE,
        sources=(HOSTILE,),
        remote=RemoteCosts(HOSTILE, 18.0, 41.0, curve(lambda n, _: 9.0, (1, 8))),
    )
    telemetry = {HOSTILE: HOSTILE, "watts": {HOSTILE: {HOSTILE: HOSTILE}}, "list": [HOSTILE]}
    named = [Reading(float(i), celsius={HOSTILE: 50.0}) for i in range(2)]
    page = render(profile, telemetry, named)
    parsed = Page(page)
    assert len(pictures(page)) >= 5
    assert "script" not in {name for name, _ in parsed.elements}
    assert not [a for _, attributes in parsed.elements for a in attributes if a.startswith("on")]
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    assert parsed.text.count(shown) >= 20
    page.encode("utf-8")


def test_every_picture_is_xml_within_its_frame() -> None:
    page = render(PROFILE, summarise(readings()), readings())
    found = pictures(page)
    assert len(found) == 10  # verify, two maps, three of drafting, prefill, vision, watts, degrees
    for picture in found:
        _, _, width, height = map(float, picture.attrib["viewBox"].split())
        places = 0
        for shape in picture.iter():
            for xs, ys in coordinates(shape):
                assert 0 <= xs <= width and 0 <= ys <= height, (shape.tag, shape.attrib)
                places += 1
        assert places > 10


def coordinates(shape: ElementTree.Element) -> list[tuple[float, float]]:
    """Every place that a shape names; those of words are their anchors."""
    at = shape.attrib
    if "points" in at:
        return [
            (float(x), float(y)) for x, y in (place.split(",") for place in at["points"].split())
        ]
    if shape.tag == "line":
        return [(float(at[f"x{i}"]), float(at[f"y{i}"])) for i in "12"]
    if shape.tag == "circle":
        return [(float(at["cx"]), float(at["cy"]))]
    if shape.tag == "rect":
        x, y, w, h = (float(at[name]) for name in ("x", "y", "width", "height"))
        return [(x, y), (x + w, y + h)]
    if shape.tag == "text" and "x" in at:
        return [(float(at["x"]), float(at["y"]))]
    return []


def test_the_headline_says_what_the_costs_say() -> None:
    assert usual_context(PROFILE) == 512
    tiles = tiles_of(render(PROFILE))
    token = 26.125 + 1.0 + 0.125  # one row at 512, a round's and a token's bookkeeping
    assert f"|{1000 / token:.1f}|" in tiles[0] and "at 512 rows cached" in tiles[0]
    floor = (1_388_000_000 + 512 * 23438) / 100e9 * 1e3  # weights and cache at 100 GB/s
    assert f"|{1000 / floor:.1f}|" in tiles[1] and "measured rates" in tiles[1]
    assert f"|{100 * floor / 26.125:.0f}|" in tiles[2]
    assert "τ 1.1" in tiles[3] and "level by level" in tiles[3]
    assert "|12|" in tiles[4] and len(tiles) == 5


def test_the_tables_say_what_the_curves_say() -> None:
    rows = rows_of(render(PROFILE))
    assert ["16", "28.0", "31.5", "1.07 ×", "1.75", "14.0"] in rows
    assert ["32", "34.0", "38.2", "1.30 ×", "1.06", "14.0"] in rows
    assert ["target", "int4", "1,323.7", "23,438", "2,400", "13.9"] in rows
    assert ["a further call", "–", "8.00", "8", "1.00"] in rows
    assert ["target", "512", "286", "0.559", "1,790"] in rows
    assert ["drawing a token at temperature > 0", "0.25", "visited node"] in [
        [cell.replace("&gt;", ">") for cell in row] for row in rows
    ]
    assert ["together", "1,961"] in rows and ["caches, per 1,000 tokens", "2,000"] in rows


def test_an_estimate_says_so_and_names_its_sources() -> None:
    estimate = replace(PROFILE, kind="estimate", seconds=0.0, sources=("data sheet, page 7",))
    text = Page(render(estimate)).text
    assert "estimate, not measured" in text and "data sheet, page 7" in text
    assert "Nothing here was measured" in text and "p95 above median" not in text
    assert "Nothing here was measured" not in Page(render(PROFILE)).text


@pytest.mark.parametrize(("noise", "words"), [(1.01, "quiet"), (1.1, "restless"), (1.4, "busy")])
def test_noise_is_judged(noise: float, words: str) -> None:
    text = Page(render(replace(PROFILE, noise=noise))).text
    assert words in text and f"{100 * (noise - 1):.1f} % above the median" in text


def test_without_rates_there_is_no_ceiling() -> None:
    blind = replace(PROFILE, card=replace(PROFILE.card, bandwidth_gb_s=0.0, gflops=0.0))
    page = render(blind)
    assert "no roofline to compare with" in page and "Ceiling" not in page
    assert ["16", "28.0", "31.5", "1.07 ×", "1.75", "–"] in rows_of(page)
    headless = replace(PROFILE, card=replace(PROFILE.card, graphs=PROFILE.card.graphs[:1]))
    assert floor_ms(headless.card, "target", 1, 512) is None and "Ceiling" not in render(headless)
    assert floor_ms(blind.card, "target", 1, 512) is None


def test_a_bundle_without_a_draft_is_shown_with_free_drafting() -> None:
    page = render(replace(PROFILE, costs=BARE))
    assert "This bundle has no draft graphs" in page and "drafting at no cost" in page
    assert len(pictures(page)) == 4


def test_telemetry_is_shown_where_there_is_any() -> None:
    figures = summarise(readings())
    assert figures is not None
    page = render(replace(PROFILE, telemetry=figures))
    assert ["total", "9.50", "11.0"] in rows_of(page)
    text = Page(page).text
    assert "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0" in text and "none seen" in text
    assert "While it was measured" not in render(PROFILE)
    drawn = render(PROFILE, figures, readings())
    assert len(pictures(drawn)) == len(pictures(page)) + 2


def test_a_report_is_written_or_the_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(PROFILE, path)
    assert path.read_text(encoding="utf-8") == render(PROFILE)
    with pytest.raises(InputError, match="writing the report .*missing/report.html' failed"):
        write_report(PROFILE, tmp_path / "missing" / "report.html")
    with pytest.raises(InputError, match="Is a directory"):
        write_report(PROFILE, tmp_path)


# -- the figures behind it --------------------------------------------------------------------


def test_speedups_equal_the_formula_step_by_step() -> None:
    """8 nodes over 6 levels: a first step that takes 3 rows in, 5 further ones 8/6 wide."""
    t_draft = (2 + 3 / 4) + 5 * (1.5 + (8 / 6) / 8)
    t_verify = COSTS.verify.at(9, 512)
    t_host = 0.5 + 1.0 + 3 * 0.125
    expected = 3 * (26.125 + 1.125) / (t_draft + t_verify + t_host)
    assert speedup(COSTS, Drafting.STEPS, 8, 3.0, 512) == pytest.approx(expected, rel=1e-12)
    assert draft_ms(COSTS, Drafting.STEPS, 3, 1.0, 512) == pytest.approx(2.25 + 2 * 1.625)


def test_speedups_equal_the_formula_in_a_chain() -> None:
    """20 nodes are three calls of 8 levels; the verify curve's second tile is paid."""
    t_draft = (9 + 4 / 4) + 2 * 8.0
    expected = 4 * 27.25 / (t_draft + COSTS.verify.at(21, 512) + 0.5 + 1.0 + 4 * 0.125)
    assert speedup(COSTS, Drafting.CHAIN, 20, 4.0, 512) == pytest.approx(expected, rel=1e-12)
    assert draft_ms(COSTS, Drafting.CHAIN, 8, 4.0, 512) == pytest.approx(10)


def test_the_map_holds_the_formulas_values() -> None:
    for item in surfaces(PROFILE):
        assert item.lengths == LENGTHS and max(item.nodes) == 32
        expected = [
            [speedup(COSTS, item.drafting, n, tau, 512) for n in item.nodes] for tau in LENGTHS
        ]
        np.testing.assert_array_equal(item.speedup, expected)
        figures = [
            shape.text
            for shape in ElementTree.fromstring(
                re.findall(r"<svg.*?</svg>", heat_map(item), re.DOTALL)[0]
            ).iter("text")
            if shape.attrib.get("class", "").startswith("in ")
        ]
        known = [v for v in np.asarray(expected).ravel() if not math.isnan(v)]
        assert figures == [f"{value:.2f}" for value in known]


def test_a_tree_brings_no_more_than_its_depth_and_the_bonus() -> None:
    assert math.isnan(speedup(COSTS, Drafting.STEPS, 3, 4.5, 512))
    assert not math.isnan(speedup(COSTS, Drafting.STEPS, 3, 4.0, 512))
    assert math.isnan(speedup(COSTS, Drafting.STEPS, 32, 7.5, 512))
    assert not math.isnan(speedup(COSTS, Drafting.CHAIN, 32, 7.5, 512))


@pytest.mark.parametrize("drafting", list(Drafting))
@pytest.mark.parametrize("nodes", [1, 4, 16, 32])
def test_break_even_is_where_the_speedup_is_one(drafting: Drafting, nodes: int) -> None:
    needed = break_even(COSTS, drafting, nodes, 512)
    assert speedup(COSTS, drafting, nodes, needed, 512) == pytest.approx(1, abs=1e-3)
    assert speedup(COSTS, drafting, nodes, needed - 0.01, 512) < 1


def test_a_draft_dearer_than_its_target_never_pays() -> None:
    twice = curve(lambda n, c: 2 * verify_ms(n, c), (1, 2, 4, 8), (128, 512, 1024))
    dear = replace(
        COSTS, draft_first=twice, draft_step=twice, chain_first=None, chain_next=None, chain_steps=0
    )
    assert math.isnan(break_even(dear, Drafting.STEPS, 4, 512))
    page = render(replace(PROFILE, costs=dear))
    assert "|never|" in tiles_of(page)[3]
    shapes = [shape for picture in pictures(page) for shape in picture.iter()]
    assert not [shape for shape in shapes if shape.attrib.get("class") == "even"]


def test_the_contour_parts_losses_from_gains() -> None:
    item = surfaces(PROFILE)[0]
    picture = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", heat_map(item), re.DOTALL)[0])
    (line,) = [shape for shape in picture.iter() if shape.attrib.get("class") == "even"]
    border = dict(coordinates(line)[::2])  # every column's left end
    cells = [shape for shape in picture.iter("rect") if "none" not in shape.attrib["class"]]
    sides = set()
    for shape in cells:
        (left, top), (_, bottom) = coordinates(shape)
        gains = int(shape.attrib["class"].removeprefix("cell h")) > EDGES.index(1.0)
        assert gains == ((top + bottom) / 2 < border[left - 0.5])
        sides.add(gains)
    assert sides == {True, False}


def test_ways_of_drafting_follow_the_costs() -> None:
    assert ways(COSTS) == (Drafting.STEPS, Drafting.CHAIN)
    assert ways(BARE) == (Drafting.FREE,)
    assert round_ms(BARE, Drafting.FREE, 8, 2.0, 512) == pytest.approx(
        BARE.verify.at(9, 512) + 0.5 + 1.0 + 0.25
    )
    assert plain_ms(BARE, 512) == pytest.approx(27.25)
    one = surface(BARE, Drafting.FREE, 512, (4,), (1.0, 2.0))
    assert one.speedup.shape == (2, 1) and one.break_even[0] < 1.5


# -- its parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (0.01234, "0.0123"), (0.9996, "1.00"), (1.234, "1.23"), (9.996, "10.0"),
        (12.34, "12.3"), (99.96, "100"), (1234.5, "1,234"), (-3.21, "-3.21"),
    ],
)  # fmt: skip
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 65, 8) == [0, 10, 20, 30, 40, 50, 60]
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 0.0037, 6) == [0, 0.001, 0.002, 0.003]
    assert ticks(5, 5, 6) == [5]


def test_a_chart_of_one_point_is_drawn() -> None:
    chart = line_chart(Frame("t", "pictures", "ms"), [Series("s", (1.0,), (8.0,), (9.0,))])
    assert "95th percentile" in chart
    flat = line_chart(Frame("t", "pictures", "ms"), [Series("s", (1.0,), (8.0,), (8.0,))])
    assert "95th percentile" not in flat
    (picture,) = pictures(chart)
    assert [shape.tag for shape in picture.iter("circle")] == ["circle"]


def test_colours_change_where_gains_begin() -> None:
    assert colour(0.999) != colour(1.0) and colour(math.nan) == "none"
    assert colour(0.1) == "h0" and colour(9.0) == f"h{len(EDGES)}"


def test_tags_escape_content_and_attributes() -> None:
    assert tag("p", "a<b", tag("b", "c&d"), class_='x"y', stroke_width=1.5, id=None) == (
        '<p class="x&quot;y" stroke-width="1.5">a&lt;b<b>c&amp;d</b></p>'
    )
    assert tag("rect", x=2.0) == '<rect x="2"/>'


def variables(theme: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+):(#[0-9a-f]+);", theme))


def luminance(hexadecimal: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    digits = hexadecimal[1:] if len(hexadecimal) == 7 else "".join(2 * c for c in hexadecimal[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_both_themes_define_every_colour_and_can_be_read(theme: str) -> None:
    """WCAG's 4.5 to 1 for words on what is behind them, 3 to 1 for lines."""
    known = variables(theme)
    assert set(re.findall(r"var\(--(\w+)\)", style_sheet())) <= set(known)
    pairs = [("ink", "paper", 4.5), ("soft", "paper", 4.5), ("soft", "card", 4.5)]
    pairs += [(f"i{i}", f"h{i}", 4.5) for i in range(len(EDGES) + 1)]
    pairs += [(f"s{i}", "paper", 3.0) for i in range(6)]
    for front, back, least in pairs:
        high, low = sorted((luminance(known[front]), luminance(known[back])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= least, (front, back)
