"""Judge a set of answers: the one call of the stage, with every backend behind it."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.judge.answers import Entry, check_answers
from gptmill.judge.backends import open_server
from gptmill.judge.controls import describe, draw_controls
from gptmill.judge.examine import Examiner, Question, Verdict
from gptmill.judge.reference import reference_scores
from gptmill.judge.rubric import RUBRICS, Rubric
from gptmill.judge.statistics import bootstrap_interval, spearman
from gptmill.params import Judge


def judge(
    responses: Sequence[Entry], parameters: Judge, *, state: Path
) -> tuple[dict[str, Any], list[Entry]]:
    """Score answers from 0 to 100.

    The backend `reference` needs no judge: an answer's score is its chrF. With the others a
    language model scores; an empty answer gets 0 unasked, as the book has it.

    Args:
        responses: entries with `instruction`, `output`, `response`, perhaps `input` and `family`.
        state: folder for the judge's replies, kept between runs.

    Returns:
        (metrics, scores). Metrics are flat: `score/mean`, `score/low`, `score/high` (95% bootstrap
        interval), `coverage`, `backend`, `family/<name>/score`, reference metrics and, with a
        judge, who judged, agreement, length correlation and controls; None where undefined.
        Scores are the entries with `score` (None if unscored), reference metrics and `faults`.

    Raises:
        UserError: an entry lacks a text; the server or model is not there; coverage is below
            `minimum_coverage`; the judge fails its controls and `on_failed_controls` is `fail`.
    """
    check_answers(responses)
    scores = [{**entry, **reference_scores(entry), "faults": []} for entry in responses]
    if parameters.backend == "reference":
        for score in scores:
            score["score"] = score["chrf"]
        return {"backend": "reference", **_summary(scores, parameters)}, scores
    server = open_server(parameters)
    examiner = Examiner(server, state, parameters.seed, parameters.retries)
    rubric = RUBRICS[parameters.rubric]
    controls = _examine(scores, examiner, rubric, parameters)
    _tell_verdict(controls, parameters)
    metrics = {
        "backend": parameters.backend,
        "judge/model": parameters.model,
        "judge/digest": server.identity["digest"],
        "judge/version": server.version,
        "judge/rubric": rubric.name,
        **_summary(scores, parameters),
        **_agreement(scores),
        **controls,
    }
    return metrics, scores


def _examine(
    scores: list[Entry], examiner: Examiner, rubric: Rubric, parameters: Judge
) -> dict[str, Any]:
    """Fill in `score` and `faults` of every entry; the controls' metrics."""
    asked = [place for place, entry in enumerate(scores) if entry["response"].strip()]
    controls = draw_controls(scores, parameters.control_samples, parameters.seed)
    questions = [
        Question(rubric.prompt(scores[i], scores[i]["response"]), rubric.parse) for i in asked
    ]
    verdicts = examiner.examine(
        questions + controls.questions(scores, rubric), parameters.requests_in_flight
    )
    for entry in scores:
        entry["score"] = 0.0  # an empty answer; the others follow
    for place, verdict in zip(asked, verdicts):
        scores[place]["score"] = None if verdict.value is None else float(verdict.value)
        scores[place]["faults"] = list(verdict.faults)
    _check_coverage(verdicts[: len(asked)], len(scores), parameters.minimum_coverage)
    values = [entry["score"] for entry in scores]
    return controls.metrics(verdicts[len(asked) :], values, parameters.minimum_coverage)


def _tell_verdict(controls: dict[str, Any], parameters: Judge) -> None:
    verdict = describe(controls)
    if parameters.on_failed_controls == "fail" and not controls["controls/passed"]:
        raise UserError(
            f"{verdict}. Its scores mean nothing: try another judge.model, or set "
            "judge.on_failed_controls to warn to keep them; replies so far are kept"
        )
    print(verdict, file=sys.stderr)


def _check_coverage(verdicts: Sequence[Verdict[int]], count: int, minimum: float) -> None:
    unscored = [verdict for verdict in verdicts if verdict.value is None]
    scored = count - len(unscored)
    if scored and scored >= minimum * count:
        return
    kinds = Counter(verdict.faults[-1].split(":")[0] for verdict in unscored)
    reasons = ", ".join(f"{number} × {kind}" for kind, number in kinds.most_common())
    raise UserError(
        f"the judge scored {scored} of {count} answers, and judge.minimum_coverage is {minimum:g} "
        f"of them. Unscored: {reasons}; for example {unscored[0].faults[-1]}. Try another "
        "judge.model, or raise judge.retries or judge.timeout; replies so far are kept"
    )


def _summary(scores: Sequence[Entry], parameters: Judge) -> dict[str, Any]:
    """Mean with interval, coverage, means per family, and the reference metrics."""
    known = [entry for entry in scores if entry["score"] is not None]
    values = [entry["score"] for entry in known]
    low, high = bootstrap_interval(values, parameters.bootstrap_samples, parameters.seed)
    families: dict[str, list[float]] = {}
    for entry in known:
        if "family" in entry:
            families.setdefault(entry["family"], []).append(entry["score"])
    return {
        "score/mean": _mean(values),
        "score/low": low,
        "score/high": high,
        "coverage": len(known) / len(scores),
        "entries": len(scores),
        "empty": sum(not entry["response"].strip() for entry in scores),
        **{f"reference/{name}": _mean([e[name] for e in scores]) for name in _REFERENCE_METRICS},
        **{f"family/{name}/score": _mean(families[name]) for name in sorted(families)},
    }


_REFERENCE_METRICS = ("exact_match", "chrf", "rouge_l")


def _agreement(scores: Sequence[Entry]) -> dict[str, float | None]:
    """Spearman between the judge's score and what is known without a judge, length among it."""
    known = [entry for entry in scores if entry["score"] is not None]
    values = [entry["score"] for entry in known]
    correlations = {
        f"agreement/{name}": spearman(values, [entry[name] for entry in known])
        for name in _REFERENCE_METRICS
    }
    lengths = [len(entry["response"]) for entry in known]
    return correlations | {"length_correlation": spearman(values, lengths)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
