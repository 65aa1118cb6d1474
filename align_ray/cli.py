"""The command line. Exit status: 0 done, 1 a stage failed, 2 the input is wrong (one sentence says what)."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from align_ray.errors import UserError
from align_ray.terminal import (
    out,
    plain_table,
    show_contamination,
    show_mixture,
    show_noise,
    show_prediction,
    show_published,
    show_ranking,
    show_validation,
)

app = typer.Typer(
    add_completion=True, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, help=__doc__
)
err = Console(stderr=True)

Path_ = Annotated[Path, typer.Argument(help="The study's configuration (YAML).", metavar="CONFIG")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, for example search.trials=8.")
]


def _study(config: Path | None, overrides: list[str] | None) -> Any:
    from align_ray.config import load_config
    from align_ray.errors import ConfigError
    from align_ray.pipeline import open_study

    values = {}
    for item in overrides or []:
        field, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: write FIELD=VALUE.")
        values[field] = yaml.safe_load(value)
    return open_study(load_config(config, values), say=lambda line: out.print(line, highlight=False))


def _guard(work: Callable[[], None]) -> None:
    """A user's mistake is one sentence and exit status 2."""
    try:
        work()
    except UserError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _run(config: Path | None, overrides: list[str] | None) -> None:
    from align_ray import pipeline

    study = _study(config, overrides)
    where = pipeline.run(study)
    show_ranking(study)
    show_mixture(study)
    out.print(f"report: {where}\nMLflow: {pipeline.tracking(study).uri}", highlight=False, soft_wrap=True)


@app.command()
def run(config: Path_, set_: Set = None) -> None:
    """Run the whole study: embed, align, contamination, search, finetune, report.

    Example: [b]align-ray run study.yaml --set seed=1[/b]
    """
    _guard(lambda: _run(config, set_))


@app.command()
def demo(set_: Set = None) -> None:
    """Run the embedded default: no configuration, no download, no GPU.

    Example: [b]align-ray demo --set output=runs/seed1 --set seed=1[/b]
    """
    _guard(lambda: _run(None, set_))


def _stage(name: str, config: Path, overrides: list[str] | None, show: Callable[[Any], None] | None = None) -> None:
    from align_ray import pipeline

    def work() -> None:
        study = _study(config, overrides)
        result = getattr(pipeline, name)(study)
        if show:
            show(study)
        if name == "report":
            out.print(f"report: {result}", highlight=False, soft_wrap=True)

    _guard(work)


@app.command()
def embed(config: Path_, set_: Set = None) -> None:
    """Draw the corpora and compute their missing Fisher embeddings.

    Example: [b]align-ray embed study.yaml[/b]
    """
    _stage("embed", config, set_)


@app.command()
def align(config: Path_, set_: Set = None) -> None:
    """Alignment coefficients with intervals, from stored embeddings.

    Example: [b]align-ray align study.yaml[/b]
    """
    _stage("align", config, set_, show_ranking)


@app.command()
def noise(
    config: Path_,
    floor: Annotated[float, typer.Option(min=1e-6, max=0.999, help="The noise floor of d to reach.")] = 0.02,
    set_: Set = None,
) -> None:
    """How much of the distances is label noise, and what reaches a lower floor; from stored embeddings.

    Example: [b]align-ray noise study.yaml --floor 0.01[/b]
    """
    _stage("align", config, set_, lambda study: show_noise(study, floor))


@app.command()
def contamination(config: Path_, set_: Set = None) -> None:
    """Find text that candidates share with the targets, and what their ranks are without it.

    Example: [b]align-ray contamination study.yaml[/b]
    """
    _stage("contamination", config, set_, show_contamination)


@app.command()
def search(config: Path_, set_: Set = None) -> None:
    """Search the mixture weights, from stored embeddings.

    Example: [b]align-ray search study.yaml --set search.token_budget=50000000[/b]
    """
    _stage("search", config, set_, show_mixture)


@app.command()
def finetune(config: Path_, set_: Set = None) -> None:
    """Fine-tune on every candidate, the found mixture and the uniform one.

    Example: [b]align-ray finetune study.yaml --set finetune.tokens=100000[/b]
    """
    _stage("finetune", config, set_)


@app.command()
def report(config: Path_, set_: Set = None) -> None:
    """Write the HTML report from what is stored.

    Example: [b]align-ray report study.yaml[/b]
    """
    _stage("report", config, set_)


