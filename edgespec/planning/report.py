"""A plan as text and as plain containers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgespec.planning.plan import Plan
from edgespec.planning.room import MB, NOT, Row

KINDS = {
    "weights": "weights",
    "tables": "token table",
    "cache": "KV cache",
    "workspace": "buffers",
    "program": "tokenizer and the like",
}


def text_of(plan: Plan) -> str:
    """Three tables and a recommendation."""
    blocks = (_bill(plan), _contexts(plan), _builds(plan), [f"recommendation: {plan.advice}"])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _bill(plan: Plan) -> list[str]:
    setting, device = plan.setting, plan.device
    said = f"{plan.inventory.title} on {device.name}, MB at a context of {setting.context}"
    said += f", trees of {setting.nodes} nodes"
    if setting.sessions > 1:
        said += f", {setting.sessions} sessions"
    rows = [["", *(row.precision for row in plan.rows)]]
    for i, item in enumerate(plan.rows[0].items):
        values = [row.items[i] for row in plan.rows]
        if any(value.nbytes >= MB / 2 for value in values):
            label = ": ".join(filter(None, (KINDS[item.what], item.role)))
            rows.append([label, *(_mb(v.nbytes / MB, v.exact) for v in values)])
    rows.append(["interpreter and engine", *(_mb(device.base_mb, False) for _ in plan.rows)])
    needed = [row.needed_mb[setting.context] for row in plan.rows]
    rows.append(["needed", *(_mb(value, True) for value in needed)])
    rows.append([f"of {device.usable_mb:,.0f} MB", *(device.verdict(value) for value in needed)])
    rows.append(["files to copy", *(_mb(row.files_mb, row.exported) for row in plan.rows)])
    return [said, *_aligned(rows), "~ estimates; other figures follow from sizes that are known"]


def _contexts(plan: Plan) -> list[str]:
    contexts = list(plan.rows[0].needed_mb)
    rows = [["context", *(str(tokens) for tokens in contexts), "largest"]]
    for row in plan.rows:
        cells = [_cell(row, tokens) for tokens in contexts]
        rows.append([row.precision, *cells, str(row.largest_context or "none")])
    return list(_aligned(rows))


def _cell(row: Row, tokens: int) -> str:
    return f"{row.verdicts[tokens]} {row.needed_mb[tokens]:,.0f}"


def _builds(plan: Plan) -> list[str]:
    lines = []
    for row in plan.rows:
        if row.build_mb:
            low, high = row.build_mb
            swap = {"no": "add swap", "tight": "swap may be needed"}.get(row.build, "fits")
            lines.append(f"  {row.precision:<5} {low:,.0f} to {high:,.0f} MB: {swap}")
    head = "building TensorRT engines there, if it takes 3 to 4 times the largest graph's weights:"
    return [head, *lines] if lines else []


def _mb(value: float, exact: bool) -> str:
    return f"{'' if exact else '~'}{value:,.0f}"


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(["  " + row[0].ljust(widths[0]), *cells]).rstrip()


def plain_of(plan: Plan) -> dict[str, Any]:
    """What ``--json`` prints."""
    setting, device = plan.setting, plan.device
    return {
        "model": plan.inventory.name,
        "device": device.name,
        "usable_mb": device.usable_mb,
        "base_mb": device.base_mb,
        "context": setting.context,
        "nodes": setting.nodes,
        "sessions": setting.sessions,
        "precisions": {row.precision: _row(plan, row) for row in plan.rows},
        "recommended": plan.recommended or None,
        "advice": plan.advice,
    }


def _row(plan: Plan, row: Row) -> dict[str, Any]:
    context = plan.setting.context
    return {
        "exported": row.exported,
        "needed_mb": round(row.needed_mb[context], 1),
        "verdict": row.verdicts[context],
        "fits": row.verdicts[context] != NOT,
        "largest_context": row.largest_context,
        "contexts": {
            str(tokens): {"needed_mb": round(value, 1), "verdict": row.verdicts[tokens]}
            for tokens, value in row.needed_mb.items()
        },
        "files_mb": round(row.files_mb, 1),
        "items": [
            {"what": item.what, "role": item.role, "bytes": item.nbytes, "exact": item.exact}
            for item in row.items
        ],
        "build_mb": [round(value, 1) for value in row.build_mb] if row.build_mb else None,
        "build": row.build or None,
    }
