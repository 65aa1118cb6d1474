"""Commands around the mixture: hand it over, or make one from runs that exist already."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from align_ray.cli.common import Path_, Set, from_here, guard, study_of, tokens_of
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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(writer.write(found, data), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot be written ({error.strerror}); name another file.") from None
        out.print(f"{path} (weights count {writer.unit})", highlight=False, soft_wrap=True)
        return {"path": str(path), "format": format_, "weights_count": writer.unit}

    guard(work)


def materialise(
    config: Path_,
    folder: Annotated[str, typer.Option("--out", help="Folder or pyarrow URI for the shards.")],
    tokens: Annotated[
        int | None, typer.Option(parser=tokens_of, metavar="TOKENS", help="Token budget; default: search.token_budget.")
    ] = None,
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

        place = from_here(folder)
        opened = study_of(config, set_)
        recipe = pipeline.recipe(opened)
        if tokenizer:
            check_tokenizer(recipe, tokenizer, force)
        located = locate_probe(ProbeName(tokenizer)) if tokenizer else opened.probe
        connect(opened.config.cluster)
        budget = tokens or recipe["token_budget"]
        store = Store(place)
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


Mixtures = Annotated[
    Path, typer.Option(help="CSV: a column that names the run, one of weights a domain.", resolve_path=True)
]
Metrics = Annotated[Path, typer.Option(help="CSV: the run, one column a metric (lower is better).", resolve_path=True)]
Metric = Annotated[list[str] | None, typer.Option("--metric", help="Use this metric; repeatable. Default: all losses.")]


Maximise = Annotated[bool, typer.Option("--maximise", help="The metrics are better when they are higher.")]


def fit(mixtures: Mixtures, metrics: Metrics, metric: Metric = None, maximise: Maximise = False) -> None:
    """Cross-validate surrogates of the loss on runs you have (the tables RegMix and Olmix publish).

    Example: [b]align-ray fit --mixtures ratios.csv --metrics metrics.csv[/b]
    """

    def work() -> dict[str, Any]:
        from align_ray.mixture.surrogates import SURROGATES, cross_validated, default_surrogate

        runs = _runs(mixtures, metrics, metric, maximise)
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
    maximise: Maximise = False,
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

        runs = _runs(mixtures, metrics, metric, maximise)
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
            shown = -value if maximise else value
            out.print(
                f"{name}: predicted {shown:.4f} (rank correlation on runs left out {quality[name]:.3f})",
                highlight=False,
            )
        return {
            "surrogate": proposal.surrogate, "runs": len(runs.ids), "weights": weights, "predicted": proposal.predicted,
            "rank_correlation": _or_none(quality),
        }  # fmt: skip

    guard(work)


def score(
    config: Path_,
    mixtures: Annotated[
        Path,
        typer.Option(help="CSV: first column a mixture's name, one column of weights a candidate.", resolve_path=True),
    ],
    set_: Set = None,
) -> None:
    """Rank mixtures you have in mind by what a study holds, without training.

    Example: [b]align-ray score study.yaml --mixtures shortlist.csv[/b]
    """

    def work() -> dict[str, Any]:
        from align_ray.mixture.score import read_mixtures, score_mixtures
        from align_ray.pipeline import evidence_of

        opened = study_of(config, set_)
        given = read_mixtures(mixtures, [c.name for c in opened.config.candidates])
        found = score_mixtures(opened, evidence_of(opened), given)
        first = found["objective"]
        others = [name for name in next(iter(found["mixtures"].values()))["objectives"] if name != first]
        table = plain_table(f"mixtures by {first}, best first")
        table.add_column("mixture", overflow="fold")
        for column in (first, "less uniform's", "95%", "alignment", *others, "most epochs", ""):
            table.add_column(column, justify="right", no_wrap=True)
        for name, row in found["mixtures"].items():
            value, lead = row["objectives"][first], row["objectives"][first]["lead"]
            table.add_row(
                name, f"{value['value']:.4f}", f"{lead['value']:+.4f}", f"[{lead['low']:+.4f}, {lead['high']:+.4f}]",
                f"{row['alignment']['value']:.4f}", *(f"{row['objectives'][o]['value']:.4f}" for o in others),
                f"{max(row['epochs'].values()):.2f}", "" if row["feasible"] else "beyond the constraints",
            )  # fmt: skip
        out.print(table)
        out.print("all columns but epochs: higher is better; 95%: from halves of the batches", highlight=False)
        return found

    guard(work)


def _or_none(correlations: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN, which is the correlation with a metric that does not vary."""
    return {name: None if math.isnan(value) else value for name, value in correlations.items()}


def _runs(mixtures: Path, metrics: Path, metric: list[str] | None, maximise: bool) -> Any:
    from align_ray.mixture.runs import read_runs

    runs = read_runs(mixtures, metrics, metric, maximise)
    for line in runs.notes:
        out.print(f"note: {line}", highlight=False, markup=False, soft_wrap=True)
    return runs