@app.command()
def validate(
    config: Path_,
    mixture: Annotated[
        list[str] | None, typer.Option(help="A further mixture of the search, for example 'by kl'; repeatable.")
    ] = None,
    set_: Set = None,
) -> None:
    """Train on the proposed mixture and on uniform, proportional, UniMax, best single, MixMin, DSIR and a bad one.

    Example: [b]align-ray validate study.yaml --set finetune.seeds=5[/b]
    """
    from align_ray import pipeline

    def work() -> None:
        opened = _study(config, set_)
        pipeline.validate(opened, tuple(mixture or ()))
        show_validation(opened)

    _guard(work)


Recipe = Annotated[Path, typer.Argument(help="recipe.json of a study.", metavar="RECIPE")]
Tokenizer = Annotated[
    str | None, typer.Option(help="The trainer's tokenizer, as probe.model; refused where it is not the recipe's.")
]
Force = Annotated[bool, typer.Option("--force", help="Use the recipe with another tokenizer.")]


@app.command()
def export(
    recipe: Recipe,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="One of: huggingface, trl, llama-factory, ms-swift, axolotl, megatron, olmo, levanter, nanotron, regmix, doremi, ray.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(help="Folder with the trainer's copies of the corpora by name (trl, axolotl: the materialised shards)."),
    ] = "",
    file: Annotated[Path | None, typer.Option("--out", help="Default: the format's usual name, beside the recipe.")] = None,
    tokenizer: Tokenizer = None,
    force: Force = False,
) -> None:
    """Write the mixture in a trainer's own format.

    Example: [b]align-ray export runs/demo/recipe.json --format megatron --data /data/bin[/b]
    """

    def work() -> None:
        from align_ray.errors import ConfigError
        from align_ray.export import EXPORTERS
        from align_ray.recipes import check_tokenizer, read_recipe

        if format_ not in EXPORTERS:
            raise ConfigError(f"--format {format_}: choose one of {', '.join(EXPORTERS)}.")
        found, exporter = read_recipe(recipe), EXPORTERS[format_]
        if tokenizer:
            check_tokenizer(found, tokenizer, force)
        path = file or recipe.with_name(exporter.file)
        path.write_text(exporter.write(found, data), encoding="utf-8")
        out.print(f"{path} (weights count {exporter.unit})", highlight=False, soft_wrap=True)

    _guard(work)


@app.command()
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

    def work() -> None:
        from align_ray import pipeline
        from align_ray.config import Probe
        from align_ray.materialise import materialise as write_shards
        from align_ray.probe import locate_probe
        from align_ray.recipes import check_tokenizer
        from align_ray.runtime import connect
        from align_ray.store import Store

        opened = _study(config, set_)
        recipe = pipeline.recipe(opened)
        if tokenizer:
            check_tokenizer(recipe, tokenizer, force)
        located = locate_probe(Probe(model=tokenizer)) if tokenizer else opened.probe
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

    _guard(work)


Mixtures = Annotated[Path, typer.Option(help="CSV: first column the run, one column of weights a domain.")]
Metrics = Annotated[Path, typer.Option(help="CSV: first column the run, one column a metric (lower is better).")]
Metric = Annotated[list[str] | None, typer.Option("--metric", help="Use this metric; repeatable. Default: all.")]


@app.command()
def fit(mixtures: Mixtures, metrics: Metrics, metric: Metric = None) -> None:
    """Cross-validate surrogates of the loss on runs you have (the tables RegMix and Olmix publish).

    Example: [b]align-ray fit --mixtures ratios.csv --metrics metrics.csv[/b]
    """

    def work() -> None:
        from align_ray.surrogates import SURROGATES, cross_validated, default_surrogate

        runs = _runs(mixtures, metrics, metric)
        table = plain_table(f"{len(runs.ids)} runs, {len(runs.domains)} domains: rank correlation on runs left out")
        table.add_column("metric", overflow="fold")
        for kind in SURROGATES:
            table.add_column(kind, justify="right", no_wrap=True)
        for name, values in runs.metrics.items():
            table.add_row(name, *(f"{cross_validated(runs.weights, values, kind):.3f}" for kind in SURROGATES))
        out.print(table)
        if runs.renormalised:
            out.print(f"{runs.renormalised} runs had weights that did not sum to 1 within 0.1%; renormalised", highlight=False)
        out.print(f"default for so many runs: {default_surrogate(len(runs.ids))}", highlight=False)

    _guard(work)


