"""RabbitMQ as a transport, twice: queues (competing consumers, acknowledgements) and streams (offsets, replay)."""
