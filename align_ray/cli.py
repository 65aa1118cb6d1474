"""The command line. Exit status: 0 done, 1 a stage failed, 2 the input is wrong (one sentence says what)."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from align_ray.errors import UserError

app = typer.Typer(
    add_completion=True, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, help=__doc__
)
out, err = Console(), Console(stderr=True)

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


def _table(title: str) -> Table:
    """A table narrow enough for 80 columns."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)


def show_ranking(study: Any) -> None:
    """Print the ranked table of every target from what is stored."""
    from align_ray.pipeline import stored

    alignment = stored(study, "align")
    finetuned = (stored(study, "finetune") or {"runs": {}})["runs"]
    for target, rows in alignment["predicted"]["ranking"].items():
        by_name = {row["candidate"]: row for row in alignment["ranking"][target]}
        table = _table(f"candidates for {target}, best first")
        table.add_column("candidate", no_wrap=True)
        extra = ("loss", "change") if finetuned else ("corrected", "P(best)", "batches")
        for column in ("x-ent", "P(>next)", "align", "95% interval", *extra):
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            p, aligned = "" if row["adjusted"] is None else f"{row['adjusted']:.3f}", by_name[row["candidate"]]
            interval = f"{aligned['low']:.4f}-{aligned['high']:.4f}"
            cells = (row["candidate"], f"{row['value']:.3f}", p, f"{aligned['value']:.4f}", interval)
            after = finetuned.get(row["candidate"], {}).get("targets", {}).get(target)
            table.add_row(*cells, *(_loss(after) if finetuned else _comparison(row, aligned)))
        for name in ("mixture", "uniform"):
            if name in finetuned:
                table.add_row(f"[i]{name}[/i]", "", "", "", "", *_loss(finetuned[name]["targets"][target]))
        out.print(table)
        lines = [
            f"x-ent: nats per token of {target} under the candidate's unigram model; it ranks, as it predicts",
            "losses best (docs/study.md). P(>next): adjusted for all comparisons.",
            f"align: the paper's coefficient; its ceiling, 1 - div({target}), is {alignment['ceiling'][target]['value']:.4f}",
        ]
        if finetuned:
            before = next(iter(finetuned.values()))["targets"][target]["before"]
            lines.append(f"loss: nats per token on held-out {target}, {before:.4f} before fine-tuning")
        else:
            lines.append("corrected: align without label noise; batches: per corpus, to tell the row from the next")
        out.print("\n".join(lines), highlight=False)


def _comparison(row: dict, aligned: dict) -> tuple[str, str, str]:
    corrected = "" if aligned["corrected"] is None else f"{aligned['corrected']['value']:.4f}"
    return corrected, f"{row['p_best']:.3f}", "" if row["separate"] is None else f"{row['separate']:,}"


