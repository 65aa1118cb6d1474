"""Choose training data by its alignment with what the model will be evaluated on.

Exit status: 0 done, 1 a stage failed, 2 the input is wrong (one sentence says what), 3 stopped at cost.max_cost.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from align_ray.cli import answers as cli_answers
from align_ray.cli import init as cli_init
from align_ray.cli import mixture as cli_mixture
from align_ray.cli import select as cli_select
from align_ray.cli import ui as cli_ui
from align_ray.cli.common import OptionsAnywhere, Path_, Set, guard, set_output, study_of
from align_ray.cli.show import (
    show_costs,
    show_noise,
    show_plan,
    show_prediction,
    show_published,
    show_ranking,
    show_result,
)
from align_ray.errors import CapReached, UserError
from align_ray.reporting.tables import out, plain_table

if TYPE_CHECKING:
    from align_ray.context import Study
    from align_ray.reporting.values import Verdict

app = typer.Typer(
    cls=OptionsAnywhere,
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.callback(help=__doc__)(set_output)

START = "Start here"
STAGES = "One stage, from what earlier ones stored"
ANSWERS = "Look at answers"
DOUBT = "Doubt the answer"
HAND_OVER = "Hand the mixture over"
OWN = "Mixtures and runs of your own"


def _run(config: Path | None, overrides: list[str] | None) -> dict[str, Any]:
    from align_ray import pipeline
    from align_ray.answers import answer_id, answers
    from align_ray.reporting.headline import headline
    from align_ray.reporting.tracking import tracking_uri
    from align_ray.stages import need, stored

    study = study_of(config, overrides)
    earlier = answers(study.store)
    try:
        where = pipeline.run(study)
    except CapReached as stop:
        _show_verdict(study, str(stop))
        if chosen := stored(study, pipeline.choose) if study.config.choose.by == "training" else None:
            show_result(chosen)
        if aligned := stored(study, pipeline.align):
            show_ranking(aligned, stored(study, pipeline.finetune))
        raise
    aligned, mixture, trained = (
        need(study, pipeline.align),
        stored(study, pipeline.search),
        stored(study, pipeline.finetune),
    )
    chosen = stored(study, pipeline.choose) if study.config.choose.by == "training" else None
    results: dict[str, Any] = {"search": mixture, "finetune": trained, "validation": stored(study, pipeline.validate)}
    said = headline({name: found for name, found in results.items() if found})
    if said:
        out.print(said, style="bold", highlight=False)
    first = {"headline": said, "verdict": _show_verdict(study).model_dump()} if mixture else {}
    if chosen:
        show_result(chosen)
    show_ranking(aligned, trained)
    if mixture:
        out.print(f"for {study.config.search.token_budget:,} tokens:", highlight=False)
        show_result(mixture)
    show_costs(study)
    now = next((answer for answer in answers(study.store) if answer.id == answer_id(study.config)), None)
    if earlier and now:
        cli_answers.say_what_changed(earlier[0], now)
    uri = tracking_uri(study.config)
    out.print(f"report: {where}\nMLflow: {uri}", highlight=False, soft_wrap=True)
    found = {"alignment": aligned, **({"choice": chosen} if chosen else {}), "search": mixture, "finetune": trained}
    dumped = {name: result and result.dump() for name, result in found.items()}
    return {**first, "report": where, "mlflow": uri, **dumped}


def _show_verdict(study: "Study", stopped: str = "") -> "Verdict":
    """Print the study's verdict, and give it; `stopped`: what ended the run before its trainings."""
    from align_ray import pipeline
    from align_ray.reporting.trained import verdict_of
    from align_ray.stages import stored

    verdict = verdict_of({one.file: stored(study, one) for one in (pipeline.finetune, pipeline.validate)}, stopped)
    out.print(Text.assemble((f"verdict: {verdict.state}", "bold"), f": {verdict.why}"))
    return verdict


def _plan(config: Path | None, overrides: list[str] | None) -> dict[str, Any]:
    from align_ray import pipeline

    study = study_of(config, overrides, write=False)
    plan = pipeline.plan(study)
    show_plan(study, plan)
    return plan


@app.command(rich_help_panel=START)
def run(
    config: Path_,
    set_: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the configuration and show the plan and its cost; start nothing.")
    ] = False,
) -> None:
    """Run the whole study: embed, align, contamination, samples, choose (by training), search, finetune, report.

    Example: [b]align-ray run study.yaml --set seed=1[/b]
    """
    guard(lambda: (_plan if dry_run else _run)(config, set_))


@app.command(rich_help_panel=START)
def demo(set_: Set = None) -> None:
    """Run the embedded default: no configuration, no download, no GPU.

    Example: [b]align-ray demo --set output=runs/seed1 --set seed=1[/b]
    """
    guard(lambda: _run(None, set_))


def _print(study: "Study", result: Any) -> None:
    show_result(result)


def _stage(
    name: str,
    config: Path,
    overrides: list[str] | None,
    show: "Callable[[Study, Any], None]" = lambda study, result: None,
    *arguments: Any,
) -> None:
    """Run the stage of that name, print its result and give it as JSON."""
    from align_ray import pipeline

    def work() -> Any:
        study = study_of(config, overrides)
        result = getattr(pipeline, name)(study, *arguments)
        show(study, result)
        return result.dump()

    guard(work)


@app.command(rich_help_panel=STAGES)
def embed(config: Path_, set_: Set = None) -> None:
    """Draw the corpora and compute their missing Fisher embeddings.

    Example: [b]align-ray embed study.yaml[/b]
    """
    _stage("embed", config, set_, _print)


