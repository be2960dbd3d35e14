"""The report as one HTML file: no other file, no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantize_worker.contract import ModelFacts
from quantize_worker.planning.words import in_bytes, in_ms
from quantize_worker.report.classes import OUTCOMES, class_section
from quantize_worker.report.markup import NOTHING, badge, details, items, table, terms, text
from quantize_worker.report.record import ClassRecord, Record
from quantize_worker.report.style import STYLE


def page(record: Record) -> str:
    """The whole page.

    Args:
        record: what to show; all of its text is escaped.
    """
    title = f"Tailoring of {record.model}"
    body = "".join(
        [
            f"<h1>{text(title)}</h1>",
            f'<p class="soft">{text(_headline(record))}</p>',
            _notices(record),
            _overview(record.classes),
            *(class_section(record.facts, each) for each in record.classes),
            _model(record),
            _tools(record),
        ]
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _headline(record: Record) -> str:
    built = sum(each.outcome == "built" for each in record.classes)
    return (
        f"{built} of {len(record.classes)} classes have a build; looked at once, planned, built and measured in "
        f"{record.seconds:.1f} s."
    )


def _notices(record: Record) -> str:
    lines = []
    if record.facts.synthetic_samples:
        lines.append(
            f"{badge('unverified', 'warn')} There was no evaluation set: quality is measured on generated "
            "inputs and says little."
        )
    emulated = [each.target.name for each in record.classes if each.target.emulated]
    if emulated:
        lines.append(
            f"{badge('emulated', 'warn')} The CPU stood in for the accelerator of {text(', '.join(emulated))}: "
            "latency and memory are the CPU's."
        )
    return "".join(f'<section class="notice">{line}</section>' for line in lines)


def _overview(classes: Sequence[ClassRecord]) -> str:
    headings = ("Class", "Outcome", "Size", "Quality", "Floor", "Memory", "Latency", "Formats", "Reason")
    rows = table(headings, [_overview_row(each) for each in classes], figures=(2, 3, 4, 5, 6))
    return f"<section><h2>Classes</h2>{rows}</section>"


def _overview_row(each: ClassRecord) -> tuple[str, ...]:
    name = f'<a href="#{text(each.target.name)}">{text(each.target.name)}</a>'
    outcome = badge(*OUTCOMES[each.outcome])
    reason = f'<span class="reason">{text(each.reason)}</span>'
    floor, attempt = f"{each.target.quality_floor:g}", each.last
    if attempt is None or attempt.quality is None:
        return (
            name,
            outcome,
            NOTHING,
            NOTHING,
            floor,
            NOTHING,
            NOTHING,
            text(each.description or NOTHING),
            reason,
        )
    return (
        name,
        outcome,
        in_bytes(attempt.size_bytes),
        f"{attempt.quality.value:.4f}",
        floor,
        in_bytes(attempt.memory_bytes),
        in_ms(attempt.latency_ms),
        f'<span class="reason">{text(each.description)}</span>',
        reason,
    )


def _model(record: Record) -> str:
    facts = record.facts
    parts = [
        "<section><h2>Model</h2>",
        '<div class="columns"><div>',
        terms(_facts(facts)),
        "</div><div>",
        "<h3>What preparing it did</h3>" + (items(facts.prepared) or "<p>Nothing had to be done.</p>"),
        "</div></div>",
        _kept(facts),
        "</section>",
    ]
    return "".join(parts)


def _facts(facts: ModelFacts) -> Iterator[tuple[str, str]]:
    specs = (("Inputs", facts.inputs), ("Outputs", facts.outputs))
    for name, tensors in specs:
        yield name, "<br>".join(text(f"{each.name}: {each.dtype} {each.shape}") for each in tensors)
    yield "Opset", text(facts.opset)
    yield "Operators", text(", ".join(f"{count} {name}" for name, count in sorted(facts.operators.items())))
    yield "Parameters", f"{facts.parameters:,}"
    yield "Size", f"{in_bytes(facts.source_bytes)}, {in_bytes(facts.weight_bytes)} of it weights"
    yield (
        "FP32 here",
        f"{in_ms(facts.latency_p50_ms)} a sample on one thread, {in_bytes(facts.memory_bytes)} at the peak",
    )
    yield "Samples", _samples(facts)


def _samples(facts: ModelFacts) -> str:
    kind = "generated from the input description" if facts.synthetic_samples else "of the evaluation set"
    labels = " with labels" if facts.has_labels else ""
    accuracy = f"; accuracy {facts.accuracy:.4f}" if facts.accuracy is not None else ""
    return text(
        f"{facts.measured_samples or facts.samples} of {facts.samples} measured, {kind}{labels}{accuracy}"
    )


def _kept(facts: ModelFacts) -> str:
    if not facts.kept:
        return ""
    rows = [
        (f"<code>{text(node.name)}</code>", text(node.operator), text(node.reason)) for node in facts.kept
    ]
    return details(
        f"{len(rows)} nodes with weights stay as they are", table(("Node", "Operator", "Reason"), rows)
    )


def _tools(record: Record) -> str:
    versions = [(name, text(version)) for name, version in sorted(record.facts.tool_versions.items())]
    files = [
        (text(file.path), in_bytes(file.size_bytes), f"<code>{file.sha256}</code>") for file in record.source
    ]
    return (
        f"<section><h2>Tools and source</h2>{terms(versions)}<h3>Source files</h3>"
        f"{table(('File', 'Size', 'SHA-256'), files, figures=(1,))}</section>"
    )