def _loss(row: dict | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    error = f" ±{1.96 * row['change_error']:.3f}" if row["change_error"] else ""
    return f"{row['after']:.4f}", f"{row['change']:+.3f}{error}"


def show_mixture(study: Any) -> None:
    """Print the chosen mixture from what is stored."""
    search = study.store.read_json("search.json")
    best = search["mixtures"][search["chosen"]]
    shares = ", ".join(f"{n} {100 * w:.1f}%" for n, w in best["weights"].items() if w >= 0.005)
    a, u = best["alignment"], search["mixtures"]["uniform"]["alignment"]
    out.print(f"mixture ({search['chosen']}): {shares}", highlight=False)
    out.print(
        f"pooled alignment {a['value']:.4f} [{a['low']:.4f}, {a['high']:.4f}], uniform {u['value']:.4f} [{u['low']:.4f}, {u['high']:.4f}]",
        highlight=False, markup=False,
    )  # fmt: skip


def _run(config: Path | None, overrides: list[str] | None) -> None:
    from align_ray import pipeline

    study = _study(config, overrides)
    where = pipeline.run(study)
    show_ranking(study)
    show_mixture(study)
    out.print(f"report: {where}\nMLflow: {pipeline.tracking(study).uri}", highlight=False, soft_wrap=True)


@app.command()
def run(config: Path_, set_: Set = None) -> None:
    """Run the whole study: embed, align, search, finetune, report.

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


def show_noise(study: Any, floor: float) -> None:
    """Print every corpus' noise floor from what is stored, and what would bring it to `floor`."""
    from align_ray.noise import needed
    from align_ray.pipeline import stored

    alignment = stored(study, "align")
    table = _table(f"label noise ({alignment['measure']} rows)")
    table.add_column("corpus", no_wrap=True)
    for column in ("floor of d", "95% interval", "share of div", f"draws for {floor:g}", f"sequences for {floor:g}"):
        table.add_column(column, justify="right")
    for name, noise in alignment["noise"].items():
        if not noise["floor"]:
            table.add_row(name, "unknown: set embedding.draws to 2 or more", "", "", "", "")
            continue
        want = needed(noise, floor)
        f = noise["floor"]
        counts = (f"{noise['share']:.0%}", str(want["draws"]), str(want["sequences"]))
        table.add_row(name, f"{f['value']:.4f}", f"{f['low']:.4f}-{f['high']:.4f}", *counts)
    out.print(table)
    first = next(iter(alignment["noise"].values()))
    out.print(
        f"floor: the same batch of {first['sequences']} sequences under new labels, {first['draws']} draws averaged",
        highlight=False,
    )


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


def show_prediction(study: Any) -> None:
    """Print how well the leading measures predict the losses, from what is stored."""
    from align_ray.pipeline import stored
    from align_ray.study_report import leading_measures

    result = stored(study, "predict")
    for tokens, setting in result["settings"].items():
        results, versus = setting["results"]["others"], setting["versus"]["others"]
        table = _table(f"{tokens} tokens: rank correlation with the loss within a target, its own corpus left out")
        table.add_column("measure", max_width=44)
        for column in ("Spearman", "95% interval", "regret@1", "less best cheap"):
            table.add_column(column, justify="right", no_wrap=True)
        for name in sorted(leading_measures(result, tokens), key=lambda n: -results[n]["spearman"]["value"]):
            q, gap = results[name]["spearman"], versus["difference"].get(name)
            low_high = f"{q['low']:.2f}-{q['high']:.2f}"
            table.add_row(
                name,
                f"{q['value']:.2f}",
                low_high,
                f"{results[name]['regret']['value']:.3f}",
                f"{gap['value']:+.2f}" if gap else "",
            )
        out.print(table)
        out.print(f"best cheap baseline: {versus['baseline']}", highlight=False)
    out.print(f"tables and plots: {study.store.uri}/study.md", highlight=False, soft_wrap=True)


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
        table = _table("agreement of rankings (Kendall's W)")
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


def show_published() -> None:
    """Print the re-analysis of the paper's published points."""
    from align_ray.published import reanalyse

    found = reanalyse()
    points = found["pretraining"]
    table = _table("pre-training, 3 training sets x 8 evaluation sets (arXiv 2501.08496)")
    table.add_column("statistic", no_wrap=True)
    for column in ("points", "r", "r²", "p"):
        table.add_column(column, justify="right")
    rows = {
        "pooled (the paper's)": points["pooled"],
        "without the in-domain evaluation sets": points["without_in_domain"],
        "within evaluation sets": points["within"],
    }
    for name, q in rows.items():
        table.add_row(name, str(q["points"]), f"{q['r']:+.3f}", f"{q['r2']:.3f}", f"{q['p']:.2g}")
    out.print(table)
    picks = points["picks"]
    out.print(
        f"Spearman, pooled: {points['pooled']['spearman']:+.3f}; the most aligned training set has the lowest loss on "
        f"{sum(picks.values())} of {len(picks)} evaluation sets",
        highlight=False,
    )
    table = _table("gzip alignment with ProofNet against loss after fine-tuning, 7 data sets")
    for column in ("model", "r, all", "r², all", "r, without own", "r², without own"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for run, q in found["gzip"].items():
        table.add_row(
            run, *(f"{q[k][v]:+.3f}" if v == "r" else f"{q[k][v]:.3f}" for k in ("all", "without_own") for v in ("r", "r2"))
        )
    out.print(table)


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
