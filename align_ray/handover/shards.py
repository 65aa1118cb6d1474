"""Parquet shards with a manifest: what materialise and select write."""

import hashlib
from typing import Any

import pyarrow as pa

from align_ray.errors import ConfigError
from align_ray.store import Store

SHARD_TOKENS = 32_000_000
"""About 128 MB of text."""


def check_free(out: Store, settings: dict[str, Any]) -> None:
    """Raise ConfigError where the folder holds shards whose manifest, or its `settings`, does not say the same."""
    manifest = out.find_json("manifest.json")
    held = manifest.get("settings", manifest) if isinstance(manifest, dict) else {}
    if any(name.startswith("part-") for name in out.names("")) and {k: held.get(k) for k in settings} != settings:
        raise ConfigError(
            f"--out {out.uri}: the folder holds shards of something else; name another folder or empty it."
        )


def write_shard(store: Store, shard: int, table: pa.Table) -> dict[str, list]:
    """Write part-NNNNN.parquet; returns its name, rows and SHA-256 as a batch of one row."""
    name = f"part-{shard:05d}.parquet"
    store.write_table(name, table)
    sha = hashlib.sha256(store.read_bytes(name)).hexdigest()
    return {"file": [name], "rows": [table.num_rows], "sha256": [sha]}


def shard_list(written: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a manifest says of the shards, from the rows `write_shard` gave."""
    return sorted(({k: part[k] for k in ("file", "rows", "sha256")} for part in written), key=lambda part: part["file"])
