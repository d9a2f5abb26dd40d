"""The numbers of `bench serve`: percentiles, rates and goodput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atb_models.clients.load import Outcome

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class LatencyTargets:
    """Limits of a good request: milliseconds until its first token, and on average for each further one."""

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def hold(self, outcome: Outcome) -> bool:
        within = [(outcome.ttft_s, self.ttft_ms), (outcome.token_s, self.itl_ms)]
        return all(limit is None or value is None or value * 1e3 <= limit for value, limit in within)


def summary(outcomes: Sequence[Outcome], limits: LatencyTargets) -> dict[str, Any]:
    """All numbers of a run. Times are in ms, except duration_s. Rates count complete answers, over the whole run."""
    whole = [outcome for outcome in outcomes if outcome.error is None]
    start = min(outcome.due_s for outcome in outcomes)
    seconds = max((outcome.last_s for outcome in whole), default=start) - start
    tokens, prompt = sum(o.tokens for o in whole), sum(o.prompt_tokens for o in whole)
    found: dict[str, Any] = {
        "requests": len(outcomes),
        "completed": len(whole),
        "failed": len(outcomes) - len(whole),
        "errors": dict(Counter(o.error for o in outcomes if o.error is not None).most_common()),
        "duration_s": seconds,
        "prompt_tokens": prompt,
        "output_tokens": tokens,
        "requests_per_s": _rate(len(whole), seconds),
        "output_tokens_per_s": _rate(tokens, seconds),
        "total_tokens_per_s": _rate(prompt + tokens, seconds),
        "mean_concurrency": _rate(sum(o.e2e_s for o in whole), seconds),
        "ttft_ms": _spread([o.ttft_s for o in whole]),
        "itl_ms": _spread([gap for o in whole for gap in o.gaps_s]),
        "tpot_ms": _spread([o.token_s for o in whole]),
        "e2e_ms": _spread([o.e2e_s for o in whole]),
        "late_ms": _spread([o.sent_s - o.due_s for o in outcomes]),
        "requests_without_usage": sum(not o.is_counted for o in whole),
    }
    if limits != LatencyTargets():
        good = sum(map(limits.hold, whole))
        found["goodput"] = {
            "slo_ttft_ms": limits.ttft_ms,
            "slo_itl_ms": limits.itl_ms,
            "good": good,
            "requests_per_s": _rate(good, seconds),
            "share": good / len(outcomes),
        }
    return found


def table(found: dict[str, Any]) -> str:
    """The summary as a table."""
    lines = [
        f"{found['completed']} of {found['requests']} requests completed in {found['duration_s']:.2f} s,"
        f" {found['mean_concurrency']:.1f} at once on average",
        f"{found['requests_per_s']:.2f} requests/s, {found['output_tokens_per_s']:.1f} output tokens/s,"
        f" {found['total_tokens_per_s']:.1f} tokens/s with the prompts",
    ]
    if goodput := found.get("goodput"):
        lines.append(
            f"goodput {goodput['requests_per_s']:.2f} requests/s: {goodput['good']} of {found['requests']} requests"
            " within the limits"
        )
    columns = ["mean", *(f"p{p}" for p in PERCENTILES), "max"]
    lines += ["", f"{'ms':26}" + "".join(f"{name:>10}" for name in columns)]
    for name, title in ROWS.items():
        cells = "".join(f"{found[name][column]:10.1f}" for column in columns) if found[name] else f"{'-':>10}"
        lines.append(f"{title:26}{cells}")
    lines += [f"{count} x error: {error}" for error, count in found["errors"].items()]
    if found["requests_without_usage"]:
        lines.append(
            f"{found['requests_without_usage']} answers came without usage: their tokens are counted as events"
        )
    return "\n".join(lines)


ROWS = {
    "ttft_ms": "time to first token",
    "itl_ms": "between two events",
    "tpot_ms": "per token after the first",
    "e2e_ms": "end to end",
    "late_ms": "sent later than due",
}


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile of sorted values, linear between the two nearest, as by numpy's default."""
    place = (len(values) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def _spread(seconds: Sequence[float | None]) -> dict[str, float] | None:
    """Mean, percentiles and maximum in ms; None without values."""
    values = sorted(1e3 * value for value in seconds if value is not None)
    if not values:
        return None
    return {
        "mean": sum(values) / len(values),
        **{f"p{percent}": percentile(values, percent) for percent in PERCENTILES},
        "max": values[-1],
    }


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
