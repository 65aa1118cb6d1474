"""Rows in, losses out."""
