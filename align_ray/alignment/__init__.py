"""Numbers about pairs of corpora, without input or output."""
