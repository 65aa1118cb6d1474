"""The report in a real browser: what it shows is what is stored, and it can be used with a mouse, a keyboard and a
screen reader."""

import json
import re
import shutil
from collections import defaultdict

import numpy as np
import pytest
import yaml

from align_ray.config import Config
from align_ray.reporting.choices import Choice
from align_ray.reporting.derived import compared, derived, loss_against_task
from align_ray.reporting.figures import (
    SERIES,
    bars_figure,
    budgets_figure,
    parallel_figure,
    samples_figure,
    task_figure,
)
from align_ray.reporting.page import render_report
from align_ray.reporting.results import Mixture, Samples
from align_ray.reporting.values import AtBudget
from tests.stored_study import CANDIDATES, HOSTILE, KINDS, TARGETS, TASKED, study, typed


@pytest.fixture(scope="module")
def stored():
    return study()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(stored, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(*typed(*stored)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing them is most of the time that a page takes, and not the point of tests that read its text."""
    monkeypatch.setattr("align_ray.reporting.page.all_figures", lambda *_: defaultdict(str))


def opener(browser, address):
    """A function that opens the report, then whatever went wrong: nothing may be asked of a network, and no error be
    logged."""
    contexts, trouble = [], []

    def open_page(width=1400, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url) if request.url != address else None)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture
def opened(browser, address):
    yield from opener(browser, address)


@pytest.fixture(scope="module")
def page(browser, address):
    """One page for all tests that need no special one: what they touch does not meet."""
    pages = opener(browser, address)
    yield next(pages)()
    with pytest.raises(StopIteration):
        next(pages)


def tree(stored):
    """What paths on the page lead into; what is derived from results is computed here anew."""
    config, results = stored
    mixtures, runs = results["search"]["mixtures"], results["finetune"]["runs"]
    finetuned, losses, bars, trust = {}, {}, {}, {}
    for t in TARGETS:
        ours, uniform = runs["mixture"]["targets"][t], runs["uniform"]["targets"][t]
        paired = results["finetune"]["uniform_less_mixture"][t]
        finetuned[t] = {"value": uniform["after"] - ours["after"], "low": paired["low"], "high": paired["high"]}
        pooled = {row["candidate"]: row["pooled"]["value"] for row in results["alignment"]["ranking"][t]}
        words = {row["candidate"]: row["value"] for row in results["alignment"]["predicted"]["ranking"][t]}
        aligned = {row["candidate"]: -row["value"] for row in results["alignment"]["ranking"][t]}
        x = [pooled[n] for n in CANDIDATES]
        after = {n: runs[n]["targets"][t]["after"] for n in CANDIDATES}
        y = list(after.values())
        r = np.corrcoef(x, y)[0, 1]
        low, high = np.tanh(np.arctanh(r) + np.array([-1, 1]) * 1.959963985 / np.sqrt(len(x) - 3))
        all_x = x + [mixtures[k]["alignment"]["value"] for k in ("uniform", "recommended")]
        losses[t] = {
            "r": {"r": r, "low": low, "high": high, "points": len(x)},
            "points": [
                {
                    "alignment": v,
                    "words": words.get(name),
                    "bits_per_byte": run["targets"][t]["after"] / 3.5 / np.log(2),
                }
                for v, (name, run) in zip(all_x, runs.items(), strict=True)
            ],
        }
        changes = {n: run["targets"][t] for n, run in runs.items()}
        bars[t] = {
            "rows": [
                {"value": c["change"], "low": c["change_low"], "high": c["change_high"]}
                for c in sorted(changes.values(), key=lambda c: c["change"])
            ]
        }
        trust[t] = _trust(after, {"words": words, "alignment": aligned})
    value = {n: m["value"] - mixtures["uniform"]["value"] for n, m in mixtures.items()}
    measured = {n: m["loss"]["all"]["value"] for n, m in results["validation"]["mixtures"].items()}
    order = sorted(mixtures, key=lambda n: (n not in measured, measured.get(n, -value[n])))
    tasks = sorted(runs, key=lambda n: -runs[n]["targets"][TASKED]["task"]["score"]["value"])
    of_loss = [
        (runs[n]["targets"][TASKED]["after"], runs[n]["targets"][TASKED]["task"]["score"]["value"]) for n in runs
    ]
    of_loss += [
        (results["validation"]["mixtures"]["bad"]["loss"][TASKED]["value"],
         results["validation"]["mixtures"]["bad"]["task"][TASKED]["score"]["value"])
    ]  # fmt: skip
    pairs = [(a, b) for i, a in enumerate(of_loss) for b in of_loss[i + 1 :]]
    alike = sum((a[0] < b[0]) == (a[1] > b[1]) for a, b in pairs)
    of_tasks = {n: typed(config, results)[1][n].task_remarks() for n in ("finetune", "validation")}
    assert f"'{tasks[0]}' by the task" in str(of_tasks["finetune"])
    derived = {
        "tasks": {TASKED: {"pairs": len(pairs), "alike": alike}},
        "of_tasks": of_tasks,
        "gain": mixtures["recommended"]["value"] - mixtures["uniform"]["value"],
        "price": mixtures["unconstrained"]["value"] - mixtures["closed_form"]["value"],
        "finetuned": finetuned,
        "beyond": [_beyond(t, results["finetune"]["extrapolation"][t]) for t in TARGETS]
        + ["the extrapolation foresees no repetition; at the budget some text is seen with 'mixture' 3.8 times"],
        "verdict": results["validation"]["verdict"],
        "headline": _headline(mixtures["recommended"]["weights"], results["validation"]["verdict"]),
        "losses": losses,
        "bars": bars,
        "trust": trust,
        "compared": [{"gain": value[n], "most_epochs": max(mixtures[n]["epochs"].values())} for n in order],
        "facts": {"base": "embedded", "date": "2026-01-02 03:04 UTC", "version": "9.9.9", "machine": "1 node, 2 CPUs"},
        "embedding_rate": 7168 / 30,
        "actual": {"seconds": 22.75},
        "estimated": {"tokens": 7168, "worker_seconds": 12.5, "cost": 0.0043},
    }
    return {**results, "config": config.model_dump(mode="json"), "derived": derived}


def _beyond(target, found):
    runs = found["runs"]
    now, then = (max(runs, key=lambda n: runs[n][p]) for p in ("p_best", "p_best_at_budget"))
    loss = runs[then]["expected"][-1]
    assert loss["tokens"] == 10_000 and runs[then]["p_best_at_budget"] < 0.9 < runs[now]["p_best"]
    return (
        f"{target}: after 512 tokens '{now}' has the lowest loss with P = {runs[now]['p_best']:.3f}, settled up to "
        f"{found['holds_to']:,} tokens. Extrapolated to 10,000 tokens, not measured: '{then}' with P = "
        f"{runs[then]['p_best_at_budget']:.3f}, loss {loss['value']:.4f} [{loss['low']:.4f}, {loss['high']:.4f}]; the "
        "order is not settled at the budget"
    )


def _trust(judge, others):
    """Places by hand and Spearman's correlation by numpy, of measures where lower is better."""
    place = {m: {n: sorted(v.values()).index(v[n]) + 1 for n in v} for m, v in {"loss": judge, **others}.items()}
    rows = [{"candidate": n, **{m: place[m][n] for m in place}} for n in sorted(judge, key=judge.get)]
    measures, lines = {}, []
    for m, values in others.items():
        r = np.corrcoef([place[m][n] for n in judge], [place["loss"][n] for n in judge])[0, 1]
        reach = 1.959963985 * np.sqrt((1 + r**2 / 2) / (len(judge) - 3))
        low, high = np.tanh(np.arctanh(r) + np.array([-reach, reach]))
        regret = judge[min(values, key=values.get)] - min(judge.values())
        measures[m] = {"spearman": {"value": r, "low": low, "high": high}, "regret": regret}
    for row in rows:
        far = [f"place {row[m]} by {m}" for m in others if abs(row[m] - row["loss"]) >= 2]
        lines += [f"{row['candidate']}: place {row['loss']} by measured loss, {' and '.join(far)}"] if far else []
    return {"rows": rows, "measures": measures, "disagree": lines}


def _headline(weights, verdict):
    shares = [f"{w:.0%} {name}" for name, w in sorted(weights.items(), key=lambda item: -item[1]) if w >= 0.005]
    assert verdict["state"] == "confirmed" and len(shares) == 4
    uniform = verdict["against"]["uniform"]
    return (
        f"Train on {', '.join(shares[:-1])} and {shares[-1]}; measured {uniform['value']:.4f} nats per token below "
        f"uniform, P(lower) = {1 - uniform['p_lower']:.3f}: confirmed."
    )


def until(page, condition):
    """Wait for an expression; the page's policy forbids what `wait_for_function` does when it is not true at once."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def lookup(value, path):
    for part in path.split("/"):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def shown(page):
    """(path, value attribute or None, text) of everything on the page that is a stored value."""
    return page.evaluate(
        "[...document.querySelectorAll('[data-path]')].map((e) => [e.dataset.path, e.getAttribute('value'), e.textContent])"
    )


def check(stored, items):
    whole = tree(stored)
    for path, value, text in items:
        wanted = lookup(whole, path)
        if value is None:
            assert text == wanted, path
            continue
        assert float(value) == pytest.approx(wanted, rel=1e-7, abs=1e-12), path
        check_digits(text, wanted)


def check_digits(text, wanted):
    """The text is the number, rounded to the digits it has."""
    digits = text.replace(",", "").replace("%", "")
    unit = 10.0 ** -len(re.sub(r"e.*", "", digits).partition(".")[2])
    if "e" in digits:
        unit *= 10.0 ** int(digits.partition("e")[2])
    assert float(digits) == pytest.approx(wanted * (100 if "%" in text else 1), abs=0.5001 * unit), text


def test_one_sentence_comes_first_then_what_was_measured_and_statistics_are_folded_away(page):
    headline = page.locator("#answer h2")
    assert headline.inner_text().startswith("Train on 52% exercises, 22% library")
    assert "confirmed" in headline.get_attribute("class")
    assert page.locator("#answer .verdict").count() == 0, "a confirmed one is in the sentence"
    assert page.locator("#answer .shares").is_visible() and page.locator("#answer svg").first.is_visible()
    assert not page.locator("#answer dl").is_visible()
    assert page.locator("#statistics dd").first.text_content() == "Confirmed: it is so."


def test_the_head_says_when_where_and_with_what(page):
    assert page.locator(".facts span:not([data-path])").all_inner_texts() == [
        "2026-01-02 03:04 UTC",
        "align-ray 9.9.9",
        "seed 0",
        "base embedded",
        "budget 10,000 tokens",
        "1 node, 2 CPUs",
    ]


@pytest.mark.parametrize(
    ("left", "state", "why"),
    [
        (("validation", "finetune"), "Confirmed", "it is so"),
        (("finetune",), "Undecided", "it may be so"),
        ((), "Not tested", "no training on the mixture"),
    ],
)
def test_a_study_has_one_verdict_and_without_trainings_none(stored, no_figures, left, state, why):
    config, results = stored
    kept = {name: value for name, value in results.items() if name in left or name not in ("validation", "finetune")}
    html = render_report(*typed(config, kept))
    assert f"<b>{state}</b>" in html and why in html
    assert ("Recommended mixture</h3>" in html) == (state == "Confirmed")
    assert ('<p class="verdict' in html) == (state != "Confirmed")


def test_every_number_of_the_answer_and_the_tables_is_the_stored_one(stored, page):
    items = shown(page)
    check(stored, items)
    paths = {path for path, _, _ in items}
    sections = {path.partition("/")[0] for path in paths}
    assert sections == {*stored[1], "config", "derived"}, "every result is on the page"
    assert {f"search/mixtures/recommended/weights/{n}" for n in CANDIDATES} <= paths


def test_no_number_reaches_the_answer_or_a_table_but_with_the_path_of_what_is_stored(page):
    left = page.evaluate("""() => [...document.querySelectorAll('#answer p, #answer li, td')].map((element) => {
        const copy = element.cloneNode(true);
        copy.querySelectorAll('[data-path], [data-half], .name').forEach((e) => e.remove());
        return element.classList.contains('name') ? '' : copy.textContent;
    }).filter((text) => /[0-9]/.test(text))""")
    assert left == []


def test_the_answer_comes_first_and_says_mixture_gain_confidence_limits_and_warnings(stored, page):
    assert page.locator("main > section").first.get_attribute("id") == "answer"
    answer = page.locator("#answer")
    assert answer.locator("dt").all_text_contents() == [
        "Verdict",
        "Measured: held-out loss",
        "By the objective",
        "Confidence",
        "What limits it",
        "Single candidates",
    ]
    weights = stored[1]["search"]["mixtures"]["recommended"]["weights"]
    order = sorted((n for n in weights if weights[n] >= 0.005), key=lambda n: -weights[n])
    assert answer.locator(".shares .name").all_text_contents() == order
    binding = [n for n, w in stored[1]["search"]["weights"].items() if w["binds"]]
    assert binding and all(n in answer.locator("dd").nth(-2).text_content() for n in binding)
    assert (
        answer.locator(".warning").all_text_contents()
        == [
            f"{line}." for n in ("finetune", "validation") for line in typed(*stored)[1][n].tasks() if "WARNING" in line
        ]
        + [f"{line}." for line in typed(*stored)[1]["finetune"].better_alone()]
        + stored[1]["search"]["warnings"]
        + stored[1]["contamination"]["warnings"]
    )


def test_what_lies_beyond_the_tokens_trained_is_dashed_and_named_for_what_it_is(stored, page):
    section = page.locator("#beyond")
    assert section.locator("figure svg").count() == len(TARGETS)
    for target, found in stored[1]["finetune"]["extrapolation"].items():
        figure, table = page.locator(f"#beyond-{target}"), page.locator(f"#beyond-table-{target}")
        assert "extrapolated, not measured" in figure.text_content()
        assert figure.locator("path[style*='stroke-dasharray']").count() >= 2, "the mixture and the uniform one"
        assert "extrapolated, not measured" in table.locator("th").all_inner_texts()[3]
        assert table.locator("tbody tr").count() == len(found["runs"])
    without = {**stored[1], "finetune": {k: v for k, v in stored[1]["finetune"].items() if k != "extrapolation"}}
    assert 'id="beyond"' not in render_report(*typed(stored[0], without)), "an earlier version has trained"


def test_text_of_the_data_stays_text(page):
    assert page.title() == "align-ray: two-targets"
    assert page.locator("pre", has_text="excerpt 1").first.text_content() == f"{HOSTILE} excerpt 1"
    assert page.locator("img").count() == 0


def test_the_slider_moves_along_the_stored_front_by_keyboard(stored, page):
    front = stored[1]["search"]["pareto"]
    slider = page.get_by_role("slider", name="Weight of the targets")
    slider.focus()
    slider.press("Home")
    seen = []
    for step in range(len(front)):
        point = front[step]
        texts = dict(
            zip(CANDIDATES, page.locator("#front-weights tbody td:nth-child(2)").all_text_contents(), strict=True)
        )
        assert texts == {n: f"{100 * w:.1f}%" for n, w in point["weights"].items()}
        assert page.locator("#front-targets tbody td:nth-child(3)").all_text_contents() == [
            f"{v:.4f}" for v in point["values"].values()
        ]
        spoken = slider.get_attribute("aria-valuetext")
        assert all(
            f"{t}: {100 * point['target_weights'][t]:.1f}%" in spoken and f"{point['values'][t]:.4f}" in spoken
            for t in TARGETS
        )
        chosen = page.evaluate("[...document.querySelectorAll('#front-0 .chosen')].map((e) => e.id)")
        assert chosen == [f"front-0-point-{step}"]
        widest = page.locator("#front-weights .bar").first.evaluate("e => parseFloat(e.style.width)")
        assert widest == pytest.approx(100 * point["weights"]["textbook"], abs=0.051)
        check(stored, shown(page))
        seen.append(spoken)
        slider.press("ArrowRight")
    assert len(set(seen)) == len(front) == 11
    assert slider.input_value() == "10", "the last point is the end"


def test_tables_sort_both_ways_by_keyboard_and_say_so(page):
    head = page.locator("#weights-table thead th", has_text="weight").first
    button = head.get_by_role("button")

    def values():
        return page.evaluate(
            "[...document.querySelectorAll('#weights-table tbody td:nth-child(2) data')].map((e) => Number(e.value))"
        )

    assert head.get_attribute("aria-sort") is None
    button.focus()
    button.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and values() == sorted(values())
    button.press("Space")
    assert head.get_attribute("aria-sort") == "descending" and values() == sorted(values(), reverse=True)
    other = page.locator("#weights-table thead th", has_text="corpus")
    other.get_by_role("button").click()
    names = page.locator("#weights-table tbody th").all_text_contents()
    assert names == sorted(CANDIDATES) and head.get_attribute("aria-sort") is None
    assert page.locator("table:not(.sortable)").count() == 0


def test_rows_without_a_value_stay_last_in_both_directions(page):
    head = page.locator("#weights-table thead th", has_text="with a tenth more")
    for _ in range(2):
        head.get_by_role("button").click()
        cells = page.locator("#weights-table tbody td:nth-child(8)").all_text_contents()
        assert cells[0] != "" and cells[-1] == ""


def test_the_heat_map_is_a_table_with_alike_corpora_beside_each_other_and_darker(stored, page):
    names = page.locator("#matrix-table tbody th").all_text_contents()
    assert sorted(names) == sorted(KINDS) and names != list(KINDS)
    assert abs(names.index("code") - names.index("library")) == 1, "the closest corpora are neighbours"
    cells = page.evaluate(
        "[...document.querySelectorAll('#matrix-table tbody td')].map((c) => [c.querySelector('data').dataset.path, c.style.getPropertyValue('--v')])"
    )
    matrix = stored[1]["alignment"]["matrix"]
    values = {path: lookup({"alignment": {"matrix": matrix}}, path.rpartition("/")[0])["value"] for path, _ in cells}
    shades = [float(shade) for _, shade in sorted(cells, key=lambda cell: values[cell[0]])]
    assert len(cells) == len(KINDS) ** 2 and shades == sorted(shades) and (shades[0], shades[-1]) == (0, 1)
    halves = page.evaluate(
        "[...document.querySelectorAll('[data-half]')].map((e) => [e.dataset.half, e.value, e.textContent])"
    )
    for path, value, text in halves:
        cell = lookup({"alignment": {"matrix": matrix}}, path)
        assert float(value) == pytest.approx(cell["high"] - cell["value"])
        check_digits(text, cell["high"] - cell["value"])


@pytest.mark.parametrize("allowed", [True, False])
def test_the_configuration_can_be_copied_with_and_without_the_clipboards_interface(stored, opened, allowed):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    if not allowed:  # as on pages where the browser offers none
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied.").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    assert Config.model_validate(yaml.safe_load(text)) == stored[0] and text == stored[0].to_yaml()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_never_scrolls_sideways_and_text_keeps_its_contrast(opened, scheme):
    page = opened(width=420, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    low = page.evaluate("""() => {
        const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map((v) => v / (c.startsWith('color(') ? 1 : 255)).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const under = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } };
        const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
        const html = [...document.querySelectorAll('p, td, th, caption, li, dt, a, button, summary, pre, .note, label, h1, h2, h3, h4')]
            .filter((e) => e.checkVisibility()).map((e) => [contrast(getComputedStyle(e).color, under(e)), e.outerHTML.slice(0, 80)]);
        const paper = getComputedStyle(document.body).backgroundColor;
        const plots = [...document.querySelectorAll('svg text')].map((t) => [contrast(getComputedStyle(t).fill, under(t)), t.textContent]);
        return [html.length, plots.length, [...html, ...plots].filter(([c]) => !(c >= 4.5))];
    }""")
    assert low[0] > 100 and low[1] > 50 and low[2] == []


def test_figures_follow_the_scheme_and_are_light_on_paper_with_everything_open(opened):
    page = opened(color_scheme="light")
    colour = "getComputedStyle(document.querySelector('#weights svg text')).fill"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(colour) != light
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(colour) == light
    page.evaluate(
        "window.seen = null; addEventListener('beforeprint', () => (window.seen = document.querySelectorAll('details:not([open])').length))"
    )
    page.pdf(format="A4")
    assert page.evaluate("window.seen") == 0, "all is open on paper"
    assert page.locator("details:not([open])").count() > 0, "and folded again afterwards"


def test_a_box_that_is_too_wide_says_that_it_scrolls(opened):
    said = "getComputedStyle(document.querySelector('.scroll:has(#mixtures)'), '::before').content"
    assert "Scroll sideways" in opened(width=420).evaluate(said)
    assert opened(width=2400).evaluate(said) == "none"


def test_the_page_is_small_and_needs_no_script_for_its_figures(browser, stored, tmp_path):
    html = render_report(*typed(*stored))
    assert len(html.encode()) < 800_000
    (tmp_path / "report.html").write_text(html)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("[role=img]").count() == page.locator("[role=img] svg").count() > 5
    context.close()


def test_headings_landmarks_captions_and_figures_speak_to_a_screen_reader(page):
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map((h) => Number(h.tagName[1]))")
    assert (
        levels[0] == 1
        and levels.count(1) == 1
        and all(b - a <= 1 for a, b in zip(levels[:-1], levels[1:], strict=True))
    )
    assert [page.get_by_role(role).count() for role in ("main", "navigation", "banner")] == [1, 1, 1]
    figures = page.locator("[role=img]").all()
    assert len(figures) == 5 + 4 * len(TARGETS), (
        "tree, weights, budgets, front, task; bars, loss, beyond and samples by target"
    )
    for figure in figures:
        assert (
            figure.get_attribute("aria-label")
            and page.locator(f"[id='{figure.get_attribute('aria-describedby')}']").count() == 1
        )
        assert page.locator(f"table[id='{figure.get_attribute('aria-details')}']").count() == 1, (
            "its numbers are in a table"
        )
        assert figure.locator("svg").count() > 0
    bare = "table:not(:has(> caption)), thead th:not([scope=col]), tbody th:not([scope=row]), [role=region]:not([aria-label]):not([aria-labelledby])"
    assert page.locator(bare).count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    wanted = page.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].map((a) => a.hash.slice(1))")
    assert set(wanted) <= set(ids)


def test_the_first_tab_stop_skips_to_the_answer(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_without_search_and_trainings_the_ranking_is_the_answer(stored, no_figures):
    config, results = stored
    html = render_report(*typed(config, {name: results[name] for name in ("corpora", "alignment", "cost")}))
    assert (
        "of all candidates' unigram models its own gives the target the lowest cross-entropy" in html
        and 'id="mixture"' not in html
        and 'id="front-slider"' not in html
    )


def test_general_text_that_is_read_but_not_embedded_has_a_row_without_the_probes_loss(stored, no_figures):
    config, results = stored
    general = {"role": "replay", "documents": 77, "estimated_tokens": 9000, "batches": 0}
    html = render_report(*typed(config, {**results, "corpora": {**results["corpora"], "general": general}}))
    (row,) = re.findall(r'<tr><th scope="row" class="name">general</th>.*?</tr>', html)
    assert "77" in row and "not embedded" in row


def test_a_corpus_without_a_finite_score_is_named_and_left_out_of_figure_and_table(stored):
    config, results = stored
    nothing = {"of": 0, "quantiles": [], "most": [], "least": []}
    samples = {**results["samples"], "news": {"role": "candidate", "targets": dict.fromkeys(TARGETS, nothing)}}
    html = render_report(*typed(config, {**results, "samples": samples}))
    assert html.count("no sequence of it has a finite alignment") == len(TARGETS)
    drawn = [t.get_text() for t in samples_figure(Samples.parse(samples), TARGETS[0]).axes[0].get_yticklabels()]
    medians = [samples[name]["targets"][TARGETS[0]]["quantiles"][2] for name in drawn]
    assert sorted(drawn) == sorted(set(KINDS) - {"news"}) and medians == sorted(medians, reverse=True)
    only = {name: {**s, "targets": dict.fromkeys(TARGETS, nothing)} for name, s in samples.items()}
    assert (
        samples_figure(Samples.parse(only), TARGETS[0]) is None
        and samples_figure(Samples.parse({}), TARGETS[0]) is None
    )
    assert render_report(*typed(config, {**results, "samples": only})).count("is left out:") == len(TARGETS) * len(
        KINDS
    )
    assert "Samples of text" not in render_report(*typed(config, {**results, "samples": {}}))


def test_three_targets_give_a_choice_of_pairs_each_from_one_end_to_the_other():
    from align_ray.reporting.figures import front_pairs

    def point(*shares):
        return {"target_weights": dict(zip("abc", shares, strict=True)), "weights": {}, "values": {}}

    def found(front):
        return Mixture.parse({"mixtures": {}, "weights": {}, "caps": {}, "pareto": front})

    front = [point(1, 0, 0), point(0.5, 0.5, 0), point(0, 1, 0), point(0.5, 0, 0.5), point(0, 0, 1), point(0, 0.5, 0.5)]
    assert front_pairs(found(front)) == [
        {"targets": ["a", "b"], "points": [0, 1, 2]},
        {"targets": ["a", "c"], "points": [0, 3, 4]},
        {"targets": ["b", "c"], "points": [2, 5, 4]},
    ]
    assert front_pairs(found([])) == []


def test_mixtures_come_by_measured_loss_then_by_the_objective_and_those_beyond_the_limits_are_marked(stored, page):
    names = page.locator("#mixtures tbody th").all_text_contents()
    results = stored[1]
    measured = {n: m["loss"]["all"]["value"] for n, m in results["validation"]["mixtures"].items()}
    assert len(names) == len(results["search"]["mixtures"])
    assert names[: len(measured)] == [
        {"unimax": "UniMax", "bad": "worst on purpose"}.get(n, n) for n in sorted(measured, key=measured.get)
    ]
    caps = results["search"]["caps"]
    beyond = page.locator("#mixtures tr.infeasible th").all_text_contents()
    weights = {n: m["weights"] for n, m in results["search"]["mixtures"].items()}
    assert "uniform" in beyond and any(weights["uniform"][n] > cap for n, cap in caps.items())
    assert "recommended" not in beyond and "optimum" not in beyond
    assert all(text for text in page.locator("#mixtures td.words").all_text_contents()), "each is explained"
    assert page.locator("#mixture-weights tbody tr").count() == len(names)


def test_a_mixture_that_only_finetune_measured_has_that_loss(stored):
    config, results = stored
    config, found, _ = typed(config, {n: v for n, v in results.items() if n != "validation"})
    runs = found["finetune"].runs
    mean = {n: np.mean([loss.after for loss in runs[n].targets.values()]) for n in runs}
    rows = {row["key"]: row["loss"] for row in compared(config, found)}
    assert rows["recommended"] == pytest.approx(mean["mixture"]) and rows["uniform"] == pytest.approx(mean["uniform"])
    (alone,) = (n for n, w in found["search"].mixtures["best_single"].weights.items() if w == 1)
    assert rows["best_single"] == pytest.approx(mean[alone]) and rows["dsir" if "dsir" in rows else "bad"] is None


def test_without_trainings_the_bars_are_by_words_and_no_measure_is_judged(stored, no_figures):
    config, results = stored
    kept = {n: v for n, v in results.items() if n not in ("finetune", "validation")}
    more = derived(*typed(config, kept))
    for target in TARGETS:
        ranking = results["alignment"]["predicted"]["ranking"][target]
        assert [row["name"] for row in more["bars"][target]["rows"]] == [row["candidate"] for row in ranking]
        assert more["bars"][target]["kind"] == "words" and more["trust"][target]["judge"] is None
    assert "Nothing was trained" in render_report(*typed(config, kept))


def test_estimated_totals_are_of_what_ran(stored):
    config, results = stored
    assert set(results["estimate"]["stages"]) == {"embed", "search"} and "search" not in results["cost"]
    more = derived(*typed(config, results))
    assert more["estimated"] == {k: results["estimate"]["stages"]["embed"][k] for k in more["estimated"]}


def test_candidates_chosen_by_training_are_the_bars_and_the_judge_where_few_were_trained_to_the_end(stored, no_figures):
    config, results = stored
    config, found, costs = typed(config, {n: v for n, v in results.items() if n != "validation"})
    believed = {
        n: {"value": 4.0 + 0.1 * i, "error": 0.1, "low": 3.9 + 0.1 * i, "high": 4.3 + 0.1 * i, "tokens": 512}
        | {"p_best": 0.5, "p_within": 0.6, "regret": 0.1 * i}
        for i, n in enumerate(CANDIDATES)
    }
    standings = {"state": "settled", "why": "it is clear", "before": 4.4, "candidates": believed}
    choice = {"targets": dict.fromkeys(TARGETS, standings), "tokens": 512, "spent": 900, "exhaustive": 2560}
    found["choice"] = Choice.parse({**choice, "learning_rate": 1e-4, "delta": 0.01})
    few = {n: found["finetune"].runs[n] for n in ("textbook", "uniform", "mixture")}
    found["finetune"] = found["finetune"].model_copy(update={"runs": few, "extrapolation": {}})
    more = derived(config, found, costs)
    for target in TARGETS:
        rows, trust = more["bars"][target]["rows"], more["trust"][target]
        measured, expected = rows[:3], rows[3:]
        assert [row["label"] for row in expected] == [f"{name}, expected" for name in CANDIDATES]
        assert [expected[0][end] for end in ("value", "low", "high")] == pytest.approx([-0.4, -0.5, -0.1])
        assert {row["label"]: row["value"] for row in measured} == {
            f"{name}, measured": run.targets[target].change for name, run in few.items()
        }
        assert trust["judge"] == "choice" and [row["choice"] for row in trust["rows"]] == [1, 2, 3, 4, 5]
        assert set(trust["measures"]) == {"words", "alignment"}
    html = render_report(config, found, costs)
    assert "Measured, and expected by training: proofs" in html and "expected at the end of a whole training" in html
    assert "task: score, nats per byte" not in html and "of_tasks" not in html.partition('id="choice"')[2]
    scored = stored[1]["finetune"]["runs"]["news"]["targets"][TASKED]["task"]
    few_scored = {n: {**row, "task": scored} if n in CANDIDATES[:2] else row for n, row in believed.items()}
    with_tasks = choice | {"targets": {**choice["targets"], TASKED: standings | {"candidates": few_scored}}}
    of_choice = Choice.parse({**with_tasks, "learning_rate": 1e-4, "delta": 0.01})
    table = render_report(config, {**found, "choice": of_choice}, costs).partition(f'id="choice-{TASKED}"')[2]
    rows = [row.count("<td>") for row in table.partition("</table>")[0].split("<tr>")[2:]]
    assert rows == [7] * 5 and f"choice/targets/{TASKED}/candidates/textbook/task/score/value" in table
    figure = bars_figure(more["bars"][target])
    filled = [bar.get_facecolor()[3] > 0 for bar in figure.axes[0].patches]
    assert filled == [True] * 3 + [False] * len(CANDIDATES), "what is expected is an outline"
    del found["finetune"]
    bars = derived(config, found, costs)["bars"][target]
    assert [row["label"] for row in bars["rows"]] == list(CANDIDATES) and bars["kind"] == "expected"
    html = render_report(config, found, costs)
    assert "Candidates by training: proofs" in html and "Full bar" not in html


def test_a_study_of_two_candidates_shows_what_was_measured(stored, no_figures):
    config, results = stored
    config, found, costs = typed(config, {n: v for n, v in results.items() if n != "validation"})
    few = {n: run for n, run in found["finetune"].runs.items() if n in (*CANDIDATES[:2], "uniform", "mixture")}
    found["finetune"] = found["finetune"].model_copy(update={"runs": few, "extrapolation": {}})
    more = derived(config, found, costs)
    assert {more["bars"][target]["kind"] for target in TARGETS} == {"measured"}
    assert len(more["bars"][TARGETS[0]]["rows"]) == 4 and "Nothing was trained" not in render_report(
        config, found, costs
    )


def test_a_gain_below_zero_is_in_the_picture_and_named_for_what_it_is(stored):
    config, results = stored
    search = typed(config, results)[1]["search"]
    first, second = {**results["search"]["budgets"][0], "gain": -0.02}, {**results["search"]["budgets"][1], "gain": 0.1}
    search = search.model_copy(update={"budgets": [AtBudget(**first), AtBudget(**second)]})
    right = budgets_figure(search, prior=True).axes[1]
    assert right.get_ylim()[0] < -0.02 and right.get_ylabel() == "objective above UniMax's,\nwithout the prior"
    search = search.model_copy(update={"budgets": [AtBudget(**{**first, "gain": 0.05}), AtBudget(**second)]})
    right = budgets_figure(search, prior=False).axes[1]
    assert right.get_ylim()[0] == 0 and "prior" not in right.get_ylabel()


def test_mixtures_that_were_trained_on_are_a_line_each_the_best_one_in_a_colour_of_its_own():
    rng = np.random.default_rng(0)
    weights = [dict(zip("abc", w, strict=True)) for w in rng.dirichlet(np.ones(3), 6)]
    tried = [{"weights": w, "loss": 3 + w["a"]} for w in weights]
    axes, by_loss = parallel_figure(tried).axes
    best = min(tried, key=lambda t: t["loss"])
    lines = {line.get_color(): list(line.get_ydata()) for line in axes.lines}
    assert len(axes.lines) == 6 and lines.pop(SERIES[1]) == list(best["weights"].values())
    assert sorted(y for line in by_loss.lines for y in line.get_ydata()) == sorted(t["loss"] for t in tried)
    assert parallel_figure(tried[:4]) is None, "too few for a picture"


def test_a_mixture_that_only_validate_knows_has_its_loss_and_weights_too(stored, no_figures):
    config, results = stored
    validation = results["validation"]
    mixtures = {**validation["mixtures"], "mixmin": {**validation["mixtures"]["bad"], "same_as": None}}
    html = render_report(*typed(config, {**results, "validation": {**validation, "mixtures": mixtures}}))
    for name in CANDIDATES:
        assert f'data-path="validation/mixtures/mixmin/weights/{name}"' in html
    assert 'data-path="validation/mixtures/mixmin/loss/proofs/value"' in html and ">MixMin</th>" in html


def test_loss_and_task_stand_against_each_other_for_every_training_and_their_disagreement_is_warned_of(stored, page):
    results = stored[1]
    runs = {n: run["targets"][TASKED] for n, run in results["finetune"]["runs"].items()}
    bad = results["validation"]["mixtures"]["bad"]
    score = {n: row["task"]["score"]["value"] for n, row in runs.items()}
    score["worst on purpose"] = bad["task"][TASKED]["score"]["value"]
    shown_first = page.locator(f"#task-table-{TASKED} tbody th").all_text_contents()
    assert shown_first == sorted(score, key=lambda n: -score[n]), "finetune's, and what validate alone has trained"
    by_loss, by_task = min(runs, key=lambda n: runs[n]["after"]), max(runs, key=lambda n: score[n])
    warning = page.locator("#answer .warning").first.text_content()
    assert by_loss != by_task and f"WARNING: {TASKED}: '{by_loss}' is best by the loss, '{by_task}' by the" in warning
    assert page.locator("#tasks table").count() == 1, "the other target has no task"


def test_the_picture_of_loss_and_task_has_every_training_better_to_the_right(stored):
    points = loss_against_task(typed(*stored)[1], TASKED)["points"]
    left, right = task_figure(points).axes
    for panel, what in ((left, "score"), (right, "accuracy")):
        (line, *_) = panel.containers[0].lines
        drawn = sorted(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert drawn == sorted((p["loss"], p["task"][what].value) for p in points) and panel.xaxis_inverted()
    assert [text.get_text() for text in left.texts] == [p["run"] for p in points]
    assert loss_against_task(typed(*stored)[1], TARGETS[0]) is None


def test_a_verdict_by_a_task_has_the_tasks_picture_first(stored, no_figures):
    config, results = stored
    by_task = {**results["validation"]["verdict"], "by": "task"}
    found = {**results, "validation": {**results["validation"], "verdict": by_task}}
    config, typed_results, costs = typed(config, found)
    more = derived(config, typed_results, costs)
    scores = {n: run["targets"][TASKED]["task"]["score_change"] for n, run in results["finetune"]["runs"].items()}
    first, second = more["bars"].items()
    assert first[0] == TASKED and (first[1]["kind"], second[1]["kind"]) == ("task", "measured")
    assert [row["name"] for row in first[1]["rows"]] == sorted(scores, key=lambda n: -scores[n]["value"])
    assert all((row["low"], row["high"]) == (scores[row["name"]]["low"], scores[row["name"]]["high"]) for row in first[1]["rows"])  # fmt: skip
    axes = bars_figure(first[1]).axes[0]
    assert axes.get_xlabel() == "change of the margin, nats per byte"
    html = render_report(config, typed_results, costs)
    before, _, after = html.partition(f"What was measured, by the task: {TASKED}")
    assert "nats per byte of the task&#39;s score above uniform" in before and "What was measured" not in before
    assert "It decides the verdict, not the loss." in after and f"What was measured: {TARGETS[0]}" in after
    assert "<dt>Measured: tasks, which decide</dt>" in after
    assert f'data-path="finetune/runs/mixture/targets/{TASKED}/task/score/value"' in after


def test_a_task_whose_metric_is_its_score_is_shown_once_and_never_as_an_accuracy(stored):
    config, results = stored
    results = json.loads(json.dumps(results))
    tasks = [run["targets"][TASKED]["task"] for run in results["finetune"]["runs"].values()]
    tasks += [m["task"][TASKED] for m in results["validation"]["mixtures"].values() if "task" in m]
    for task in tasks:
        task |= {"measure": "chrf", "unit": "", "metric": "chrf", "chance": None}
        task |= {name: task[name.replace("accuracy", "score")] for name in task if name.startswith("accuracy")}
    html = render_report(*typed(config, results))
    section = html.partition('<section id="tasks"')[2].partition("</section>")[0]
    text = re.sub(r"<[^>]*>", " ", section)
    assert "chrf" in text and "accuracy" not in text and "guessing" not in text and "nats per byte" not in text
    points = loss_against_task(typed(config, results)[1], TASKED)["points"]
    assert len(task_figure(points).axes) == 1 and task_figure(points).axes[0].get_ylabel() == "chrf"
    (first, *_) = typed(config, results)[1]["finetune"].tasks()
    assert first.startswith(f"{TASKED}, task after 'mixture': chrf ") and "chance" not in first
