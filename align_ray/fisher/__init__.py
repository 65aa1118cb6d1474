"""Torch alone: token ids in, an embedding out."""
