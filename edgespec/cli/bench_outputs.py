"""What ``edgespec bench`` prints and writes, and the checks that it can be written at all."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgespec.cli.common import check_writable, needs_extra, note, print_json
from edgespec.errors import ConfigError, EdgespecError, InputError

if TYPE_CHECKING:
    from edgespec_runtime.bench.cells import Cell, Difference
    from edgespec_runtime.bench.measure import Listener, Turn

OUTPUTS = ("markdown", "plot", "record")


@dataclass
class Outcome:
    """What has been measured so far, and what broke it off."""

    turns: list[Turn]
    stopped_by: BaseException | None = None


def check_outputs(arguments: argparse.Namespace) -> dict[str, Path]:
    """The files to write, each proven to be writable. Raises InputError."""
    from edgespec_runtime.bench.plot import ENDINGS

    given = {name: getattr(arguments, name) for name in OUTPUTS}
    outputs = {name: Path(value).expanduser() for name, value in given.items() if value}
    if "plot" in outputs:
        if outputs["plot"].suffix not in ENDINGS:
            raise ConfigError(f"--plot is '{outputs['plot']}'; its name must end in .svg or .png")
        with needs_extra("edgespec bench --plot", "plot"):
            import matplotlib  # noqa: F401
    taken = {Path(path).expanduser().resolve(): "--data" for path in arguments.data}
    for name, path in outputs.items():
        other = taken.setdefault(path.resolve(), f"--{name}")
        if other != f"--{name}":
            raise InputError(f"--{name} would overwrite '{path}', which is also {other}")
        check_writable(path, f"--{name}")
    return outputs


@contextmanager
def recording(path: Path | None) -> Iterator[Listener]:
    """Takes every run down in ``path``, if there is one."""
    from edgespec_runtime.bench.traces import Recorder

    if path is None:
        yield lambda turn, side, repeat, run: None
        return
    with path.open("w", encoding="utf-8") as file:
        yield Recorder(file)


def report(outcome: Outcome, outputs: dict[str, Path], as_json: bool) -> int:
    """Prints and writes what there is; only then tells what stopped it, or was not exact."""
    from edgespec_runtime.bench.cells import differences, summarise
    from edgespec_runtime.bench.report import markdown

    turns, stopped = outcome.turns, outcome.stopped_by
    skipped = [turn for turn in turns if turn.skipped]
    cells = summarise(turns)
    if stopped is None and not cells:
        raise InputError(f"no prompt could be run: {skipped[0].skipped}")
    if cells:
        broken = f"**Broken off; prompts measured: {len(turns)}.** " if stopped else ""
        table = broken + markdown(cells)
        if as_json:
            print_json([cell.as_json() for cell in cells])
        else:
            print(table)
        _write(cells, table, outputs)
    for turn in skipped:
        note(f"left out: {turn.row.domain} '{turn.row.id}' turn {turn.number}: {turn.skipped}")
    if stopped is not None:
        raise stopped
    return _verdict(differences(turns))


def _write(cells: Sequence[Cell], table: str, outputs: dict[str, Path]) -> None:
    try:
        if "markdown" in outputs:
            outputs["markdown"].write_text(table + "\n", encoding="utf-8")
        if "plot" in outputs:
            from edgespec_runtime.bench.plot import draw

            draw(cells, outputs["plot"])
    except OSError as error:
        raise EdgespecError(f"writing '{error.filename}' failed: {error.strerror}") from None


def _verdict(found: Sequence[Difference]) -> int:
    """Texts that differ are a failure of edgespec: exit code 1."""
    for miss in found:
        note(
            f"NOT EXACT: {miss.method} left plain decoding at token {miss.position} of "
            f"{miss.domain} '{miss.id}' turn {miss.turn}"
        )
    if found:
        raise EdgespecError(
            f"{len(found)} times a method's tokens were not those of plain decoding; a tie in the "
            "target's logits can do that, and in int8 and int4 kernels that single rows have for "
            "themselves (--exact uses one kind); everything else is a bug: please report it"
        )
    return 0
