"""What one record, or one compressed file, may grow to: corpora are not trusted."""

MAX_RECORD_BYTES = 64 * 2**20
"""A longer line, paragraph, file or value is counted as oversized and left out: it is a broken file, not a document."""
BATCH_BYTES = 256 * 2**20
"""Largest Parquet batch formed where a few bytes of a file may stand for many (dictionary and delta encodings)."""
BOMB_RATIO = 200
"""Text shrinks 3 to 20 times when compressed, the same line over and over 100 times and more."""
BOMB_FLOOR = 256 * 2**20
"""What a compressed file may inflate to in any case."""


def most_inflated(compressed: int) -> int:
    """Bytes that `compressed` bytes may inflate to; beyond that they are a bomb."""
    return max(BOMB_FLOOR, BOMB_RATIO * compressed)
