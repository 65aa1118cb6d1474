"""Runs that exist already: two tables, one of their mixtures, one of their metrics, as RegMix and Olmix publish them
and as trackers export them."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd

from align_ray.errors import ConfigError

ID_COLUMNS = ("run", "run_id", "run_name", "runid", "name", "index", "id", "step", "timestamp", "created")
"""Names of columns that tell runs apart and are no domain and no metric; the first one that both tables share is the
run's."""
FEWEST = 10
HIGHER = re.compile(r"acc|f1|bleu|rouge|exact|score|win|pass@|auc|mrr|ndcg", re.IGNORECASE)
"""Metrics that are usually better when they are higher."""
TASK = re.compile(r"(score|accuracy)(_low|_high)?/")
"""Columns of tasks' scores beside losses, as `align-ray report` writes them: they are better when they are higher."""
WILD = 1.5
"""Largest sum of a row's weights over the smallest one's, above which they are no shares."""


@dataclasses.dataclass(frozen=True)
class Runs:
    """n runs: weights float64 [n, K] that sum to 1, metrics [n], lower is better, by name, and the run ids."""

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    weights: np.ndarray
    metrics: dict[str, np.ndarray]
    renormalised: int
    """Rows whose weights did not sum to 1 within 0.1%."""
    unused: tuple[str, ...] = ()
    """Domains that no run used."""
    notes: tuple[str, ...] = ()
    """Sentences on what was left out or may be meant otherwise."""


def read_runs(mixtures: Path, metrics: Path, wanted: list[str] | None = None, maximise: bool = False) -> Runs:
    """The runs of two tables, matched by their ids; weights are renormalised.

    `wanted`: metrics to take (default: all; of a table of `align-ray report` the losses). `maximise`: they are better
    when higher; their signs are turned. Columns that tell runs apart, and those of one value that is no number, are
    left out. Raises ConfigError naming file and column.
    """
    ratios, results = _table(mixtures), _table(metrics)
    key = _key(ratios, results, mixtures, metrics)
    notes: list[str] = []
    weights = _numbers(_by_run(ratios, key, mixtures), mixtures, notes, "domain")
    values = _by_run(results, key, metrics)
    if missing := [name for name in wanted or [] if name not in values.columns]:
        raise ConfigError(f"--metric {missing[0]}: {metrics} has {', '.join(map(str, values.columns))}.")
    common = weights.index[weights.index.isin(values.index)]
    alone = len(weights) + len(values) - 2 * len(common)
    if len(common) < FEWEST:
        raise ConfigError(
            f"{mixtures} and {metrics} have {len(common)} runs in common by '{key}', {alone} rows find no partner; at "
            f"least {FEWEST} are needed: both must hold the same run ids."
        )
    if alone:
        notes.append(f"{alone} rows of {mixtures.name} and {metrics.name} find no partner and are left out")
    scores = [name for name in values.columns if TASK.match(str(name))]
    if scores and not wanted and any(str(name).startswith("loss/") for name in values.columns):
        notes.append(f"losses alone are taken; for a task's score name it: --metric {scores[0]} --maximise")
        wanted = [name for name in values.columns if name not in scores]
    values = _numbers(values.loc[common, wanted or list(values.columns)], metrics, notes, "metric")
    shares = np.ascontiguousarray(weights.loc[common], dtype=np.float64)  # a row beside a row: sums have one order
    sums = shares.sum(1)
    bad = (shares < 0).any(1) | (sums <= 0)
    if bad.any():
        raise ConfigError(
            f"{mixtures}: run '{common[bad.argmax()]}' has a negative weight or none; weights must be shares of tokens."
        )
    used = np.asarray(shares.any(0))
    unused = tuple(str(name) for name, some in zip(weights.columns, used, strict=True) if not some)
    if unused:
        notes.append(f"no run used {', '.join(unused)}: nothing is known of that, and it gets no weight")
    if used.sum() < 2:
        raise ConfigError(f"{mixtures}: the runs use one domain alone; there is nothing to choose.")
    if sums.max() > WILD * sums.min():
        raise ConfigError(
            f"{mixtures}: the weights of a run sum to {sums.min():g} up to {sums.max():g}; they must be shares of "
            "tokens. Is one of the columns no domain?"
        )
    looks_higher = [name for name in values.columns if HIGHER.search(str(name))]
    if looks_higher and not maximise:
        notes.append(f"'{looks_higher[0]}' looks like a metric that is better when it is higher; then add --maximise")
    sign = -1.0 if maximise else 1.0
    return Runs(
        tuple(map(str, common)),
        tuple(map(str, weights.columns)),
        shares / sums[:, None],
        {str(name): sign * column.to_numpy(dtype=np.float64) for name, column in values.items()},
        int((np.abs(sums - 1) > 1e-3).sum()),
        unused,
        tuple(notes),
    )


