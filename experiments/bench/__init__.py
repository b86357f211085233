"""The benchmark: what landing and transforming cost beside a bare client, on the same topic in the same run.

`python -m experiments.bench`; docs/benchmarks.md says what is measured and how. Invariant: every number belongs to a
run whose records were counted afterwards; one lost or doubled record makes the run void.
"""
