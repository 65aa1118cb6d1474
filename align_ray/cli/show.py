"""What the command line prints: tables narrow enough for 80 columns, from what the stages returned."""

from typing import TYPE_CHECKING, Any

from rich.text import Text

from align_ray.reporting.tables import out, plain_table

if TYPE_CHECKING:  # the command line must not wait for torch and pandas
    from align_ray.context import Study
    from align_ray.reporting.result import Result
    from align_ray.reporting.results import Alignment, Prediction
    from align_ray.reporting.trained import Finetuned
    from align_ray.reporting.values import Change, Ranked


def show_ranking(alignment: "Alignment", finetuned: "Finetuned | None" = None) -> None:
    """Print the ranked table of every target, with the losses after fine-tuning where there are any."""
    runs = finetuned.runs if finetuned else {}
    for target, rows in alignment.predicted.ranking.items():
        by_name = {row.candidate: row for row in alignment.ranking[target]}
        table = plain_table(f"candidates for {target}, best first")
        table.add_column("candidate", overflow="fold")
        extra = ("loss", "change") if runs else ("corrected", "P(best)", "batches")
        for column in ("x-ent", "P(>next)", "align", "95% interval", *extra):
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            p = "" if row.p_above_next is None else f"{row.p_above_next:.3f}{'*' if row.settled else ' '}"
            aligned = by_name[row.candidate]
            interval = f"{aligned.low:.4f}-{aligned.high:.4f}"
            cells = (row.candidate, f"{row.value:.3f}", p, f"{aligned.value:.4f}", interval)
            after = runs[row.candidate].targets.get(target) if row.candidate in runs else None
            table.add_row(*cells, *(_loss(after) if runs else _comparison(row, aligned)))
        for few in alignment.predicted.unranked.get(target, []):
            table.add_row(f"{few.candidate} (no rank)", f"{few.value:.3f}", "", "", "", "", "")
        for name in ("mixture", "uniform"):
            if name in runs:
                table.add_row(Text(name, "italic"), "", "", "", "", *_loss(runs[name].targets[target]))
        out.print(table)
        counted = f" of {alignment.predicted.tokens:,} tokens" if alignment.predicted.tokens else ""
        lines = [
            f"x-ent: nats per token of {target},",
            f"under the candidate's unigram model{counted}; it ranks them: of the",
            "cheap measures it predicts the loss best (docs/study.md). P(>next): the",
            "probability that it is below the next one's, given the batches seen;",
            "*: that order is settled at 95%, adjusted for all comparisons.",
            f"align: the paper's coefficient; its ceiling, 1 - div({target}), is {alignment.ceiling[target].value:.4f}",
        ]
        if runs:
            before = next(iter(runs.values())).targets[target].before
            lines.append(f"loss: nats per token on held-out {target}, {before:.4f} before fine-tuning")
            lines += finetuned.conditions() if finetuned else []
        else:
            lines.append("corrected: align without label noise; batches: per corpus, to tell the row from the next")
        lines += [
            f"no rank: {few.candidate} holds {few.tokens:,} tokens, and its model is counted on these"
            for few in alignment.predicted.unranked.get(target, [])
        ]
        out.print("\n".join(lines), highlight=False)


def _comparison(row: "Ranked", aligned: "Ranked") -> tuple[str, str, str]:
    corrected = "" if aligned.corrected is None else f"{aligned.corrected.value:.4f}"
    return corrected, f"{row.p_best:.3f}", "" if row.separate is None else f"{row.separate:,}"


def _loss(row: "Change | None") -> tuple[str, str]:
    if row is None:
        return "", ""
    error = f" ±{row.change_high - row.change:.3f}" if row.change_high is not None else ""
    return f"{row.after:.4f}", f"{row.change:+.3f}{error}"


def show_result(result: "Result") -> None:
    """Print what a stage returned: its tables, and what their columns are."""
    for table in result.tables():
        out.print(table)
    for line in result.notes():
        out.print(line, highlight=False)


def show_noise(alignment: "Alignment", floor: float) -> None:
    """Print every corpus' noise floor, and what would bring it to `floor`."""
    from align_ray.alignment.noise import needed

    table = plain_table(f"label noise ({alignment.measure} rows)")
    table.add_column("corpus", no_wrap=True)
    for column in ("floor of d", "95% interval", "share of div", f"draws for {floor:g}", f"sequences for {floor:g}"):
        table.add_column(column, justify="right")
    for name, noise in alignment.noise.items():
        if noise.floor is None or noise.share is None:
            table.add_row(name, "unknown: set embedding.draws to 2 or more", "", "", "", "")
            continue
        want = needed(noise.model_dump(), floor)
        interval = f"{noise.floor.low:.4f}-{noise.floor.high:.4f}"
        counts = (f"{noise.share:.0%}", str(want["draws"]), str(want["sequences"]))
        table.add_row(name, f"{noise.floor.value:.4f}", interval, *counts)
    out.print(table)
    first = next(iter(alignment.noise.values()))
    draws = f"{first.draws} draws averaged"
    out.print(f"floor: the same batch of {first.sequences} sequences under new labels, {draws}", highlight=False)


def show_prediction(result: "Prediction", folder: str) -> None:
    """Print how well the leading measures predict the losses; `folder`: where study.md is."""
    from align_ray.checks.page import leading_measures

    for tokens, setting in result.settings.items():
        results, versus = setting.results["others"], setting.versus["others"]
        table = plain_table(f"{tokens} tokens: rank correlation with the loss within a target, its own corpus left out")
        table.add_column("measure", max_width=44)
        for column in ("Spearman", "95% interval", "regret@1", "less best cheap"):
            table.add_column(column, justify="right", no_wrap=True)
        for name in sorted(leading_measures(result, tokens), key=lambda n: -results[n].spearman.value):
            q, gap = results[name].spearman, versus.difference.get(name)
            cells = (f"{q.value:.2f}", f"{q.low:.2f}-{q.high:.2f}", f"{results[name].regret.value:.3f}")
            table.add_row(name, *cells, f"{gap.value:+.2f}" if gap else "")
        out.print(table)
        out.print(f"best cheap baseline: {versus.baseline}", highlight=False)
    out.print(f"tables and plots: {folder}/study.md", highlight=False, soft_wrap=True)


