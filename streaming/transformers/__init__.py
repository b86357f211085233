"""Topic to topic: pure steps over batches and the flows that join them to streams."""
