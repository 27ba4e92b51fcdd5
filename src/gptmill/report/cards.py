"""The figures at the top: each against what it can be compared with, or said to be absent."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gptmill.likelihood import perplexity
from gptmill.report.charts import figure
from gptmill.report.graph import duration
from gptmill.report.read import Results
from gptmill.shapes import read_json_as

OVER_FLOOR = 0.10  # the project's own targets, as the README states them
BELOW_BEST = 0.02
EXACT = 0.80


@dataclass(frozen=True)
class Bar:
    """A named value as a share of the widest, for figures that belong together."""

    name: str
    value: str
    share: float
    color: str


@dataclass(frozen=True)
class Card:
    """`state` is good, short or plain: whether a stated target is met, missed, or there is none."""

    title: str
    value: str
    note: str
    state: str = "plain"
    bars: list[Bar] = field(default_factory=list)


Maker = tuple[str, str, Callable[[Results], Card | None]]


def cards(results: Results) -> list[Card]:
    """All cards; one that misses its metrics says which file would hold them."""
    return figures(results) + _made(
        results,
        [
            ("Registry", ".state/registry.json", _registry),
            ("Cost", "timings/*.json", _cost),
        ],
    )


def figures(results: Results) -> list[Card]:
    """The cards that are the same for the same results: no wall times, no registry."""
    makers: list[Maker] = [
        ("Language model", "metrics/pretrain.json", _language_model),
        ("Classifier", "metrics/finetune_classifier.json", _classifier),
        ("Instructions", "metrics/respond.json", _instructions),
        ("Judge", "metrics/judge.json", _judge),
        ("ONNX parity", "metrics/export_onnx.json", _parity),
        ("Quantized models", "metrics/export_onnx.json", _quantized),
    ]
    return _made(results, makers)


def _made(results: Results, makers: list[Maker]) -> list[Card]:
    return [
        make(results) or Card(title, "absent", f"{path} is not there: its stage has not run")
        for title, path, make in makers
    ]


def timing_rows(results: Results) -> list[dict[str, str]]:
    """Wall time, peak memory and throughput of each stage, the longest first."""
    rows = []
    for stage, timing in sorted(results.timings.items(), key=lambda item: -item[1]["seconds"]):
        rates = [
            f"{figure(value)} {name.replace('_per_second', '').replace('_', ' ')}/s"
            for name, value in timing.items()
            if name.endswith("_per_second")
        ]
        if "mfu" in timing:
            rates.append(f"{timing['mfu']:.0%} of the machine's FLOP/s")
        memory = f"{timing['peak_memory_bytes'] / 2**20:,.0f} MiB"
        rows.append(
            {
                "stage": stage,
                "time": duration(timing["seconds"]),
                "memory": memory,
                "rate": ", ".join(rates) or "–",
            }
        )
    return rows


def _language_model(results: Results) -> Card | None:
    loss = results.metric("pretrain", "validation/loss")
    if loss is None:
        return None
    reached = results.metric("pretrain", "validation/perplexity")
    bits = results.metric("pretrain", "validation/bits_per_byte")
    floor = results.metric("pretrain", "validation/floor_loss")
    note = f"validation perplexity; loss {loss:.3f} nats a token"
    unknown = results.metric("pretrain", "validation/unknown/share")
    note += f", {unknown:.1%} of them unknown" if bits is None else f", {bits:.3f} bits a byte"
    if floor is None:
        return Card("Language model", f"{reached:.2f}", f"{note}; no floor is known for this text")
    over = loss / floor - 1
    bars = [
        _bar("model", loss, loss, "c1", f"{loss:.3f}"),
        _bar("floor", floor, loss, "c4", f"{floor:.3f}"),
    ]
    note += f". The loss is {over:.1%} over the entropy of the source (perplexity "
    note += f"{perplexity(floor):.2f}), which no model beats; the target is 10%"
    state = "good" if over <= OVER_FLOOR else "short"
    return Card("Language model", f"{reached:.2f}", note, state, bars)


def _classifier(results: Results) -> Card | None:
    accuracy = results.metric("finetune_classifier", "test/accuracy")
    if accuracy is None:
        return None
    baseline = results.metric("finetune_classifier", "baseline/test/accuracy")
    best = results.metric("finetune_classifier", "test/best_possible_accuracy")
    f1 = results.metric("finetune_classifier", "test/macro_f1")
    bars = [_bar("GPT-2", accuracy, 1, "c1", f"{accuracy:.1%}")]
    if baseline is not None:
        bars.append(_bar("TF-IDF", baseline, 1, "c2", f"{baseline:.1%}"))
    error = results.metric("finetune_classifier", "test/expected_calibration_error")
    note, state = f"test accuracy; macro-F1 {f1:.3f}", "plain"
    if error is not None:
        note += f", calibration error {error:.3f}"
    if best is not None:
        bars.append(_bar("best possible", best, 1, "c4", f"{best:.1%}"))
        state = "good" if accuracy >= best - BELOW_BEST else "short"
        note += ". The best possible is the accuracy of the exact posterior; the target is to "
        note += "come within 2 points"
    return Card("Classifier", f"{accuracy:.1%}", note, state, bars)


def _instructions(results: Results) -> Card | None:
    exact = results.metric("respond", "test/exact_match")
    if exact is None:
        return None
    chrf, stops = results.metric("respond", "test/chrf"), results.metric("respond", "stop_rate")
    note = f"exact match on held-out instructions; chrF {chrf:.1f}, {stops:.0%} of the answers "
    note += "end by themselves"
    if results.metric("pretrain", "validation/floor_loss") is None:
        return Card("Instructions", f"{exact:.1%}", f"{note}. Open answers seldom match exactly")
    state = "good" if exact >= EXACT else "short"
    return Card("Instructions", f"{exact:.1%}", f"{note}; the target is 80%", state)


def _judge(results: Results) -> Card | None:
    found: dict[str, Any] = results.metrics.get("judge", {})
    if found.get("score/mean") is None:
        return None
    interval = f"95% interval {found['score/low']:.1f} to {found['score/high']:.1f}"
    covered = f"{found['coverage']:.0%} of the answers scored"
    value = f"{found['score/mean']:.1f}"
    if found["backend"] == "reference":
        note = "mean chrF against the reference answers: no language model judged"
        return Card("Score", value, f"{note} (backend reference); {interval}, {covered}")
    passed = found.get("controls/passed")
    note = f"mean of 0–100 by {found.get('judge/model', 'a model')} through {found['backend']}; "
    note += f"{interval}, {covered}"
    if passed is not None:
        note += f". The judge {'passed' if passed else 'FAILED'} its controls"
    return Card("Judge", value, note, "short" if passed is False else "plain")


def _parity(results: Results) -> Card | None:
    found = results.metrics.get("export_onnx", {})
    worst = {
        name.split("/")[0]: value
        for name, value in found.items()
        if name.endswith("/max_abs_difference") and f"{name.split('/')[0]}/published" not in found
    }
    if not worst:
        return None
    tolerance = results.parameters.get("export_onnx", {}).get("tolerance")
    agreements = [found[key] for name in worst if (key := f"{name}/greedy_agreement") in found]
    widest = max(worst.values())
    bars = [
        _bar(name.replace("_", " "), value, widest or 1, "c1", f"{value:.1e}")
        for name, value in worst.items()
    ]
    note = "largest difference of a logit from PyTorch's"
    if agreements:
        note += f"; {min(agreements):.0%} of greedy tokens agree or more"
    if tolerance is None:
        return Card("ONNX parity", f"{widest:.1e}", note, "plain", bars)
    state = "good" if widest <= tolerance else "short"
    return Card("ONNX parity", f"{widest:.1e}", f"{note}; {tolerance:g} is allowed", state, bars)


def _quantized(results: Results) -> Card | None:
    found = results.metrics.get("export_onnx", {})
    variants = {
        name.removesuffix("/published"): value
        for name, value in found.items()
        if name.endswith("/published")
    }
    if not variants:
        return None
    losses = {name: _loss(found, name) for name in variants}
    widest = max(abs(loss) for loss, _ in losses.values()) or 1
    bars = [
        _bar(
            name.replace("_", " ") + ("" if variants[name] else ", not published"),
            abs(loss),
            widest,
            "c1" if variants[name] else "c2",
            said,
        )
        for name, (loss, said) in losses.items()
    ]
    note = "published: smaller weights within the budget of params.yaml; the bars are what each "
    note += "loses in perplexity or accuracy on held-out texts"
    return Card("Quantized models", f"{sum(variants.values())} of {len(variants)}", note, bars=bars)


def _loss(found: dict[str, Any], name: str) -> tuple[float, str]:
    """What a variant loses, as a share, and in words."""
    if f"{name}/accuracy_loss" in found:
        loss = found[f"{name}/accuracy_loss"]
        return loss, f"{-100 * loss:+.2f} points"
    loss = found[f"{name}/perplexity_increase"]
    return loss, f"{loss:+.2%}"


def _registry(results: Results) -> Card | None:
    """What MLflow's registry made of the models, and why."""
    path = results.root / ".state/registry.json"
    decisions = read_json_as(path, dict[str, dict[str, Any]]) if path.exists() else {}
    if not decisions:
        return None
    champions = [d for d in decisions.values() if d["champion"] == d["version"]]
    said = [
        f"{name}: version {found['version']}, champion {found['champion']} ({found['why']})"
        for name, found in decisions.items()
    ]
    value = f"{len(champions)} of {len(decisions)} champions"
    return Card("Registry", value, f"in MLflow's registry. {'; '.join(said)}")


def _cost(results: Results) -> Card | None:
    if not results.timings:
        return None
    seconds = sum(timing["seconds"] for timing in results.timings.values())
    peak = max(timing["peak_memory_bytes"] for timing in results.timings.values())
    longest = sorted(results.timings.items(), key=lambda item: -item[1]["seconds"])[:3]
    top = longest[0][1]["seconds"] or 1
    bars = [
        _bar(name.replace("_", " "), t["seconds"], top, "c1", duration(t["seconds"]))
        for name, t in longest
    ]
    note = f"wall time of {len(results.timings)} stages; at most {peak / 2**20:,.0f} MiB of memory"
    return Card("Cost", duration(seconds), note, "plain", bars)


def _bar(name: str, value: float, widest: float, color: str, shown: str) -> Bar:
    return Bar(name, shown, max(0.0, min(1.0, value / widest)), color)
