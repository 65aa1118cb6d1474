"""Commands around the mixture: hand it over, or make one from runs that exist already."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from align_ray.cli.common import Path_, Set, guard, study_of
from align_ray.errors import ConfigError
from align_ray.reporting.tables import out, plain_table

Recipe = Annotated[Path, typer.Argument(help="recipe.json of a study.", metavar="RECIPE")]
Tokenizer = Annotated[
    str | None, typer.Option(help="The trainer's tokenizer, as probe.model; refused where it is not the recipe's.")
]
Force = Annotated[bool, typer.Option("--force", help="Use the recipe with another tokenizer.")]


def export(
    recipe: Recipe,
    format_: Annotated[
        str,
        typer.Option("--format", help="One of: huggingface, trl, axolotl, megatron, olmo, levanter, regmix, doremi."),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Folder with the trainer's copies of the corpora by name (trl, axolotl: the materialised shards)."
        ),
    ] = "",
    file: Annotated[
        Path | None, typer.Option("--out", help="Default: the format's usual name, beside the recipe.")
    ] = None,
    tokenizer: Tokenizer = None,
    force: Force = False,
) -> None:
    """Write the mixture in a trainer's own format.

    Example: [b]align-ray export runs/demo/recipe.json --format megatron --data /data/bin[/b]
    """

    def work() -> dict[str, str]:
        from align_ray.handover.export import exporter
        from align_ray.handover.recipe import check_tokenizer, read_recipe

        writer, found = exporter(format_), read_recipe(recipe)
        if tokenizer:
            check_tokenizer(found, tokenizer, force)
        path = file or recipe.with_name(writer.file)
        path.write_text(writer.write(found, data), encoding="utf-8")
        out.print(f"{path} (weights count {writer.unit})", highlight=False, soft_wrap=True)
        return {"path": str(path), "format": format_, "weights_count": writer.unit}

    guard(work)


def materialise(
    config: Path_,
    folder: Annotated[str, typer.Option("--out", help="Folder or pyarrow URI for the shards.")],
    tokens: Annotated[int | None, typer.Option(min=1, help="Token budget; default: search.token_budget.")] = None,
    tokenizer: Tokenizer = None,
    force: Force = False,
    set_: Set = None,
) -> None:
    """Write Parquet shards of exactly the mixture, with a manifest.

    Example: [b]align-ray materialise study.yaml --out data/mixture --tokens 100000000[/b]
    """

    def work() -> dict[str, Any]:
        from align_ray import pipeline
        from align_ray.fisher.probe import locate_probe
        from align_ray.fisher.settings import ProbeName
        from align_ray.handover.materialise import materialise as write_shards
        from align_ray.handover.recipe import check_tokenizer
        from align_ray.runtime import connect
        from align_ray.store import Store

        opened = study_of(config, set_)
        recipe = pipeline.recipe(opened)
        if tokenizer:
            check_tokenizer(recipe, tokenizer, force)
        located = locate_probe(ProbeName(tokenizer)) if tokenizer else opened.probe
        connect(opened.config.cluster)
        budget = tokens or recipe["token_budget"]
        store = Store(folder)
        store.check_writable()
        manifest = write_shards(opened.config.candidates, recipe["weights"], budget, located, opened.config.seed, store)
        table = plain_table(f"{store.uri}: {manifest['total_tokens']:,} tokens in {len(manifest['files'])} shards")
        table.add_column("corpus", no_wrap=True)
        for column in ("tokens", "share", "wanted", "epochs"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, count in manifest["tokens"].items():
            share, epochs = count / manifest["total_tokens"], count / manifest["unique_tokens"][name]
            table.add_row(name, f"{count:,}", f"{share:.2%}", f"{recipe['weights'][name]:.2%}", f"{epochs:.2f}")
        out.print(table)
        return manifest

    guard(work)


Mixtures = Annotated[Path, typer.Option(help="CSV: first column the run, one column of weights a domain.")]
Metrics = Annotated[Path, typer.Option(help="CSV: first column the run, one column a metric (lower is better).")]
Metric = Annotated[list[str] | None, typer.Option("--metric", help="Use this metric; repeatable. Default: all.")]


def fit(mixtures: Mixtures, metrics: Metrics, metric: Metric = None) -> None:
    """Cross-validate surrogates of the loss on runs you have (the tables RegMix and Olmix publish).

    Example: [b]align-ray fit --mixtures ratios.csv --metrics metrics.csv[/b]
    """

    def work() -> dict[str, Any]:
        from align_ray.mixture.surrogates import SURROGATES, cross_validated, default_surrogate

        runs = _runs(mixtures, metrics, metric)
        found = {
            m: {kind: cross_validated(runs.weights, v, kind) for kind in SURROGATES} for m, v in runs.metrics.items()
        }
        default = default_surrogate(len(runs.ids))
        table = plain_table(f"{len(runs.ids)} runs, {len(runs.domains)} domains: rank correlation on runs left out")
        table.add_column("metric", overflow="fold")
        for kind in SURROGATES:
            table.add_column(kind, justify="right", no_wrap=True)
        for name, quality in found.items():
            table.add_row(name, *(f"{quality[kind]:.3f}" for kind in SURROGATES))
        out.print(table)
        if runs.renormalised:
            out.print(
                f"{runs.renormalised} runs had weights that did not sum to 1 within 0.1%; renormalised", highlight=False
            )
        out.print(f"default for so many runs: {default}", highlight=False)
        correlations = {name: _or_none(quality) for name, quality in found.items()}
        return {
            "runs": len(runs.ids), "domains": runs.domains, "renormalised": runs.renormalised,
            "rank_correlation": correlations,
            "default": default,
        }  # fmt: skip

    guard(work)


def propose(
    mixtures: Mixtures,
    metrics: Metrics,
    metric: Metric = None,
    surrogate: Annotated[
        str | None, typer.Option(help="log-linear, ridge or lightgbm; default: by the number of runs.")
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            help="A study whose candidates and constraints are used, and whose embeddings join the weights as content "
            "coordinates; "
            "it must hold the runs' domains."
        ),
    ] = None,
    prior_strength: Annotated[
        float, typer.Option(min=0, help="Of KL to uniform, times the spread of the runs' metric (without --study).")
    ] = 0.05,
    set_: Set = None,
) -> None:
    """Propose a mixture from runs you have.

    Example: [b]align-ray propose --mixtures ratios.csv --metrics metrics.csv --metric loss/web[/b]
    """

    def work() -> dict[str, Any]:
        from align_ray.mixture.propose import propose_from_runs

        runs = _runs(mixtures, metrics, metric)
        opened = study_of(study, set_) if study else None
        evidence = None
        if opened:
            from align_ray.pipeline import evidence_of

            evidence = evidence_of(opened)
        constraints, proposal = propose_from_runs(runs, surrogate, prior_strength, opened, evidence)
        table = plain_table(f"mixture proposed by {proposal.surrogate} from {len(runs.ids)} runs")
        table.add_column("corpus", overflow="fold")
        table.add_column("weight", justify="right", no_wrap=True)
        weights = dict(zip(constraints.names, proposal.weights.tolist(), strict=True))
        for name, w in sorted(weights.items(), key=lambda item: -item[1]):
            table.add_row(name, f"{w:.2%}")
        out.print(table)
        quality = proposal.quality[proposal.surrogate]
        for name, value in proposal.predicted.items():
            out.print(
                f"{name}: predicted {value:.4f} (rank correlation on runs left out {quality[name]:.3f})",
                highlight=False,
            )
        return {
            "surrogate": proposal.surrogate, "runs": len(runs.ids), "weights": weights, "predicted": proposal.predicted,
            "rank_correlation": _or_none(quality),
        }  # fmt: skip

    guard(work)


def _or_none(correlations: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN, which is the correlation with a metric that does not vary."""
    return {name: None if math.isnan(value) else value for name, value in correlations.items()}


def _runs(mixtures: Path, metrics: Path, metric: list[str] | None) -> Any:
    from align_ray.mixture.surrogates import read_runs

    runs = read_runs(mixtures, metrics)
    for name in metric or []:
        if name not in runs.metrics:
            raise ConfigError(f"--metric {name}: {metrics} has {', '.join(runs.metrics)}.")
    return dataclasses.replace(runs, metrics={m: runs.metrics[m] for m in metric}) if metric else runs
