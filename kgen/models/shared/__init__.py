"""The contract between models and the rest of kgen: batches, signatures, loading."""
