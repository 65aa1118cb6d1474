"""From evidence to mixture weights."""
