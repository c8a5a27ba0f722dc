"""What the terminal shows of figures, comparisons, recommendations and statistics."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from effillm_server.cli.render import bytes_or_blank, console, plain, print_table, seconds_or_blank
from effillm_server.cli.tables import model
from effillm_server.errors import BadInput

Record = Mapping[str, Any]
# Column heads of the axes, in the order of every table.
AXES = {
    "model": "~model", "weights": "weights", "quantization": "quant", "dtype": "dtype", "batch_size": ">batch",
    "sequence_length": ">seq", "workload": "workload", "generate_tokens": ">gen", "hardware": "hardware", "engine": "engine",
    "runtime": "runtime",
}  # fmt: skip
ALWAYS = ("model", "quantization", "batch_size", "sequence_length")
SECONDS = frozenset({"ttft_s", "ttft_in_run_s", "tpot_s", "e2e_s", "load_s", "itl_s"})


def figures(items: Iterable[Record]) -> None:
    """Every figure and what it needs."""
    print_table(
        (">figure", "name", "~title", "~can be drawn"),
        ((f["number"], f["name"], f["title"], "yes" if f["can_be_drawn"] else f["needs"]) for f in items),
        empty="no figures",
    )


def comparison(found: Record) -> None:
    """Cell by cell, then what it all means."""
    cells: Sequence[Record] = found["cells"]
    axes = shown_axes(cells, [axis for axis in AXES if axis in found["held_equal"]])
    metric = found["metric"]
    print_table(
        (*(AXES[axis] for axis in axes), ">A", ">B", ">B against A", ">95 % interval", ">p", "verdict"),
        (
            (
                *(axis_value(cell, axis) for axis in axes), value(metric, cell["a"]), value(metric, cell["b"]),
                f"{cell['change']:+.1%}", f"{cell['ratio_low'] - 1:+.1%} to {cell['ratio_high'] - 1:+.1%}",
                f"{cell['p']:.2g}", cell["verdict"],
            )
            for cell in cells
        ),
        empty="no cells in common",
    )  # fmt: skip
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found["counts"].items() if count)
    lines = [f"{metric}, B against A: {counts}; within {100 * found['margin']:.3g} % of each other counts as the same"]
    for axis, (of_a, of_b) in found["across"].items():
        lines.append(f"differs on purpose: {axis} is {words(of_a)} in A, {words(of_b)} in B")
    lines.append(f"held equal: {', '.join(found['held_equal'])}")
    if found["only_in_a"] or found["only_in_b"]:
        lines.append(f"not compared: {found['only_in_a']} cells only in A, {found['only_in_b']} only in B")
    lines += [found["comparability"]["why"], *found["remarks"]]
    if found["fail_if"] is not None:
        lines.append(f"{found['fail_if']}: {len(found['tripped'])} of {len(cells)} cells meet it")
    tell(lines)


def recommendation(found: Record) -> None:
    """The sentence first, then ties, the Pareto set, and what would change the answer."""
    tell([found["sentence"]], gap=False)
    candidates = [("best", found["recommended"]), *(("tie", tie) for tie in found["ties"])]
    candidates += [("pareto", other) for other in found["pareto"]]
    entries = [(role, entry) for role, entry in candidates if entry is not None]
    axes = shown_axes([entry for _, entry in entries], list(AXES))
    console().print("")
    print_table(
        ("", *(AXES[axis] for axis in axes), ">tok/s", ">TTFT", ">memory", ">$/Mtok", "~jobs"),
        (
            (
                role, *(axis_value(entry, axis) for axis in axes), value("throughput_tok_s", entry["values"].get("throughput_tok_s")),
                value("ttft_s", entry["values"].get("ttft_s")), value("memory_bytes", entry["values"].get("memory_bytes")),
                value("usd", entry["values"].get("usd_per_million_tokens")), words(entry["jobs"]),
            )
            for role, entry in entries
        ),
        empty="nothing keeps the limits",
    )  # fmt: skip
    lines = [f"{found['allowed']} of {found['considered']} measured configurations surely keep the limits"]
    if found["simulated"]:
        lines.append("SIMULATED: declared times, not measurements")
    if found["note"]:
        lines.append(found["note"])
    lines += [f"it would change {change['sentence']}" for change in found["what_would_change_it"]]
    tell([*lines, f"rests on jobs {words(found['rests_on'])}"])


def statistics(rows: Iterable[Record], stat: str) -> None:
    """One statistic of every metric, a row per measured cell."""
    from effillm_server.analysis.rows import COLUMN_TYPES, METRICS

    metrics = [name for name in (*METRICS, "itl_s") if f"{name}_{stat}" in COLUMN_TYPES]
    rows = [row for row in rows if row["state"] == "measured"]
    axes = shown_axes(rows, list(AXES))
    print_table(
        (*(AXES[axis] for axis in axes), *(f">{name} {stat}" for name in metrics)),
        (
            (*(axis_value(row, axis) for axis in axes), *(value(name, row.get(f"{name}_{stat}")) for name in metrics))
            for row in rows
        ),
        empty="no results yet",
    )


def in_order(rows: Sequence[dict[str, Any]], column: str, *, descending: bool) -> list[dict[str, Any]]:
    """Rows by a column, or by the mean of a metric; rows without a value come last. Raises BadInput for an unknown one."""
    from effillm_server.analysis.rows import COLUMNS

    spellings = (column, f"{column}_mean", f"{column}_tok_s_mean", f"{column}_s_mean")
    name = next((spelling for spelling in spellings if spelling in COLUMNS), None)
    if name is None:
        near = difflib.get_close_matches(column, COLUMNS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise BadInput(
            f"no column {column!r} to sort by; {hint}`effillm results --format json` has them all", field="sort"
        )
    having = [row for row in rows if row.get(name) is not None]
    having.sort(key=lambda row: row[name], reverse=descending)
    return having + [row for row in rows if row.get(name) is None]


def shown_axes(entries: Sequence[Record], among: Sequence[str]) -> list[str]:
    """Axes worth a column: the usual ones, and those on which the entries differ."""
    return [axis for axis in among if axis in ALWAYS or len({repr(entry.get(axis)) for entry in entries}) > 1]


def axis_value(entry: Record, axis: str) -> Any:
    return model(entry[axis]) if axis == "model" else entry.get(axis)


def value(metric: str, number: Any) -> str:
    """A number in the unit of its metric, blank where there is none."""
    if number is None:
        return ""
    if metric in SECONDS:
        return seconds_or_blank(number)
    return bytes_or_blank(number) if metric.endswith("_bytes") else f"{number:.4g}"


def words(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def tell(lines: Iterable[str], *, gap: bool = True) -> None:
    """Lines of text on stdout, as long as they are."""
    if gap:
        console().print("")
    for line in lines:
        console().print(plain(line), soft_wrap=True)
