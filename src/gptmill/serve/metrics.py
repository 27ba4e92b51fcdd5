"""What `/metrics` shows, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import disable_created_metrics as leave_out_creation_times

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


leave_out_creation_times()


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gptmill_requests",
            "Requests by path and status; 499 is a client that left",
            ["path", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "gptmill_request_seconds",
            "From a request's first byte to its answer's last",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.tokens = Counter(
            "gptmill_tokens", "Tokens read and written", ["model", "kind"], registry=self._registry
        )
        self.first_token = Histogram(
            "gptmill_first_token_seconds",
            "From the queue to the first token",
            ["model"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.batch = Histogram(
            "gptmill_batch_size",
            "Requests that share a step",
            ["model"],
            buckets=BATCHES,
            registry=self._registry,
        )
        self.prefixes = Counter(
            "gptmill_prefix_cache_requests",
            "Requests that began like an earlier one (hit), and others (miss)",
            ["model", "result"],
            registry=self._registry,
        )
        self.prefix_bytes = Gauge(
            "gptmill_prefix_cache_bytes",
            "Keys and values kept for prompts to come",
            ["model"],
            registry=self._registry,
        )
        self.queued = Gauge(
            "gptmill_queued", "Requests that wait", ["model"], registry=self._registry
        )
        self.running = Gauge(
            "gptmill_running", "Requests that run", ["model"], registry=self._registry
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class Meter:
    """The part of the metrics that one model's engine writes."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._batch = metrics.batch.labels(model)
        self._queued, self._running = metrics.queued.labels(model), metrics.running.labels(model)
        self._first_token = metrics.first_token.labels(model)
        self._prompt = metrics.tokens.labels(model, "prompt")
        self._generated = metrics.tokens.labels(model, "generated")
        self._reused = metrics.tokens.labels(model, "reused")
        self._hits, self._misses = (
            metrics.prefixes.labels(model, result) for result in ("hit", "miss")
        )
        self._kept = metrics.prefix_bytes.labels(model)

    def entered(self, prompt_tokens: int, reused: int) -> None:
        """Count a request that starts, and the tokens of its prompt that are known already."""
        self._prompt.inc(prompt_tokens)
        self._reused.inc(reused)
        (self._hits if reused else self._misses).inc()

    def kept(self, size: int) -> None:
        """State the bytes of the prefix cache."""
        self._kept.set(size)

    def step(self, batch: int) -> None:
        """Count a step of so many requests."""
        self._batch.observe(batch)

    def chosen(self, tokens: int) -> None:
        """Count generated tokens."""
        self._generated.inc(tokens)

    def depths(self, queued: int, running: int) -> None:
        """State how many wait and run."""
        self._queued.set(queued)
        self._running.set(running)

    def answering(self, seconds: float) -> None:
        """Note how long a first token took."""
        self._first_token.observe(seconds)
