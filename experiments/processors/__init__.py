"""Stream processors for one and the same job: the application's transformers, Quix Streams, Kafka Streams on the JVM.

The job: 2 s event-time means per vehicle, and of these the ones above their vehicle's speed limit. The two strangers
have an environment each, made by `python -m experiments.processors`; `--lock` resolves what they need anew.
"""
