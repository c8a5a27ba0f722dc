"""The tables of the command line, each from what the API answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from effillm_server.cli import evidence, memory
from effillm_server.cli.render import (
    ago,
    bytes_or_blank,
    console,
    interval,
    is_narrow,
    plain,
    print_facts,
    print_table,
    say,
    seconds_or_blank,
)

Record = Mapping[str, Any]
Column = tuple[str, list[Any]]
DONE_STATES = ("measured", "infeasible", "failed", "cancelled")


def done(sweep: Record) -> int:
    """Jobs of a sweep that have come to an end."""
    return sum(sweep["counts"].get(state, 0) for state in DONE_STATES)


def tally(sweep: Record) -> str:
    """The states of a sweep's jobs in words: `9 measured, 3 infeasible`."""
    order = ("measured", "infeasible", "failed", "cancelled", "leased", "pending")
    words = {"leased": "running"}
    parts = [f"{count} {words.get(state, state)}" for state in order if (count := sweep["counts"].get(state, 0))]
    return ", ".join(parts) or "no jobs"


def sweeps(records: Iterable[Record]) -> None:
    """All sweeps, newest first."""
    print_table(
        ("sweep", "~name", "state", ">done", "~jobs", "created"),
        ((s["id"], s["name"], s["state"], f"{done(s)}/{s['total']}", tally(s), ago(s["created_at"])) for s in records),
        empty="no sweeps yet: submit one with `effillm submit FILE`",
    )


def configuration(cell: Record) -> str:
    """A cell of the matrix in one phrase."""
    sequence = f" s={cell['sequence_length']}" if cell.get("sequence_length") else ""
    workload = f" {cell['workload']}" if cell.get("workload", "synthetic") != "synthetic" else ""
    repeat = f" repeat {cell['repeat']}" if cell.get("repeat", 1) != 1 else ""
    return f"{cell['model']} {cell['quantization']} b={cell['batch_size']}{sequence}{workload}{repeat} on {cell['hardware']}"


def model(name: str) -> str:
    """A model's id, without its organisation where the terminal is narrow."""
    return name.rpartition("/")[2] if is_narrow() else name


def jobs(records: Iterable[Record]) -> None:
    """Jobs of a sweep in the order of its matrix."""
    print_table(
        (">job", "state", "~model", "quant", ">batch", ">seq", "hardware", "~device", "verdict", "~why"),
        (
            (
                j["id"], j["state"], model(j["cell"]["model"]), j["cell"]["quantization"], j["cell"]["batch_size"],
                j["cell"]["sequence_length"], j["cell"]["hardware"], j["device"], j["verdict"], why(j),
            )
            for j in records
        ),
        empty="no jobs in this state",
    )  # fmt: skip


def why(job: Record) -> str:
    """Reason and message of a job in one phrase."""
    parts = [part for part in (job.get("reason"), job.get("message")) if part]
    return ": ".join(parts)


def job(record: Record) -> None:
    """One job: where it is and why, and its attempts."""
    print_facts(
        {
            "job": record["id"], "sweep": record["sweep"], "cell": configuration(record["cell"]),
            "engine": f"{record['cell']['engine']}, weights {record['cell']['weights']}, computes in {record['cell']['dtype']}",
            "state": record["state"], "explanation": record.get("explanation"), "verdict": record.get("verdict"),
            "device": record.get("device"), "implied by": record.get("implied_by"), "faults": record.get("faults") or None,
            "measured again": record.get("remeasures") or None, "finished": ago(record.get("finished_at")),
        }
    )  # fmt: skip
    evidence.show(record)
    memory.show(record)
    attempts: Sequence[Record] = record.get("attempts") or ()
    if not attempts:
        return
    console().print("")
    print_table(
        (">attempt", "~device", "started", "outcome", "~message"),
        ((a["fence"], a["device"], ago(a["started_at"]), a["outcome"] or "running", why(a)) for a in attempts),
        empty="",
    )
    tail = attempts[-1].get("log_tail") or ()
    if tail and record["state"] != "measured":
        console().print("\nlast lines of its log:")
        for line in tail:
            console().print(f"  {plain(line)}", soft_wrap=True)


def results(rows: Iterable[Record]) -> None:
    """Result rows: what was measured, how well it is known, and what could not run."""
    rows = list(rows)
    columns = _result_columns(rows)
    if is_narrow():
        shared, columns = _shared(columns)
        if shared:
            say("every row: " + ", ".join(shared))
    print_table(
        [name for name, _ in columns], zip(*(values for _, values in columns), strict=True), empty="no results yet"
    )
    doubtful = sum(row.get("verdict") == "invalid" for row in rows)
    if doubtful:
        say(
            f"{doubtful} of {len(rows)} rows were measured under bad conditions each time and are invalid: "
            "let the machine do nothing else and measure them again"
        )


