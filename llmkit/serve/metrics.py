"""Count what was served, in the text format of Prometheus."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


@dataclass
class Metrics:
    """Requests by path and status, and how long they took."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    buckets: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0
    prompt_tokens: int = 0
    gone: int = 0  # requests whose client went away

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self.requests[path, status] += 1
        self.seconds += seconds
        self.buckets.update(limit for limit in BUCKETS if seconds <= limit)

    def text(self, worker: Any, written: int) -> str:
        """Write all figures; `worker` knows what waits and what ran, `written` are tokens."""
        total = sum(self.requests.values())
        lines = ["# TYPE llmkit_requests_total counter"]
        lines += [
            f'llmkit_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        lines.append("# TYPE llmkit_request_seconds histogram")
        lines += [f'llmkit_request_seconds_bucket{{le="{limit}"}} {self.buckets[limit]}' for limit in BUCKETS]
        lines += [
            f'llmkit_request_seconds_bucket{{le="+Inf"}} {total}',
            f"llmkit_request_seconds_sum {self.seconds:.6f}",
            f"llmkit_request_seconds_count {total}",
        ]
        for name, kind, value in (
            ("rows_waiting", "gauge", worker.waiting),
            ("rows_running", "gauge", sum(job.rows for job in tuple(worker.running))),
            ("batches_total", "counter", worker.batches),
            ("rows_total", "counter", worker.rows),
            ("prompt_tokens_total", "counter", self.prompt_tokens),
            ("generated_tokens_total", "counter", written),
            ("clients_gone_total", "counter", self.gone),
        ):
            lines += [f"# TYPE llmkit_{name} {kind}", f"llmkit_{name} {value}"]
        return "\n".join(lines) + "\n"