def show_plan(study: "Study", plan: dict[str, Any]) -> None:
    """Print what a run would read and do, and what that costs (see `estimate.estimate`)."""
    from align_ray.corpora.contents import size_of

    config = study.config
    table = plain_table("corpora")
    table.add_column("corpus", overflow="fold")
    table.add_column("role")
    table.add_column("to read", justify="right")
    table.add_column("source", overflow="fold")
    for corpus in config.read:
        size = plan["corpora"][corpus.name]
        role = "target" if corpus in config.targets else "replay" if corpus == config.replay else "candidate"
        table.add_row(corpus.name, role, f"{size / 1e6:,.1f} MB" if size else "unknown", corpus.where)
    out.print(table)
    priced = config.cost.price_per_hour is not None
    table = plain_table("at most (stored results are not computed again)")
    table.add_column("stage")
    for column in ("tokens", "worker-hours", *([plan["currency"]] if priced else [])):
        table.add_column(column, justify="right")
    for stage, row in plan["stages"].items():
        name = f"{stage} (if asked for)" if stage == "validate" else stage
        table.add_row(name, f"{row['tokens']:,}", *_spent(row, priced))
        for rung in plan["rungs"] if stage == "choose" else []:
            reached = f"  to {rung['share']:.0%} of each training"
            table.add_row(reached, "", f"{rung['worker_seconds'] / 3600:.3f}", style="dim")
    of_run = [row for stage, row in plan["stages"].items() if stage != "validate"]
    total = {k: sum(row[k] or 0 for row in of_run) for k in ("tokens", "worker_seconds", "cost")}
    table.add_row("run", f"{total['tokens']:,}", *_spent(total, priced), style="bold")
    out.print(table)
    rate, memory, kept = plan["rate"], plan["memory"], plan["kept"]
    there = f" of {memory['there'] / 1e9:.1f}" if memory["there"] else ""
    cap = f"; stops at {config.cost.max_cost:g} {plan['currency']}" if config.cost.max_cost else ""
    lines = [
        f"about {_time(plan['seconds'])} {_where(plan)}",
        f"a worker embeds {rate['tokens_per_second']:,.0f} tokens/s "
        f"({rate['tflops']:.3g} TFLOP/s, {rate['source']}){cap}",
        f"a training needs {memory['total'] / 1e9:.2f}{there} GB of a worker's memory, by formula",
    ]
    made = plan["embeddings"]
    lines.append(
        f"embeddings: {made['entries']:,} filters of the probe, {size_of(4 * made['numbers'])} a batch, "
        f"{size_of(made['bytes'])} in all"
    )
    if kept.get("weights"):
        lines.append(f"kept weights: {size_of(kept['bytes'])} at most, of {kept['weights']} trainings")
    if kept.get("states"):
        lines.append(
            f"state of trainings that wait for their next rung: {size_of(kept['state_bytes'])} at most, of "
            f"{kept['states']}; gone when they end"
        )
    out.print("\n".join([*lines, f"output: {study.store.uri}"]), highlight=False, soft_wrap=True)


def _time(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def _where(plan: dict[str, Any]) -> str:
    import os

    if plan["workers"] is None:
        return "on one worker of the cluster; more of them share the work"
    here = f"on these {os.cpu_count()} cores" if plan["rate"]["device"] == "CPU" else "on this machine's GPUs"
    return f"{here} ({plan['workers']} worker{'s' * (plan['workers'] > 1)})"


def _spent(row: dict[str, Any], priced: bool) -> list[str]:
    hours = f"{row['worker_seconds'] / 3600:.3f}"
    return [hours, "" if row["cost"] is None else f"{row['cost']:.2f}"] if priced else [hours]


def show_costs(study: "Study") -> None:
    """Print what every stage has cost beside what was estimated; money where a worker has a price."""
    from align_ray.spending import costs

    planned, table = study.store.read_json("estimate.json"), plain_table("cost of this run")
    money = [planned["currency"]] if study.config.cost.price_per_hour is not None else []
    table.add_column("stage")
    for column in ("seconds", "worker-hours", "estimated", *(part for unit in money for part in (unit, "estimated"))):
        table.add_column(column, justify="right")
    for stage, row in costs(study.store).items():
        before = _spent(planned["stages"][stage], bool(money)) if stage in planned["stages"] else ["", ""]
        pairs = zip(_spent(row, bool(money)), before, strict=False)
        table.add_row(stage, f"{row['seconds']:.1f}", *(cell for pair in pairs for cell in pair))
    out.print(table)


def show_published() -> dict[str, Any]:
    """Print the re-analysis of the paper's published points, and return it."""
    from align_ray.checks.published import reanalyse

    found = reanalyse()
    points = found["pretraining"]
    table = plain_table("pre-training, 3 training sets x 8 evaluation sets (arXiv 2501.08496)")
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
    table = plain_table("gzip alignment with ProofNet against loss after fine-tuning, 7 data sets")
    for column in ("model", "r, all", "r², all", "r, without own", "r², without own"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for run, q in found["gzip"].items():
        table.add_row(
            run,
            *(f"{q[k][v]:+.3f}" if v == "r" else f"{q[k][v]:.3f}" for k in ("all", "without_own") for v in ("r", "r2")),
        )
    out.print(table)
    return found
