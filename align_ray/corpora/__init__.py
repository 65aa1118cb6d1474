"""Text in, batches and training rows out."""
