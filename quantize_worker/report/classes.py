"""The report's section on one class."""

from __future__ import annotations

from collections.abc import Iterator

from quantize_worker.contract import ModelFacts, QualityReport, TailorPlan
from quantize_worker.engine import Attempt
from quantize_worker.plan import describe
from quantize_worker.planning.words import in_bytes, in_ms, in_mwh
from quantize_worker.report import charts
from quantize_worker.report.charts import Mark
from quantize_worker.report.markup import NOTHING, badge, details, items, table, terms, text
from quantize_worker.report.record import ClassRecord

OUTCOMES = {"built": ("built", "good"), "impossible": ("impossible", "bad"), "failed": ("failed", "bad")}
_VERDICTS = {"accepted": "good", "rejected": "bad", "failed": "bad"}
_NO_BOUND = "nothing: no change that the class accepts would be better"


def class_section(facts: ModelFacts, each: ClassRecord) -> str:
    """Everything about one class."""
    target = each.target
    badges = badge(*OUTCOMES[each.outcome]) + (badge("emulated", "warn") if target.emulated else "")
    badges += badge("unverified", "warn") if each.unverified and each.attempts else ""
    parts = [
        f'<section id="{text(target.name)}"><h2>{text(target.name)} {badges}</h2>',
        f"<p>{text(each.reason)}</p>",
        '<div class="columns"><div>',
        terms(_figures(each)),
        _formats(each),
        "</div><div>",
        _front(each),
        "</div></div>",
        _comparison(each),
        _why(each),
        _attempts(facts, each),
        _choices(each),
        _files(each),
        "</section>",
    ]
    return "".join(parts)


def quality_words(quality: QualityReport) -> str:
    """Quality with its interval, where the gate stopped early, and what it was measured on."""
    interval = ""
    if quality.interval is not None and quality.confidence is not None:
        low, high = quality.interval
        interval = f", {low:.4f} to {high:.4f} at {100 * quality.confidence:g} %"
    accuracy = ""
    if quality.accuracy is not None and quality.source_accuracy is not None:
        accuracy = f"; accuracy {quality.accuracy:.4f}, FP32 {quality.source_accuracy:.4f}"
    return f"{quality.value:.4f} ({quality.metric}{interval}, {quality.samples} samples{accuracy})"


def _figures(each: ClassRecord) -> Iterator[tuple[str, str]]:
    target, attempt = each.target, each.last
    yield "Accelerator", text(f"{target.accelerator}, {target.execution_provider}")
    yield "Accepts", text(", ".join(target.precisions))
    yield "Objective", text(target.objective)
    limits = [f"memory {in_bytes(target.memory_bytes)}", f"storage {in_bytes(target.storage_bytes)}"]
    limits += [f"latency {in_ms(target.latency_ms or 0)}"] * (target.latency_ms is not None)
    limits += [f"energy {in_mwh(target.energy_mwh or 0)}"] * (target.energy_mwh is not None)
    yield "Budgets", text(", ".join(limits))
    yield "Quality floor", f"{target.quality_floor:g}"
    if attempt is not None and attempt.quality is not None:
        yield "Quality", text(quality_words(attempt.quality))
        yield "Size", text(f"{in_bytes(attempt.size_bytes)} ({attempt.size_bytes:,} bytes)")
        yield "Memory, peak", text(in_bytes(attempt.memory_bytes))
        yield "Latency", text(f"{in_ms(attempt.latency_ms)} a sample here, on {attempt.provider}")
    if each.plan is not None:
        yield "Energy, estimated", text(f"{in_mwh(each.plan.predicted_energy_mwh)} an inference")
        yield "Held back by", text(each.plan.bound or _NO_BOUND)
    if each.nearest is not None:
        yield "What would do", text(each.nearest.reason)


def _formats(each: ClassRecord) -> str:
    if not each.formats:
        return ""
    return f"<h3>Formats, by share of the weights</h3>{charts.stacked(each.formats)}{charts.legend(each.formats)}"


def _front(each: ClassRecord) -> str:
    drawn = charts.front(
        each.pareto,
        list(_marks(each)),
        floor=each.target.quality_floor,
        storage_bytes=each.target.storage_bytes,
    )
    if not drawn:
        return ""
    note = "Both axes are logarithmic, in size and in loss. Line: the best predicted at each size. Dot: the build; ring: its plan; cross: measured and rejected."
    return f'<h3>Quality over size</h3>{drawn}<p class="soft"><small>{note}</small></p>'


