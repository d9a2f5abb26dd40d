"""The metrics of the service in Prometheus' format: MindIE Service's series under their names, and some of our own.

A request is one prompt: an HTTP request with several, or with n above 1, counts as that many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from atb_models.server.messages import Load
from atb_models.server.pace import LEAST_S, PATIENCE, REMEMBERED
from atb_models.server.stream import ClientLeft

if TYPE_CHECKING:
    from atb_models.server.engine_client import EngineClient
    from atb_models.server.job import Answer, Job

WINDOW_S = 10.0  # over which throughputs are averaged
SAMPLE_S = 0.5
WEIGHT = 0.1  # of a new value in an exponential mean

TO_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
LATENCY_S = (1, 2.5, 5, 10, 15, 20, 30, 40, 50, 60)
STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TOKENS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 128_000)

ALLOWED = (
    f"For the running step, before /health says 503: {PATIENCE:g} times the slowest of the last {REMEMBERED} steps of"
    f" its size, at least {LEAST_S:g}."
)
ENDINGS = {
    "request_success": "Requests answered to their end.",
    "request_failed": "Requests refused by the engine, not answered in time, or lost to a fault of the service.",
    "request_aborted": "Requests whose client left.",
    "request_refused": "HTTP requests that met a full queue (status 429); they count nowhere else.",
}


class Metrics:
    """The counts of one service. model_name: label of every series. client: read for the engine's load."""

    def __init__(self, model_name: str, client: Callable[[], EngineClient]) -> None:
        disable_created_metrics()
        self.model_name, self._registry = model_name, CollectorRegistry()
        self.mean_request_s, self.mean_first_token_s, self.mean_token_s = 1.0, 0.0, 0.0  # exponential means
        self._received = self._counter("request_received", "Requests given to the engine.")
        self._endings = {name: self._counter(name, text) for name, text in ENDINGS.items()}
        self._to_first = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival at the engine.", TO_FIRST_TOKEN_S
        )
        self._per_token = self._histogram(
            "time_per_output_token_seconds", "Mean of a request after its first token.", PER_TOKEN_S
        )
        self._latency = self._histogram(
            "e2e_request_latency_seconds", "From a request's arrival to its last token.", LATENCY_S
        )
        self._queue = self._histogram("request_queue_time_seconds", "Until a request is first scheduled.", STEP_S)
        self._prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self._generated = self._histogram("request_generation_tokens", "New tokens of a request.", TOKENS)
        self._step = self._histogram("engine_step_seconds", "A step of the whole batch.", STEP_S)
        self._tasks = Gauge("front_tasks", "Tasks of the event loop.", ["model_name"], registry=self._registry).labels(
            model_name
        )
        self._engine = _EngineSeries(model_name, client, self._failed_share)
        self._registry.register(self._engine)
        self._counts = dict.fromkeys(("received", *ENDINGS), 0)
        self._last = Load()

    def text(self, tasks: int = 0) -> bytes:
        """The reply of /metrics. tasks: number of tasks of the front's event loop, which shows a leak of them."""
        self._tasks.set(tasks)
        return generate_latest(self._registry)

    def engine_started(self) -> None:
        """From now on loads come from a new engine, whose counts begin at 0."""
        self._last = Load()
        self._engine.restart()

    def stepped(self, load: Load) -> None:
        """Take in the engine's state after a step, or as an answer to `Ask`."""
        if load.steps == self._last.steps + 1:
            self._step.observe(load.host_s + load.run_s - self._last.host_s - self._last.run_s)
        self._last = load
        self._engine.sample(load)

    def received(self, count: int) -> None:
        """Count prompts that were submitted."""
        self._received.inc(count)
        self._counts["received"] += count

    def refused(self) -> None:
        """Count a request that met a full queue."""
        self._count("request_refused")

    def ended(self, job: Job, error: BaseException | None) -> None:
        """Count a job that has ended; `error` is set if not all its answers are complete."""
        failed = isinstance(error, Exception) and not isinstance(error, ClientLeft)
        for answer in job.answers:
            if answer.finish_reason in ("stop", "length"):
                self._count("request_success")
                self._observe(answer)
            else:
                self._count("request_failed" if failed else "request_aborted")
        if error is None:
            self.mean_request_s = _mean(self.mean_request_s, perf_counter() - job.started_s)

    def _observe(self, answer: Answer) -> None:
        times, tokens = answer.metrics, len(answer.token_ids)
        first, total = times["first_token_s"], times["total_s"]
        self._to_first.observe(first)
        self._latency.observe(total)
        self._queue.observe(times["queue_s"])
        self._prompt.observe(len(answer.prompt_token_ids))
        self._generated.observe(tokens)
        self.mean_first_token_s = _mean(self.mean_first_token_s, first)
        if tokens > 1:
            each = (total - first) / (tokens - 1)
            self._per_token.observe(each)
            self.mean_token_s = _mean(self.mean_token_s, each)

    def _failed_share(self) -> float:
        return self._counts["request_failed"] / max(1, self._counts["received"])

    def _count(self, name: str) -> None:
        self._endings[name].inc()
        self._counts[name] += 1

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["model_name"], registry=self._registry).labels(self.model_name)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, text, ["model_name"], registry=self._registry, buckets=buckets)
        return histogram.labels(self.model_name)


