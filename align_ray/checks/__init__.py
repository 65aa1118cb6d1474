"""Reasons to doubt the answer."""