def _result_columns(rows: Sequence[Record]) -> list[Column]:
    """What is shown of result rows, column by column; what none of them has is left out."""
    has_vram = any(row.get("vram_peak_bytes") is not None for row in rows)
    has_hardware = len({row.get("hardware") for row in rows}) > 1
    has_quality = any(row.get("perplexity") is not None for row in rows)
    has_partner = not is_narrow() and any(row.get("quantization_efficiency") is not None for row in rows)
    perplexity_and_rise = [quality(row) for row in rows]

    def column(name: str, value: Callable[[Record], Any]) -> Column:
        return name, [value(row) for row in rows]

    columns = [
        column("state", lambda row: row["state"]), column("~model", lambda row: model(row["model"])),
        column("quant", lambda row: row["quantization"]), column(">batch", lambda row: row["batch_size"]),
        column(">seq", lambda row: row["sequence_length"]), column(">tok/s ± CI", lambda row: interval(row, "throughput_tok_s")),
        column(">TTFT", lambda row: seconds_or_blank(row.get("ttft_s_mean"))),
        column(">RAM", lambda row: bytes_or_blank(row.get("ram_peak_bytes"))),
    ]  # fmt: skip
    if has_vram:
        columns.append(column(">VRAM", lambda row: bytes_or_blank(row.get("vram_peak_bytes"))))
    if has_partner:
        columns.append(column(">speed kept", speed_kept))
    if has_quality:
        columns += [
            (">perplexity", [each[0] for each in perplexity_and_rise]),
            (">rise", [each[1] for each in perplexity_and_rise]),
        ]
    if has_hardware:
        columns.append(column("hardware", lambda row: row.get("hardware")))
    return [*columns, column("~verdict", verdict)]


def _shared(columns: Sequence[Column]) -> tuple[list[str], list[Column]]:
    """What all rows have in common, in words, and the columns in which they differ; a single row is all columns."""
    may_go = ("state", "~model", ">batch", ">seq")
    gone = {name: values[0] for name, values in columns if name in may_go and len(values) > 1 and len(set(values)) == 1}
    said = [str(value) if name in ("state", "~model") else f"{name.strip('>')} {value}" for name, value in gone.items()]
    return said, [column for column in columns if column[0] not in gone]


def speed_kept(row: Record) -> str:
    """Throughput as a multiple of the unquantized partner's, blank where there is none."""
    kept = row.get("quantization_efficiency")
    return "" if kept is None else f"{kept:.2f} x {row['unquantized_partner']}"


def quality(row: Record) -> list[str]:
    """Perplexity and its rise over the unquantized model's, blank where it was not measured."""
    perplexity, rise = row.get("perplexity"), row.get("quality_loss")
    return ["" if perplexity is None else f"{perplexity:.2f}", "" if rise is None else f"{rise:+.1%}"]


def verdict(row: Record) -> str:
    """The verdict on a row with the codes of what speaks against it, or why there is no measurement."""
    if row.get("verdict") is None:
        return str(row.get("reason") or "")
    codes = ", ".join(reason.partition(":")[0] for reason in row.get("verdict_reasons") or ())
    return f"{row['verdict']}{': ' if codes else ''}{codes}{', simulated' if row.get('simulated') else ''}"


def dialect(lines: Iterable[Record]) -> None:
    """Numbers in the words of another tool, each with what it means there."""
    print_table(
        (">job", "~model", "quant", ">batch", "name", ">value", "unit", "~definition"),
        (
            (
                number["job"], model(number["model"]), number["quantization"], number["batch_size"], number["name"],
                "" if number["value"] is None else f"{number['value']:.6g}", number["unit"], number["definition"],
            )
            for number in lines
        ),
        empty="nothing has been measured yet",
    )  # fmt: skip


def devices(records: Iterable[Record]) -> None:
    """The lab: every device, what it does, why it does not."""
    print_table(
        ("device", "class", "~node", "state", ">memory", "doing", "last seen", "~why"),
        (
            (
                d["id"], d["hardware_class"] + (" (declared)" if d["declared"] else ""), d["node"], d["state"],
                bytes_or_blank(d["memory_bytes"]), f"job {d['job']}" if d["job"] else "", ago(d["last_seen"]), d["reason"],
            )
            for d in records
        ),
        empty="no devices yet: `effillm up` offers this box, `effillm node --address HEAD` joins another",
    )  # fmt: skip


def frontier(records: Iterable[Record]) -> None:
    """The largest batch and sequence that ran, per model, quantization and device class."""
    print_table(
        ("~model", "quant", "hardware", ">seq", ">gen", ">largest batch", ">cannot", "~why"),
        (
            (
                model(f["model"]), f["quantization"], f["hardware"], f["sequence_length"], f["generate_tokens"],
                f["largest_batch_size"] or "none", f["smallest_infeasible_batch_size"], f["reason"],
            )
            for f in records
        ),
        empty="nothing has been measured yet",
    )  # fmt: skip


def preview(answer: Record) -> None:
    """What a sweep would be, with the first cells that cannot run."""
    infeasible = answer["infeasible"]
    print_facts(
        {
            "jobs": str(answer["total"]), "would be measured": str(answer["pending"]), "left out by exclude": answer["excluded"] or None,
            "cannot run": ", ".join(f"{count} {reason}" for reason, count in infeasible.items()),
            "no device now for": ", ".join(answer["missing_hardware"]),
        }
    )  # fmt: skip
    examples: Sequence[Record] = answer["examples"]
    if examples:
        console().print("\nthe first that cannot run:")
        for example in examples:
            console().print(f"  {plain(configuration(example['cell']))}: {plain(example['message'])}", soft_wrap=True)