class _EngineSeries(Collector):
    """The series that come from the engine's state; they are made when /metrics is read."""

    def __init__(self, model_name: str, client: Callable[[], EngineClient], failed_share: Callable[[], float]) -> None:
        self._model_name, self._client, self._failed_share = model_name, client, failed_share
        self.restart()

    def restart(self) -> None:
        self._started = monotonic()
        self._samples: deque[tuple[float, Load]] = deque([(self._started, Load())])

    def sample(self, load: Load) -> None:
        """Keep a sample every `SAMPLE_S`, and always the last one, as the next may be long in coming."""
        now = monotonic()
        if len(self._samples) > 1 and now - self._samples[-2][0] < SAMPLE_S:
            self._samples.pop()
        self._forget(now)
        self._samples.append((now, load))

    def collect(self) -> Iterator[Metric]:
        client = self._client()
        load, facts = client.load, client.facts
        total = facts.total_blocks if facts else 0
        prompt_rate, generation_rate = self._rates(load)
        hit_rate = load.prefix_hit_tokens / max(1, load.prompt_tokens)
        yield self._counter("num_preemptions", "Requests that gave their blocks back to others.", load.preemptions)
        yield self._counter("prompt_tokens", "Prompt tokens of all requests.", load.prompt_tokens)
        yield self._counter("generation_tokens", "New tokens of all requests.", load.generated_tokens)
        yield self._counter("engine_steps", "Steps of the engine.", load.steps)
        for name, text, value in (
            ("failed_request_perc", "request_failed_total / request_received_total, at most 1.", self._failed_share()),
            ("num_requests_running", "Requests in the batch.", load.running),
            ("num_requests_waiting", "Requests in the queue.", load.waiting),
            ("num_requests_swapped", "Always 0: what gives way is computed again.", 0),
            ("avg_prompt_throughput_toks_per_s", f"Prompt tokens of the last {WINDOW_S:g} s.", prompt_rate),
            ("avg_generation_throughput_toks_per_s", f"New tokens of the last {WINDOW_S:g} s.", generation_rate),
            ("npu_cache_usage_perc", "KV blocks that requests own, at most 1; on any device.",
             1 - load.free_blocks / total if total else 0),
            ("cpu_cache_usage_perc", "Always 0: nothing is swapped.", 0),
            ("kv_blocks", "KV blocks in all.", total),
            ("kv_blocks_free", "KV blocks that no request owns.", load.free_blocks),
            ("npu_prefix_cache_hit_rate", "Share of the prompt tokens that others had computed.", hit_rate),
            ("all_radix_match_num", "Prompt tokens looked up in the prefix cache.", load.prompt_tokens),
            ("engine_step_age_seconds", "Of the running step; 0 at rest.", client.pace.age_s or 0.0),
            ("engine_step_allowed_seconds", ALLOWED, client.pace.allowed_s),
            ("npu_radix_match_hit_num", "Of these, found: computed for another request.", load.prefix_hit_tokens),
        ):  # fmt: skip
            yield self._gauge(name, text, value)

    def _rates(self, load: Load) -> tuple[float, float]:
        """Tokens per second since the last sample before the window."""
        now = monotonic()
        self._forget(now)
        base = self._samples[0][1]
        span = max(SAMPLE_S, min(WINDOW_S, now - self._started))
        prompt, generated = load.prompt_tokens - base.prompt_tokens, load.generated_tokens - base.generated_tokens
        return prompt / span, generated / span

    def _forget(self, now: float) -> None:
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family


def _mean(before: float, value: float) -> float:
    return before + WEIGHT * (value - before) if before else value