def _table(path: Path) -> pd.DataFrame:
    """Cells as text, a row a run, column names without blanks around them."""
    longer: list[list[str]] = []  # rows with more fields than the header
    try:
        cells = pd.read_csv(
            path, dtype=str, keep_default_na=False, index_col=False, engine="python", on_bad_lines=longer.append,
            skipinitialspace=True, encoding="utf-8-sig",
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable table ({error}); give a CSV file with a header.") from None
    cells.columns = [str(name).strip() for name in cells.columns]
    if len(cells.columns) < 2:
        raise ConfigError(
            f"{path}: only the column '{cells.columns[0]}'; give the run ids and a column a domain or metric."
        )
    for name in cells.columns:  # pandas numbers a name that is there again
        first = re.sub(r"\.\d+$", "", name)
        if first != name and first in cells.columns:
            raise ConfigError(f"{path}: the column '{first}' is there twice; keep one of them.")
    shorter = cells[cells[cells.columns[-1]].isna()].values.tolist()
    for row in longer + [[cell for cell in row if isinstance(cell, str)] for row in shorter]:
        fields = f"{len(row)} fields, the header {len(cells.columns)}"
        raise ConfigError(f"{path}: run '{row[0]}' has {fields}; fix the row.")
    return cells


def _is_id(name: str) -> bool:
    return name.lower() in ID_COLUMNS or re.fullmatch(r"Unnamed: \d+", name) is not None or name == ""


def _key(ratios: pd.DataFrame, results: pd.DataFrame, mixtures: Path, metrics: Path) -> str:
    """The column that names the run in both tables: of those that may, the first one with a name for every row; where
    none of them may, the first column."""
    shared = [name for name in ratios.columns if _is_id(name) and name in results.columns]
    ranked = sorted(shared, key=lambda name: ID_COLUMNS.index(name.lower()) if name.lower() in ID_COLUMNS else 99)
    for name in ranked:
        if not ratios[name].str.strip().duplicated().any() and not results[name].str.strip().duplicated().any():
            return name
    if ranked:
        return ranked[0]  # which is refused with the run that is there twice
    first, other = ratios.columns[0], results.columns[0]
    if first != other:
        results.rename(columns={other: first}, inplace=True)
    return first


def _by_run(cells: pd.DataFrame, key: str, path: Path) -> pd.DataFrame:
    """The columns that are no ids, by run; ids are compared without blanks and case."""
    runs = cells[key].str.strip()
    compared = runs.str.lower() if not runs.str.lower().duplicated().any() else runs
    if compared.duplicated().any():
        twice = runs[compared.duplicated()].iloc[0]
        raise ConfigError(f"{path}: run '{twice}' is there twice; give every run its own id.")
    kept = [name for name in cells.columns if name != key and not _is_id(name)]
    return cells[kept].set_axis(compared, axis=0)


def _numbers(cells: pd.DataFrame, path: Path, notes: list[str], what: str) -> pd.DataFrame:
    """Finite numbers; columns of one value that is no number (a tracker's) are left out and said."""
    numbers = cells.apply(pd.to_numeric, errors="coerce")
    no_number = {"", "nan", "null", "none"}
    texts = [
        name
        for name in cells.columns
        if numbers[name].isna().all() and cells[name].nunique() <= 1 and cells[name].iloc[0].lower() not in no_number
    ]
    if texts:
        notes.append(f"{path.name}: {', '.join(texts)}: one value that is no number; left out")
        numbers = numbers.drop(columns=texts)
    if numbers.shape[1] == 0:
        raise ConfigError(f"{path}: no column is a {what}; give one with a number for every run.")
    unusable = np.argwhere(~np.isfinite(numbers.to_numpy(dtype=float)))
    if len(unusable):
        row, column = unusable[0]
        remedy = "ask for other metrics with --metric, " if what == "metric" else ""
        raise ConfigError(
            f"{path}: column '{numbers.columns[column]}' of run '{numbers.index[row]}' is not a finite number; fix it, "
            f"{remedy}or leave the run out."
        )
    return numbers.astype(float)
