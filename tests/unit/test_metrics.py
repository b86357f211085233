"""What Prometheus gets of a role is what the role counts."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from streaming import metrics
from streaming.progress import Progress


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    assert {sample.labels["role"] for sample in samples} == {"positions-parquet"}
    return {sample.name: sample.value for sample in samples}


def test_a_scrape_has_the_counters_as_they_are_now() -> None:
    progress = Progress("positions-parquet")
    port = metrics.serve(progress, 0, address="127.0.0.1")
    first = scraped(port)
    assert first["streamgauge_records_total"] == 0
    assert "streamgauge_last_commit_timestamp_seconds" not in first
    progress.took(300)
    progress.rejects(2)
    progress.retries()
    progress.commits(250, 0.5)
    progress.commits(0, 9.0)  # an empty turn is no commit
    second = scraped(port)
    assert second["streamgauge_records_total"] == 300
    assert second["streamgauge_committed_total"] == 250
    assert second["streamgauge_rejected_total"] == 2
    assert second["streamgauge_retries_total"] == 1
    assert second["streamgauge_commits_total"] == 1
    assert second["streamgauge_commit_seconds_total"] == 0.5
    assert second["streamgauge_last_commit_timestamp_seconds"] == progress.last_commit_at