def _marks(each: ClassRecord) -> Iterator[Mark]:
    if each.plan is not None:
        plan = each.plan
        title = f"plan: {in_bytes(plan.predicted_size_bytes)}, quality {plan.predicted_quality:.4f}"
        yield Mark("planned", plan.predicted_size_bytes, plan.predicted_quality, title)
    for attempt in each.attempts:
        if attempt.quality is not None:
            title = f"{attempt.verdict}: {in_bytes(attempt.size_bytes)}, quality {attempt.quality.value:.4f}"
            yield Mark(attempt.verdict, attempt.size_bytes, attempt.quality.value, title)


def _comparison(each: ClassRecord) -> str:
    attempt = each.last
    if attempt is None or attempt.quality is None:
        return ""
    plan, quality = attempt.plan, attempt.quality
    lost = (1.0 - plan.predicted_cosine, 1.0 - quality.cosine)
    pairs = [
        ("Size", plan.predicted_size_bytes, attempt.size_bytes, in_bytes),
        ("1 - cosine", *lost, "{:.2g}".format),
        ("Memory", plan.predicted_memory_bytes, attempt.memory_bytes, in_bytes),
        ("Latency", plan.predicted_latency_ms, attempt.latency_ms, in_ms),
    ]
    rows = [(name, write(said), write(found)) for name, said, found, write in pairs]
    rows.insert(1, ("Quality", f"{plan.predicted_quality:.4f}", f"{quality.value:.4f}"))
    chart = charts.ratios([(name, found / said) for name, said, found, _ in pairs if said > 0])
    return (
        "<h3>Predicted against measured</h3>"
        f'<div class="columns"><div>{table(("Figure", "Predicted", "Measured here"), rows, figures=(1, 2))}</div>'
        f"<div>{chart}</div></div>"
    )


def _why(each: ClassRecord) -> str:
    reasons = items(each.plan.reasons) if each.plan is not None else ""
    unused = items(one.reason for one in each.unused)
    parts = f"<h3>Why this plan</h3>{reasons}" if reasons else ""
    return parts + (f"<h3>Accepted by the class, but not used</h3>{unused}" if unused else "")


def _attempts(facts: ModelFacts, each: ClassRecord) -> str:
    if not each.attempts:
        return ""
    headings = ("Build", "Formats", "Verdict", "Size", "Quality", "Latency", "Took", "Reason")
    rows = [_attempt(facts, number, one) for number, one in enumerate(each.attempts, start=1)]
    return f"<h3>What was built and measured</h3>{table(headings, rows, figures=(3, 4, 5, 6))}"


def _attempt(facts: ModelFacts, number: int, attempt: Attempt) -> tuple[str, ...]:
    built = attempt.quality is not None
    quality = f"{attempt.quality.value:.4f}" if attempt.quality is not None else NOTHING
    return (
        str(number),
        text(describe(attempt.plan.recipe, facts)),
        badge(attempt.verdict, _VERDICTS[attempt.verdict]),
        in_bytes(attempt.size_bytes) if built else NOTHING,
        quality,
        in_ms(attempt.latency_ms) if built else NOTHING,
        f"{attempt.seconds:.1f} s",
        f'<span class="reason">{text(attempt.reason)}</span>',
    )


def _choices(each: ClassRecord) -> str:
    plan: TailorPlan | None = each.plan
    if plan is None or not plan.choices:
        return ""
    rows = [
        (
            f"<code>{text(choice.layer)}</code>",
            text(choice.operator),
            text(choice.format),
            in_bytes(choice.size_bytes),
            f"{choice.loss:.2g}",
            f'<span class="reason">{text(choice.reason)}</span>',
        )
        for choice in plan.choices
    ]
    headings = ("Layer", "Operator", "Format", "Size", "Loss", "Why")
    return details(f"Layer by layer ({len(rows)})", table(headings, rows, figures=(3, 4)))


def _files(each: ClassRecord) -> str:
    if not each.files:
        return ""
    rows = [
        (text(file.path), in_bytes(file.size_bytes), f"<code>{text(file.sha256)}</code>")
        for file in each.files
    ]
    return details(f"Files ({len(rows)})", table(("File", "Size", "SHA-256"), rows, figures=(1,)))
