"""The report of made-up runs: its numbers, its size, hostile text, and the page in a real Chromium without a network."""

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import signal
import threading
import time

import forked
import pytest
from conftest import wait_for
from make_run import held_out, make_run, make_sft_run, write_json, write_parquet, write_rows

from grpo_math.__main__ import dispatch
from grpo_math.errors import UserError, run_cli
from grpo_math.report.charts import panels, plotly_figure, running_means
from grpo_math.report.completions import spread
from grpo_math.report.data import read_run
from grpo_math.report.report import write_report
from grpo_math.report.summary import footer, headline, zero_std
from grpo_math.runs.folder import read_table

BAD = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> {{ 7 * 7 }} %{x} $\\frac"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "alpha")


@pytest.fixture(scope="module")
def report(run):
    return write_report([run])


@pytest.fixture(scope="module")
def browser():
    found = next(
        filter(None, map(shutil.which, ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome"))), None
    )
    if not found:
        pytest.skip("no Chromium: install one as /usr/bin/chromium or on PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opening(browser):
    """Open reports from disk. Whatever else they ask for, and whatever they complain of, fails at the end."""
    complaints, contexts = [], []

    def open_report(path, width=1400, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.route("**/*", lambda route: route.continue_() if route.request.url == path.as_uri() else route.abort())
        page.on(
            "request",
            lambda request: (
                complaints.append(request.url)
                if request.url != path.as_uri() and not request.url.startswith(("data:", "blob:"))
                else None
            ),
        )
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def open_page(browser):
    with opening(browser) as open_report:
        yield open_report


@pytest.fixture(scope="module")
def page(browser, report):
    """The page of `run`, shared by tests that set all controls they depend on."""
    with opening(browser) as open_report:
        yield open_report(report)


def choose(page, step: str, show: str = "all", search: str = "") -> str:
    """Set the controls and return what the page counts."""
    page.select_option("#step", label=step)
    page.select_option("#filter", show)
    page.fill("#search", search)
    return page.inner_text("#count")


def shown(page, where="#cards") -> int:
    """The completions in the attempts there: identical ones are shown once, with their count."""
    times = [
        re.search(r"(?:right|wrong|graded) . (\d+)", text)
        for text in page.locator(f"{where} .attempt header").all_inner_texts()
    ]
    return sum(int(found[1]) if found else 1 for found in times)


def until(holds) -> None:
    """Playwright's own waiting evaluates text, which the page's security policy forbids."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_page_opens_from_disk_and_draws_every_chart(report, page):
    assert page.locator(".js-plotly-plot").count() == page.locator("figure").count() >= 14
    for figure in page.locator("figure").all():
        assert figure.locator(".scatterlayer .trace").count() >= 1
        assert " from " in figure.locator(".chart").get_attribute("aria-label")
    assert page.locator("figure", has_text="accuracy").first.locator(".errorbar").count() == 3
    assert report.stat().st_size < 2_500_000


def test_the_answer_comes_first(page):
    said = page.inner_text(".answer")
    assert re.match(
        r"Accuracy on 60 problems of gsm8k test, with 95.%.intervals\n+before training\n0\.\d{3}\n0\.\d{3}.0\.\d{3}\n→\nafter 40 steps\n0\.\d{3}",
        said,
    )
    assert "Better: " in said
    assert "McNemar's exact p" in said
    assert "0.168 GPU-hours" in said
    assert "2 x NVIDIA H100 80GB HBM3" in said
    assert "alarm kl at step 31: KL 1.2 from the reference" in said
    assert "reward\n0.307 → 1.09 training, mean of 5 logs: steps 1-5 and 36-40" in said
    assert "solved at step 35" in page.inner_text(".notes")  # good news, in green
    assert "solved" not in page.inner_text(".alarms:not(.notes)")


def test_an_alarm_is_a_line_on_every_chart(page):
    assert page.locator(".shapelayer path").count() == page.locator("figure").count()
    page.locator("figure .annotation-text-g").first.hover()
    assert "step 31: KL 1.2 from the reference" in page.locator(".hoverlayer").first.text_content()


def test_every_filter_shows_what_it_says(run, page):
    rows = read_table(run / "completions/completions_00007.parquet")
    wanted = {
        "all": lambda row: True,
        "wrong": lambda row: not row["correct"],
        "right": lambda row: row["correct"],
        "truncated": lambda row: row["truncated"],
        "no-answer": lambda row: row["answer"] is None,
        "paid": lambda row: not row["correct"],
    }
    for show, keep in wanted.items():
        kept = [row for row in rows if keep(row)]
        questions = len({row["question"] for row in kept})
        assert choose(page, "step 7", show) == f"{len(kept)} completions of {questions} problem{'s' * (questions != 1)}"
        if len(kept) <= 20:
            assert shown(page) == len(kept)
    rewards = [float(found) for found in re.findall(r"reward ([\d.]+)", page.inner_text("#cards"))]
    assert rewards == sorted(rewards, reverse=True)
    assert rewards[0] == max(row["reward"] for row in rows if not row["correct"])


def test_wrong_to_right_shows_both_completions_of_the_problems_won(run, page):
    change = read_run(run).change
    choose(page, "evaluation at step 40", "gained")
    while page.locator("#more").is_visible():
        page.click("#more")
    assert page.locator(".card").count() == change.won
    assert page.locator(".card").first.locator(".attempt").count() == 2
    assert re.search(
        r"✗ wrong · evaluation at step 0 .*✓ right · evaluation at step 40",
        page.locator(".card").first.inner_text(),
        re.DOTALL,
    )
    choose(page, "evaluation at step 40", "lost")
    assert page.locator(".card").count() == change.lost


def test_the_page_opens_on_what_changed(run, report, open_page):
    page, change = open_page(report), read_run(run).change
    assert page.input_value("#filter") == "changed"
    while page.locator("#more").is_visible():
        page.click("#more")
    heads = page.locator("#cards h3").all_inner_texts()
    assert heads == [f"{change.won} wrong → right", f"{change.lost} right → wrong"][: 1 + bool(change.lost)]
    page.select_option("#step", label="step 7")  # of one step
    assert page.input_value("#filter") == "all"


FORMULAS = [  # a text, what is rendered of it
    ("so $x^2 + 1 = 5$ and \\(y\\) or \\[z\\] and $$w$$.", ["x^2 + 1 = 5", "y", "z", "w"]),
    ("the answer is \\boxed{\\frac{1}{2}}.", ["\\boxed{\\frac{1}{2}}"]),
    ("It costs $5 and $7, $5-$7 or $5/$7 (or $6), \\$5 and \\$7; $9 * 2 = $18.", []),
    ("5$ and 7$, 3$, then 4$.", []),
    ("broken: $\\frac{1}{$, \\(\\undefinedmacro{2}\\), cut off \\boxed{1 and $\\left( x$", []),
    (
        "$\\href{javascript:alert(1)}{x}$ \\(\\includegraphics{http://example.com/a.png}\\) $\\style{position:fixed}{x}$",
        [],
    ),
    ("$\\def\\a{\\a\\a}\\a$", []),
    ("$\\text{<img src=x onerror=window.hacked=4>}$", ["\\text{<img src=x onerror=window.hacked=4>}"]),
    ("$\\textcolor{white}{2}$ \\boxed{\\phantom{7}} $\\smash{\\rule[-9em]{60em}{20em}}$ $\\kern-50em x$", []),
    ("$x$, " * 250, ["x"] * 200),  # a loop: enough of it
    ("\\begin{align*} a &= b \\\\ c &= d \\end{align*}", ["\\begin{align*} a &= b \\\\ c &= d \\end{align*}"]),
]


def test_mathematics_is_rendered_and_all_else_stays_text(tmp_path, open_page):
    run = make_run(tmp_path / "maths", steps=1, finished=False, eval=None)
    rows = read_table(run / "completions/completions_00001.parquet")[: len(FORMULAS)]
    texts = [text for text, _ in FORMULAS]
    wide, gold, answer = (
        f"{'9' * 400} ${'1 + ' * 200}1$",
        f"\\frac{{3}}{{4}}{' + 1' * 100}",
        f"\\begin{{pmatrix}}{'1 & ' * 80}1\\end{{pmatrix}}",
    )
    rows = [row | {"question": f"{place}: {text} {wide}", "completion": text, "solution": gold, "answer": answer}
            for place, (row, text) in enumerate(zip(rows, texts, strict=True))]  # fmt: skip
    write_parquet(run / "completions/completions_00001.parquet", rows)
    page = open_page(write_report([run]))
    for place, (text, rendered) in enumerate(FORMULAS):
        card = page.locator(".card").nth(place)
        found = card.locator(".completion .math")
        assert [one.get_attribute("title") for one in found.all()] == rendered, text
        assert found.locator("math").count() == len(rendered)
        if not rendered:
            assert card.locator(".completion").inner_text() == text
        assert card.locator(".meta math mfrac").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth == innerWidth")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#cards img, #cards a, #cards script").count() == 0
    page.uncheck("#rendered")
    assert page.locator("math").count() == 0
    assert [one.inner_text() for one in page.locator(".completion").all()] == texts


def test_chart_buttons_show_on_hover_only(page):
    opacity = "getComputedStyle(document.querySelector('figure .modebar')).opacity"
    page.mouse.move(1, 1)
    until(lambda: page.evaluate(opacity) == "0")
    page.locator("figure .nsewdrag").first.hover()
    until(lambda: page.evaluate(opacity) == "1")


def test_search_finds_words_of_questions_and_answers(run, page):
    rows = read_table(run / "completions/eval-000020.parquet")
    found = [row for row in rows if "ava has" in row["question"].lower()]
    assert choose(page, "evaluation at step 20", search="AVA has").startswith(f"{len(found)} completions")
    assert choose(page, "evaluation at step 20", search="no such words") == "0 completions of 0 problems"


def test_a_problem_can_be_followed_over_the_steps(run, page):
    choose(page, "evaluation at step 40")
    page.locator(".card .open").first.click()
    question = page.locator("dialog .card p").inner_text()
    files = list((run / "completions").glob("*.parquet"))
    count = sum(row["question"] == question for file in files for row in read_table(file))
    assert shown(page, "dialog") == count
    steps = [int(step) for step in re.findall(r"· (?:evaluation at )?step (\d+)", page.inner_text("dialog"))]
    assert len(steps) == page.locator("dialog .attempt").count()
    assert steps == sorted(steps)
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    choose(page, "all steps, by problem", search=question)
    assert shown(page, "#cards .card:first-of-type") == count


def test_zooming_one_chart_zooms_all_and_a_double_click_shows_everything(report, open_page):
    page = open_page(report)
    ranges = "[...new Set([...document.querySelectorAll('.chart')].map((chart) => JSON.stringify(chart._fullLayout.xaxis.range)))]"
    (before,) = page.evaluate(ranges)
    box = page.locator("figure .nsewdrag").first.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 80, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, y, steps=5)
    page.mouse.up()
    until(lambda: page.evaluate(ranges) != [before] and len(page.evaluate(ranges)) == 1)
    page.locator("figure .nsewdrag").first.dblclick()
    until(lambda: page.evaluate(ranges) == [before])


def test_light_and_dark_follow_the_system_until_somebody_chooses(report, open_page):
    page = open_page(report, color_scheme="dark")
    look = "[getComputedStyle(document.body).backgroundColor, document.querySelector('.chart').layout.font.color]"
    dark = page.evaluate(look)
    page.click("#theme")
    light = page.evaluate(look)
    assert all(one != other for one, other in zip(dark, light, strict=True))
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(look) == light


def test_nothing_is_wider_than_a_phone(report, open_page):
    page = open_page(report, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    search = page.locator("#search").bounding_box()
    assert 200 < search["width"] < 390 - search["x"]


def test_hostile_text_stays_text(tmp_path, open_page):
    name = "<img src=x onerror=window.hacked=3> 'a' \"b\" $\\frac"
    run = make_run(tmp_path / name, steps=3, run_name=BAD, rewards={BAD: {"weight": 1.0}})
    row = {"step": 1, "question": BAD, "prompt": BAD, "solution": BAD, "completion": BAD, "answer": BAD, "how": BAD}
    row |= {"correct": False, "length": 3, "truncated": False, f"rewards/{BAD}": 1.0, "reward": 1.0, "advantage": 0.0}
    write_parquet(run / "completions/completions_00001.parquet", [row])
    metrics = [{"step": step, "reward": 1.0, f"rewards/{BAD}/mean": 0.5, "rewards/b/mean": 0.1} for step in (1, 2, 3)]
    write_rows(run / "metrics.jsonl", metrics)
    write_rows(run / "alarms.jsonl", [{"step": 2, "alarm": "<i>kl", "says": BAD}])
    evaluation = {"dataset": BAD, "step": 0, "problems": 2, "accuracy": 0.5, "accuracy_low": 0.1, "accuracy_high": 0.9}
    write_rows(run / "eval.jsonl", [evaluation])
    write_json(run / "environment.json", {"command": [BAD], "gpus": [BAD], "gpu_count": 1})
    page = open_page(write_report([run], tmp_path / "bad.html"))
    page.locator("figure .annotation-text-g").first.hover()
    assert BAD[:20] in page.locator(".hoverlayer").first.text_content()
    assert choose(page, "step 1", search="window.hacked") == "1 completion of 1 problem"
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.inner_text(".card > p") == BAD
    assert f"answer {BAD}" in page.inner_text(".attempt")
    assert page.title() == f"{name}: report"
    assert BAD in page.inner_text(".alarms")
    assert "window.hacked = 1" in page.inner_text("#recipe pre")


def test_several_runs_share_charts_and_their_recipes_are_compared(run, tmp_path, open_page):
    other = make_run(tmp_path / "beta", steps=27, finished=False, speed=0.4, learning_rate=3e-6)
    report = write_report([run, other], tmp_path / "both.html")
    page = open_page(report)
    assert page.locator(".answer").count() == 2
    assert page.inner_text("tbody tr") == "learning_rate\t1e-06\t3e-06"
    assert re.search(r"beta against alpha, at their last evaluations: (worse|better|not dist)", page.inner_text("main"))
    assert "stopped, step 27 of 40" in page.inner_text("main")
    assert page.locator("figure", has_text="rewards: format").locator(".trace").count() == 4  # faint and bold
    assert choose(page, "beta, step 27").startswith("32 completions")
    assert (tmp_path / "both.png").stat().st_size > 10_000
    assert (tmp_path / "both.svg").read_text().startswith("<?xml")


def test_a_page_that_would_be_too_large_leaves_steps_out_and_says_so(tmp_path, open_page):
    run = make_run(tmp_path / "large", steps=40)
    rows = read_table(run / "completions/completions_00001.parquet")
    for step in range(1, 41):
        noise = [os.urandom(6_000).hex() for _ in rows]  # two bytes a byte: does not compress below half
        long = [row | {"step": step, "completion": text} for row, text in zip(rows, noise, strict=True)]
        write_parquet(run / f"completions/completions_{step:05d}.parquet", long)
    report = write_report([run])
    assert 2_500_000 < report.stat().st_size < 3_000_000
    page = open_page(report)
    assert re.search(r"\d+ of 43 files with completions are shown, evenly spread", page.inner_text("#completions"))
    steps = [int(step) for step in re.findall(r"^step (\d+)", page.inner_text("#step"), re.MULTILINE)]
    assert {1, 40} <= set(steps)
    assert len(steps) > 4
    assert max(later - earlier for later, earlier in itertools.pairwise(steps)) <= 4 * 40 / len(steps)
    choose(page, "step 40")
    assert "6,000 characters are left out of this report" in page.inner_text(".completion >> nth=0")


def test_a_step_larger_than_its_share_shows_its_first_completions(tmp_path, open_page):
    run = make_run(tmp_path / "wide", steps=1, finished=False, eval=None)
    rows = read_table(run / "completions/completions_00001.parquet")
    write_parquet(
        run / "completions/completions_00001.parquet",
        [row | {"completion": os.urandom(3_000).hex()} for row in rows * 16],
    )
    report = write_report([run])
    assert report.stat().st_size < 3_000_000
    assert open_page(report).inner_text("#step option >> nth=0") == "step 1 (first 32 of 512)"


def test_a_run_killed_in_a_write_is_reported_with_the_command_that_resumes_it(tmp_path, open_page):
    run = make_run(tmp_path / "killed", steps=12, finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "rew')
    whole = (run / "completions/completions_00012.parquet").read_bytes()
    (run / "completions/completions_00012.parquet").write_bytes(whole[: len(whole) // 2])
    page = open_page(write_report([run]))
    assert "stopped, step 12 of 40" in page.inner_text(".facts")
    assert "12 of 13 files with completions are shown" in page.inner_text("#completions")
    assert "1 could not be read" in page.inner_text("#completions")
    assert choose(page, "step 11").startswith("32 completions")
    assert "Started by grpo-math train --config recipes/gsm8k.yaml" in page.inner_text("#recipe")
    page.evaluate("document.execCommand = () => { window.copied = document.activeElement.value; return true; }")
    page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined })"
    )  # as in some browsers on file://
    resume = "grpo-math train --config recipes/gsm8k.yaml --resume_from_checkpoint auto"
    buttons = {"#recipe .pair button": (run / "recipe.yaml").read_text(), ".command:nth-of-type(2) button": resume}
    for button, text in buttons.items():
        page.click(button)
        until(lambda text=text: page.evaluate("window.copied").strip() == text.strip())


def test_a_run_that_has_just_begun_is_reported(tmp_path, open_page):
    run = make_run(tmp_path / "new", steps=0, finished=False, max_steps=None)
    for name in ("metrics.jsonl", "eval.jsonl", "alarms.jsonl", "environment.json"):
        (run / name).unlink()
    shutil.rmtree(run / "completions")
    page = open_page(write_report([run]))
    assert "stopped, step 0" in page.inner_text(".facts")
    assert "Nothing was logged yet." in page.inner_text("#curves")
    assert "No held-out evaluation: set eval: {before_after: true}" in page.inner_text(".answer")


def test_an_sft_run_has_its_loss(tmp_path, open_page):
    page = open_page(write_report([make_sft_run(tmp_path / "sft")]))
    titles = page.locator("figcaption b").all_inner_texts()
    assert titles == ["token accuracy", "entropy", "loss"]
    assert "1:05" in page.inner_text(".facts")


@pytest.mark.slow
def test_a_real_training_is_reported(write_recipe, problem_folder, tmp_path, open_page):
    held_out = {"before_after": True, "datasets": {"name": "gsm8k", "path": str(problem_folder)}, "max_samples": 4}
    recipe = write_recipe(eval=held_out, max_steps=3, completions={"every": 1})
    status, output = forked.grpo_math(["train", "--config", str(recipe)], tmp_path)
    assert status == 0, output
    page = open_page(write_report([tmp_path / "run"]))
    assert "finished, 3 steps" in page.inner_text(".facts")
    assert "on 4 problems of gsm8k test" in page.inner_text(".answer")
    titles = page.locator("figcaption b").all_inner_texts()
    assert {"accuracy", "reward", "rewards", "entropy", "zero-std groups", "time of a step", "throughput"} <= set(
        titles
    )
    assert choose(page, "step 2").startswith("4 completions of 2 problem")
    header = r"(right|wrong).* · .*reward [-\d.]+ \(correctness [01], format [01]\) · advantage [-+\d.]+ · \d+ tokens"
    assert re.search(header, page.inner_text(".attempt >> nth=0"))


def test_plotly_knows_every_key_of_the_figures(run):
    from plotly.graph_objects import Figure

    runs = [read_run(run)]
    for panel in panels(runs, ["alpha"]):
        Figure(plotly_figure(panel, runs, 40))


def test_rewards_on_held_out_problems_are_dots_on_the_curve_of_the_reward(tmp_path):
    run = make_run(tmp_path / "run", steps=20)
    ends = {"accuracy": 0.5, "accuracy_low": 0.1, "accuracy_high": 0.9, "problems": 9}
    rewards = {"reward": -0.5, "reward_low": -0.75, "reward_high": 0.25}
    write_rows(run / "eval.jsonl", [{"step": 0, **ends}, {"step": 20, **ends, **rewards}])  # the first without rewards
    found = [read_run(run)]
    dots = {panel.title: [one for one, _ in panel.dots] for panel in panels(found, ["alpha"]) if panel.dots}
    assert {title: list(one) for title, (one,) in dots.items()} == {"accuracy": [0, 20], "reward": [20]}
    (panel,) = [panel for panel in panels(found, ["alpha"]) if panel.title == "reward"]
    (drawn,) = [trace for trace in plotly_figure(panel, found, 20)["data"] if trace["name"] == "held-out"]
    assert (drawn["x"], drawn["y"]) == ([20], [-0.5])
    assert drawn["error_y"]["array"] + drawn["error_y"]["arrayminus"] == [0.75, 0.25]


def test_the_last_row_of_an_evaluation_counts_and_the_trainings_own_before_the_watchers(tmp_path):
    run = make_run(tmp_path / "run", steps=20)
    ends = {"accuracy_low": 0.1, "accuracy_high": 0.9, "problems": 9, "seconds": 100.0}
    rows = [
        {"dataset": "a", "step": 20, "accuracy": 0.2, **ends},
        {"dataset": "all datasets", "step": 20, "accuracy": 0.3, **ends},
        {"dataset": "a", "step": 20, "accuracy": 0.4, "weights": "1f", **ends},
        {"dataset": "a", "step": 10, "accuracy": 0.5, "weights": "2f", **ends},
    ]
    write_rows(run / "eval.jsonl", rows)
    found = read_run(run)
    assert [(row["step"], row["accuracy"]) for row in found.evaluations] == [(10, 0.5), (20, 0.3)]
    assert found.seconds == pytest.approx(100 + sum(row["step_time"] for row in found.steps))


def test_the_picture_is_a_slide_with_the_result_in_its_title(run, report):
    from matplotlib.image import imread

    assert imread(report.with_suffix(".png")).shape[:2] == (900, 1600)
    found = read_run(run)
    title, small = headline([found], ["alpha"])
    assert re.fullmatch(r"alpha: accuracy 0\.\d{3} → 0\.\d{3}", title)
    assert re.fullmatch(
        r"Qwen/Qwen2.5-0.5B-Instruct, held-out accuracy on 60 problems of gsm8k test, 95 % intervals .* and .*", small
    )
    versions = "grpo-math 0.1.0  ·  trl 1.16.0  ·  grpo-math train --config recipes/gsm8k.yaml"
    assert footer([found]) == f"2 x NVIDIA H100 80GB HBM3  ·  5:02  ·  {versions}"


def test_running_means_and_the_order_of_steps():
    assert running_means([1, 2, 3, 4, 5], 2) == [1, 1.5, 2.5, 3.5, 4.5]
    for count in range(40):
        assert sorted(spread(count)) == list(range(count))
    assert list(spread(9))[:5] == [0, 8, 4, 2, 6]


def test_the_verb_prints_a_summary(run, capsys):
    dispatch(["report", str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run}: finished, 40 steps"
    assert re.fullmatch(r"accuracy 0\.\d+ \(.*\) → 0\.\d+ \(.*\) on 60 problems of gsm8k test", lines[1])
    assert lines[2].startswith("better: ")
    assert re.fullmatch(r"reward .* → .* \(training, mean of 5 logs: steps 1-5 and 36-40\)", lines[3])
    assert re.fullmatch(r"tokens per completion .* → .* \(mean over 60 held-out problems\)", lines[4])
    assert lines[5] == "zero-std groups: 25% of the generated tokens, 1:10 of training"  # a quarter of 4:38
    assert lines[6] == "5:02, 0.168 GPU-hours on 2 x NVIDIA H100 80GB HBM3"
    assert lines[7].startswith("alarm kl at step 31: ")
    assert lines[8] == "note solved at step 35: 95% of the completions are right"
    assert re.fullmatch(rf"{run}/report.html \(2\.\d MB\), report.png, report.svg", lines[-1])


def test_steps_that_generate_nothing_count_with_the_generation_before_them(tmp_path):
    """With steps_per_generation 2, every second log knows nothing of the groups: 10 s of 40 s are spent on zero-std groups."""
    run = make_run(tmp_path / "run", steps=0)
    seen = {"loss": 0.1, "step_time": 10.0}
    shares = [{"frac_tokens_zero_std": share, "completions/mean_length": 30} for share in (0.1, 0.4)]
    write_rows(
        run / "metrics.jsonl", [{"step": 1 + n, **seen, **(shares[n // 2] if n % 2 == 0 else {})} for n in range(4)]
    )
    assert zero_std(read_run(run)) == "25% of the generated tokens, 0:10 of training"


def test_a_mistake_is_one_line(run, tmp_path):
    for folder, says in (
        (tmp_path / "none", "no such folder"),
        (run.parent, r"not a run, it has no recipe.yaml \(but alpha\)"),
    ):
        with pytest.raises(UserError, match=says):
            write_report([folder])
    with pytest.raises(UserError, match="expected a file to write"):
        write_report([run], tmp_path / "report.pdf")


@pytest.fixture
def live(tmp_path, monkeypatch):
    """The lock that a training holds of the run that it is in; a watch looks every second."""
    monkeypatch.setattr("grpo_math.report.report.POLL", 1)
    held = os.open(make_run(tmp_path / "live", steps=12, finished=False), os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


def test_watch_follows_a_run_to_its_end_and_the_open_page_with_it(live, tmp_path, open_page, capsys):
    run = tmp_path / "live"
    watch = threading.Thread(target=dispatch, args=(["report", str(run), "--watch"],), daemon=True)
    watch.start()
    wait_for((run / "report.html").exists)
    page = open_page(run / "report.html")
    assert "running, step 12 of 40" in page.inner_text(".facts")
    choose(page, "step 3", "wrong", "apples")
    page.locator("#recipe").click()
    page.evaluate("scrollTo(0, 700)")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "reward": 0.5}\n')
    page.wait_for_selector(".facts:has-text('step 13 of 40')")
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("scrollY") == 700
    assert page.locator("#step option:checked").inner_text() == "step 3"
    assert page.input_value("#filter") == "wrong"
    assert page.input_value("#search") == "apples"
    os.close(live)
    watch.join(30)
    output = capsys.readouterr().out
    assert "updated until the run ends" in output
    assert "stopped, step 13 of 40" in output
    page.wait_for_selector("body[data-reload='0']")


def test_ctrl_c_ends_the_watch(live, tmp_path, capsys):
    def interrupt() -> None:
        wait_for((tmp_path / "live" / "report.html").exists)
        time.sleep(0.3)
        signal.raise_signal(signal.SIGINT)

    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    assert run_cli(dispatch, ["report", str(tmp_path / "live"), "--watch"]) == 0
    signal.signal(signal.SIGINT, earlier)
    os.close(live)
    assert capsys.readouterr().err == ""


def test_several_samples_are_compared_by_their_means(tmp_path):
    import random

    run = make_run(tmp_path / "run", steps=20)
    for step, skill in ((0, 0.2), (20, 0.8)):
        rows = [row | {"sample": sample} for sample in range(3) for row in held_out(random.Random(sample), skill)]
        write_parquet(run / f"completions/eval-{step:06d}.parquet", rows)
    change = read_run(run).change
    assert (change.test, change.verdict) == ("exact sign-flip p", "better")
    assert change.distinguishable