@app.command()
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
            help="A study whose candidates and constraints are used, and whose embeddings join the weights as content coordinates; it must hold the runs' domains."
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

    def work() -> None:
        from align_ray.own_runs import propose_from_runs

        runs = _runs(mixtures, metrics, metric)
        opened = _study(study, set_) if study else None
        limits, proposal = propose_from_runs(runs, surrogate, opened, prior_strength)
        table = plain_table(f"mixture proposed by {proposal.surrogate} from {len(runs.ids)} runs")
        table.add_column("corpus", overflow="fold")
        table.add_column("weight", justify="right", no_wrap=True)
        for name, w in sorted(zip(limits.names, proposal.weights, strict=True), key=lambda item: -item[1]):
            table.add_row(name, f"{w:.2%}")
        out.print(table)
        for name, value in proposal.predicted.items():
            quality = proposal.quality[proposal.surrogate][name]
            out.print(f"{name}: predicted {value:.4f} (rank correlation on runs left out {quality:.3f})", highlight=False)

    _guard(work)


def _runs(mixtures: Path, metrics: Path, metric: list[str] | None) -> Any:
    import dataclasses

    from align_ray.errors import ConfigError
    from align_ray.surrogates import read_runs

    runs = read_runs(mixtures, metrics)
    for name in metric or []:
        if name not in runs.metrics:
            raise ConfigError(f"--metric {name}: {metrics} has {', '.join(runs.metrics)}.")
    return dataclasses.replace(runs, metrics={m: runs.metrics[m] for m in metric}) if metric else runs


@app.command()
def robustness(
    config: Path_,
    probe: Annotated[list[str] | None, typer.Option(help="A further probe, as probe.model; repeatable.")] = None,
    reference: Annotated[bool, typer.Option("--reference", help="The published procedure as well (slow).")] = False,
    set_: Set = None,
) -> None:
    """Rank agreement over seeds, batch sizes, sequence lengths, probes, estimators, rows and layers.

    Example: [b]align-ray robustness study.yaml --probe smollm2[/b]
    """

    def work() -> None:
        from align_ray.robustness import robustness as agreement
        from align_ray.runtime import connect

        opened = _study(config, set_)
        connect(opened.config.cluster)
        result = agreement(opened.config, probe or [], reference, opened.say)
        opened.store.write_json("robustness.json", result)
        table = plain_table("agreement of rankings (Kendall's W)")
        table.add_column("axis", no_wrap=True)
        table.add_column("variants")
        for column in ("W, mean", "W, lowest", "lowest Spearman"):
            table.add_column(column, justify="right")
        for axis, found in result["axes"].items():
            w = list(found["w"].values())
            cells = (f"{sum(w) / len(w):.3f}", f"{min(w):.3f}", f"{found['least']:.3f}")
            table.add_row(axis, ", ".join(found["variants"]), *cells)
        out.print(table)
        out.print("over targets; Spearman: of any variant with the first one", highlight=False)

    _guard(work)


@app.command()
def study(
    config: Annotated[Path | None, typer.Argument(help="The study's configuration (YAML).")] = None,
    published: Annotated[bool, typer.Option("--published", help="Analyse the paper's published points instead.")] = False,
    set_: Set = None,
) -> None:
    """Does alignment predict the loss? Train on every candidate, compare all measures and cheap baselines.

    Example: [b]align-ray study studies/finetune-small.yaml[/b]
    """
    if published:
        return show_published()
    if config is None:
        raise typer.BadParameter("name a configuration, or --published")

    def work() -> None:
        from align_ray import pipeline

        opened = _study(config, set_)
        pipeline.embed(opened)
        pipeline.predict(opened)
        show_prediction(opened)

    _guard(work)


def job(stage: str) -> None:
    """Entry point of jobs/STAGE.py: `--config FILE [--set FIELD=VALUE ...]` runs `align-ray STAGE FILE ...`."""

    def command(config: Annotated[Path, typer.Option(help="The study's configuration (YAML).")], set_: Set = None) -> None:
        if stage == "run":
            _guard(lambda: _run(config, set_))
        else:
            globals()[stage](config, set_=set_)

    typer.run(command)
