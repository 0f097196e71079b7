"""Today's running totals from the stream of transactions: processor, producer, chaos run."""
