"""``optimum-cli export edgespec``: optimum looks for commands in this namespace, which has no
``__init__.py`` anywhere (PEP 420). Nothing of edgespec is imported unless optimum-cli runs.
"""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class EdgespecExportCommand(BaseOptimumCLICommand):
    """A bundle in the place of a folder of ONNX files."""

    COMMAND = CommandInfo(
        name="edgespec",
        help="Export a LLaVA target, a draft and a compressor as one bundle of ONNX graphs.",
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        from edgespec_export.optimum_command import add_flags

        add_flags(parser)

    def run(self) -> None:
        from edgespec_export.optimum_command import run

        raise SystemExit(run(self.args))


REGISTER_COMMANDS = [(EdgespecExportCommand, ExportCommand)]
