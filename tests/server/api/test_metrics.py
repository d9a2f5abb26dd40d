"""/metrics: MindIE's series under their names, and that they tell the truth."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException

from atb_models.server import metrics as module
from atb_models.server.api.metrics import metrics as endpoint
from atb_models.server.errors import TimedOut
from atb_models.server.job import Answer
from atb_models.server.messages import Load
from atb_models.server.metrics import Metrics
from atb_models.server.pace import Pace
from atb_models.server.stream import ClientLeft
from tests.server.raw import PATH, completion, values
from tests.server.running import Running

SERIES = (
    "request_received_total", "request_success_total", "request_failed_total", "failed_request_perc",
    "num_requests_running", "num_requests_waiting", "num_requests_swapped", "num_preemptions_total",
    "avg_prompt_throughput_toks_per_s", "avg_generation_throughput_toks_per_s", "prompt_tokens_total",
    "generation_tokens_total", "npu_cache_usage_perc", "cpu_cache_usage_perc", "npu_prefix_cache_hit_rate",
    "all_radix_match_num", "npu_radix_match_hit_num",
)  # fmt: skip
HISTOGRAMS = {
    "time_to_first_token_seconds": ("0.001", "10.0"),
    "time_per_output_token_seconds": ("0.01", "2.5"),
    "e2e_request_latency_seconds": ("1.0", "60.0"),
    "request_prompt_tokens": ("10.0", "128000.0"),
    "request_generation_tokens": ("10.0", "128000.0"),
    "request_queue_time_seconds": ("0.001", "10.0"),
    "engine_step_seconds": ("0.001", "10.0"),
}


def test_every_series_is_there_with_the_model_s_name(server: Running) -> None:
    _, data = server.request("GET", "/metrics")
    lines = [line for line in data.decode().splitlines() if not line.startswith("#")]
    assert all('model_name="demo"' in line for line in lines)
    names = {line.partition("{")[0] for line in lines}
    assert set(SERIES) <= names and not any(name.endswith("_created") for name in names)
    for name, (first, last) in HISTOGRAMS.items():
        bounds = [line.split('le="')[1].split('"')[0] for line in lines if line.startswith(f"{name}_bucket")]
        assert (bounds[0], *bounds[-2:]) == (first, last, "+Inf"), name


def test_a_request_is_counted_with_its_tokens(server: Running) -> None:
    before = values(server)
    server.json(PATH, completion(list(range(1, 40)), 7, n=2))
    now = values(server)
    gained = {name: now[name] - before[name] for name in before}
    assert gained["request_received_total"] == gained["request_success_total"] == 2
    assert gained["prompt_tokens_total"] == gained["request_prompt_tokens_sum"] == 2 * 39
    assert gained["generation_tokens_total"] == gained["request_generation_tokens_sum"] == 2 * 7
    assert gained["engine_steps_total"] == gained["engine_step_seconds_count"] >= 7
    assert 0 < gained["time_to_first_token_seconds_sum"] < gained["e2e_request_latency_seconds_sum"]
    assert gained["time_per_output_token_seconds_count"] == gained["request_queue_time_seconds_count"] == 2
    assert now["avg_generation_throughput_toks_per_s"] > 0 and now["npu_cache_usage_perc"] == 0


def test_tokens_of_the_prefix_cache_are_counted(server: Running) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6] * 40  # 320 tokens, two whole blocks
    server.json(PATH, completion(prompt, 1))
    before = values(server)
    reply = server.json(PATH, completion(prompt, 1))
    now = values(server)
    assert now["npu_radix_match_hit_num"] - before["npu_radix_match_hit_num"] == 256
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 256
    assert now["npu_prefix_cache_hit_rate"] == now["npu_radix_match_hit_num"] / now["all_radix_match_num"]


def test_the_short_form(server: Running) -> None:
    server.json(PATH, completion([1, 2], 3))
    summary = server.json("/metrics-json")
    assert float(summary["TTFT"]) > 0 and float(summary["TBT"]) > 0
    assert summary["waitingInferRequestNum"] == summary["processingInferRequestNum"] == "0"
    assert float(summary["remainBlocks"]) == values(server)["kv_blocks"]


def test_mindie_s_variable_turns_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIES_SERVICE_MONITOR_MODE", "0")
    with pytest.raises(HTTPException) as caught:
        asyncio.run(endpoint(None))  # type: ignore[arg-type]
    assert caught.value.status_code == 404


def _shown(metrics: Metrics) -> dict[str, float]:
    lines = [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]
    return {line.partition("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def _metrics(load: Load | None = None) -> tuple[Metrics, Any]:
    client = SimpleNamespace(load=load or Load(), facts=SimpleNamespace(total_blocks=10), pace=Pace())
    return Metrics("m", lambda: client), client  # type: ignore[arg-type, return-value]


def _job(*reasons: str | None) -> Any:
    times = {"first_token_s": 0.1, "total_s": 0.5, "queue_s": 0.0}
    return SimpleNamespace(
        answers=[Answer([1], token_ids=[1, 2], finish_reason=reason, metrics=times) for reason in reasons],  # type: ignore[arg-type]
        started_s=0.0,
    )


def test_how_a_request_ended() -> None:
    metrics, _ = _metrics()
    metrics.received(7)
    metrics.ended(_job("stop", "length"), None)
    metrics.ended(_job("stop", None), TimedOut("late"))
    metrics.ended(_job(None), asyncio.CancelledError())
    metrics.ended(_job(None), ClientLeft())
    metrics.ended(_job(None), KeyError("a fault of ours"))
    metrics.refused()
    shown = _shown(metrics)
    counts = [shown[f"request_{name}_total"] for name in ("received", "success", "failed", "aborted", "refused")]
    assert counts == [7, 3, 2, 2, 1] and shown["failed_request_perc"] == 2 / 7


def test_throughput_is_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    metrics, client = _metrics()
    for second in range(1, 31):  # 5 prompt tokens and 20 new ones a second for half a minute
        now = 1000.0 + second
        client.load = Load(steps=second, prompt_tokens=5 * second, generated_tokens=20 * second)
        metrics.stepped(client.load)
    shown = _shown(metrics)
    rates = shown["avg_prompt_throughput_toks_per_s"], shown["avg_generation_throughput_toks_per_s"]
    assert rates == pytest.approx((5, 20))
    now += 5
    assert _shown(metrics)["avg_generation_throughput_toks_per_s"] == pytest.approx(10)
    now += 5
    assert _shown(metrics)["avg_generation_throughput_toks_per_s"] == 0


def test_after_a_short_request_the_throughput_falls_back_to_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last steps come within the time between two samples, and nothing comes after them."""
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    metrics, client = _metrics()
    for step in range(1, 10):
        now = 1003.0 + step / 100
        client.load = Load(steps=step, prompt_tokens=50, generated_tokens=step)
        metrics.stepped(client.load)
    now = 1004.0
    assert _shown(metrics)["avg_generation_throughput_toks_per_s"] == pytest.approx(9 / 4)
    now = 1060.0
    shown = _shown(metrics)
    assert shown["avg_prompt_throughput_toks_per_s"] == shown["avg_generation_throughput_toks_per_s"] == 0


def test_another_engine_starts_from_nothing() -> None:
    metrics, client = _metrics()
    client.load = Load(steps=9, generated_tokens=900, host_s=1.0)
    metrics.stepped(client.load)
    metrics.engine_started()
    client.load = Load(steps=1, generated_tokens=1, run_s=0.25)
    metrics.stepped(client.load)
    shown = _shown(metrics)
    assert shown["avg_generation_throughput_toks_per_s"] > 0 and shown["engine_step_seconds_sum"] == 0.25