@app.command(rich_help_panel=STAGES)
def align(
    config: Path_,
    noise_floor: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=0.999,
            help="Show how much of the distances is label noise too, and what reaches this floor of d.",
        ),
    ] = None,
    set_: Set = None,
) -> None:
    """Alignment coefficients with intervals, from stored embeddings.

    Example: [b]align-ray align study.yaml --noise-floor 0.01[/b]
    """

    def show(study: Any, result: Any) -> None:
        from align_ray.pipeline import finetune
        from align_ray.stages import stored

        show_ranking(result, stored(study, finetune))
        if noise_floor is not None:
            show_noise(result, noise_floor)

    _stage("align", config, set_, show)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True})
def noise(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """A command of version 0.1: now `align --noise-floor`."""

    def refuse() -> None:
        raise UserError("the command 'noise' was removed in 0.2.0; use align-ray align CONFIG --noise-floor 0.02.")

    guard(refuse)


@app.command(rich_help_panel=STAGES)
def contamination(
    config: Path_,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Read only the first candidates of every target's ranking (after `align`)."),
    ] = None,
    set_: Set = None,
) -> None:
    """Find text that candidates share with the targets, and what their ranks are without it.

    Example: [b]align-ray contamination study.yaml --top 20[/b]
    """
    _stage("contamination", config, set_, _print, top)


@app.command(rich_help_panel=STAGES)
def samples(config: Path_, set_: Set = None) -> None:
    """Score single sequences of every corpus: the most and the least aligned ones of the report.

    Example: [b]align-ray samples study.yaml[/b]
    """
    _stage("samples", config, set_, _print)


@app.command(rich_help_panel=STAGES)
def choose(config: Path_, set_: Set = None) -> None:
    """Compare candidates by short trainings: all are trained a little, those that may be best go on.

    Example: [b]align-ray choose study.yaml --set choose.by=training[/b]
    """
    _stage("choose", config, set_, _print)


@app.command(rich_help_panel=STAGES)
def search(config: Path_, set_: Set = None) -> None:
    """Search the mixture weights, from stored embeddings.

    Example: [b]align-ray search study.yaml --set search.token_budget=50000000[/b]
    """
    _stage("search", config, set_, _print)


@app.command(rich_help_panel=STAGES)
def finetune(config: Path_, set_: Set = None) -> None:
    """Fine-tune on every candidate, the found mixture and the uniform one.

    Example: [b]align-ray finetune study.yaml --set finetune.tokens=100000[/b]
    """
    _stage("finetune", config, set_, _print)


@app.command(rich_help_panel=STAGES)
def report(config: Path_, set_: Set = None) -> None:
    """Write the HTML report from what is stored.

    Example: [b]align-ray report study.yaml[/b]
    """

    def work() -> dict[str, str]:
        from align_ray import pipeline

        where = pipeline.report(study_of(config, set_))
        out.print(f"report: {where}", highlight=False, soft_wrap=True)
        return {"report": where}

    guard(work)


@app.command(rich_help_panel=DOUBT)
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
    _stage("validate", config, set_, _print, tuple(mixture or ()))


@app.command(rich_help_panel=DOUBT)
def robustness(
    config: Path_,
    probe: Annotated[list[str] | None, typer.Option(help="A further probe, as probe.model; repeatable.")] = None,
    reference: Annotated[bool, typer.Option("--reference", help="The published procedure as well (slow).")] = False,
    set_: Set = None,
) -> None:
    """Rank agreement over seeds, batch sizes, sequence lengths, probes, estimators, rows and layers.

    Example: [b]align-ray robustness study.yaml --probe smollm2[/b]
    """

    def work() -> Any:
        from align_ray.checks.robustness import robustness as agreement
        from align_ray.stages import charged

        opened = study_of(config, set_)
        with charged(opened, "robustness"):
            result = agreement(opened, probe or [], reference)
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
        return result

    guard(work)


@app.command(rich_help_panel=DOUBT)
def study(
    config: Annotated[Path | None, typer.Argument(help="The study's configuration (YAML).")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Analyse the paper's published points instead.")
    ] = False,
    set_: Set = None,
) -> None:
    """Does alignment predict the loss? Train on every candidate, compare all measures and cheap baselines.

    Example: [b]align-ray study studies/finetune-small.yaml[/b]
    """
    if published:
        return guard(show_published)
    if config is None:
        raise typer.BadParameter("name a configuration, or --published")

    def work() -> Any:
        from align_ray import pipeline

        opened = study_of(config, set_)
        pipeline.predict.check(opened)
        pipeline.embed(opened)
        result = pipeline.predict(opened)
        show_prediction(result, opened.store.uri)
        return result.dump()

    guard(work)


COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    START: {"init": cli_init.init, "doctor": cli_init.doctor},
    ANSWERS: {"list": cli_answers.list_, "compare": cli_answers.compare, "ui": cli_ui.ui},
    HAND_OVER: {"export": cli_mixture.export, "materialise": cli_mixture.materialise, "select": cli_select.select},
    OWN: {"score": cli_mixture.score, "fit": cli_mixture.fit, "propose": cli_mixture.propose},
}
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)


def job(stage: str) -> None:
    """Entry point of jobs/STAGE.py: `--config FILE [--set FIELD=VALUE ...]` runs `align-ray STAGE FILE ...`."""

    def command(
        config: Annotated[Path, typer.Option(help="The study's configuration (YAML).")], set_: Set = None
    ) -> None:
        if stage == "run":
            guard(lambda: _run(config, set_))
        else:
            globals()[stage](config, set_=set_)

    typer.run(command)
