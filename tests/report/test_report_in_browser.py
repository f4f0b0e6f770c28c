"""The HTML report of a test as Chromium shows it."""

import base64

import pytest
from PIL import Image
from report_page import (
    DATABASE,
    HOSTILE,
    figures_with,
    images_of,
    metres_of,
    names_of,
    outcomes_of_chance,
    panels_in,
    reranked_by_chance,
    worst_first,
)

from vpr.evaluation.outcomes import Outcome
from vpr.report import html as report
from vpr.report.html import write_report


def cells_of(outcome, names):
    """A row of the table as it should read."""
    first = outcome.hits[0] if outcome.hits else None
    found = {None: "missed" if outcome.answerable else "nothing within reach", 1: "found at 1"}
    return [
        str(outcome.query + 1),
        names[outcome.query],
        found.get(outcome.rank, f"found at rank {outcome.rank}"),
        *([str(outcome.rank_before or "–")] if outcome.reranked else []),
        str(outcome.rank or "–"),
        "–" if first is None or first.metres is None else f"{first.metres:,.1f}",
        "–" if first is None else f"{first.distance:.3f}",
        "–" if first is None else DATABASE[first.image],
    ]


@pytest.fixture
def made(tmp_path):
    """A report of `count` chance outcomes: its path, outcomes and names."""

    def make(count, reranked=False, **figures):
        outcomes, names = outcomes_of_chance(count), names_of(count)
        outcomes = reranked_by_chance(outcomes) if reranked else outcomes
        write_report(tmp_path / "report.html", outcomes, images_of(names), figures_with(**figures))
        return tmp_path / "report.html", outcomes, names

    return make


@pytest.mark.parametrize("count", [5, 5000])
def test_missed_by_metres(show, made, count):
    path, outcomes, names = made(count)
    page = show(path, "#filter=missed&sort=metres")
    missed = [outcome for outcome in worst_first(outcomes) if outcome.rank != 1]
    known = [outcome for outcome in missed if metres_of(outcome) is not None]
    wanted = sorted(known, key=metres_of) + [outcome for outcome in missed if metres_of(outcome) is None]
    assert page.cells() == [cells_of(outcome, names) for outcome in wanted[:200]]
    sorts = {attributes["aria-sort"] for tag, attributes in page.elements if tag == "th" and "aria-sort" in attributes}
    assert sorts == {"none", "ascending"}
    assert f"First hit wrong ({len(missed):,})" in page.texts["control"]


def test_second_page_by_name_downwards(show, made):
    path, outcomes, names = made(450)
    page = show(path, "#sort=name&order=descending&page=2")
    wanted = sorted(outcomes, key=lambda outcome: names[outcome.query], reverse=True)[200:400]
    assert page.cells() == [cells_of(outcome, names) for outcome in wanted]
    assert page.texts["where"].startswith("201–400 of 450")


def test_found_that_have_a_name(show, made):
    path, outcomes, names = made(300)
    page = show(path, "#filter=found&search=001/00")
    wanted = [
        cells
        for cells in (cells_of(outcome, names) for outcome in worst_first(outcomes) if outcome.rank == 1)
        if "001/00" in cells[1] or "001/00" in cells[6]
    ]
    assert 0 < len(wanted) < 200
    assert page.cells() == wanted


def test_headings_filter_and_paging_by_hand(show, made):
    path, outcomes, names = made(1500)
    clicks = """
        document.querySelector("[data-column=distance]").click();
        document.querySelector("[data-column=distance]").click();
        document.querySelector("[name=filter][value=found]").click();
        document.querySelector("[data-step='1']").click();
        document.querySelector("tbody .row button").click();
        document.title = location.hash;"""
    page = show(path, script=clicks)
    found = [outcome for outcome in worst_first(outcomes) if outcome.rank == 1]
    wanted = sorted(found, key=lambda outcome: -outcome.hits[0].distance)[200:400]
    assert page.cells() == [cells_of(outcome, names) for outcome in wanted]
    assert [kind for kind, _ in page.rows[:3]] == ["row", "details", "row"]
    for hit in wanted[0].hits:
        assert DATABASE[hit.image] in page.rows[1][1][0]
    state = set(page.texts["title"].lstrip("#").split("&"))
    assert state == {"filter=found", "sort=distance", "order=descending", "page=2"}


@pytest.mark.parametrize("kind", ["gained", "lost"])
def test_what_reranking_changed_by_the_rank_before(show, made, kind):
    path, outcomes, names = made(400, reranked=True)
    page = show(path, f"#filter={kind}&sort=before&order=descending&open=all")
    first_before, first_now = kind == "lost", kind == "gained"
    wanted = [o for o in worst_first(outcomes) if (o.rank_before == 1, o.rank == 1) == (first_before, first_now)]
    known = sorted((o for o in wanted if o.rank_before), key=lambda o: -o.rank_before)
    wanted = known + [o for o in wanted if not o.rank_before]
    assert 10 < len(wanted) < 200
    assert page.cells() == [cells_of(outcome, names) for outcome in wanted]
    assert f"{kind.capitalize()} ({len(wanted)})" in page.texts["control"]
    columns = [attributes for tag, attributes in page.elements if tag == "th" and "aria-sort" in attributes]
    spans = {attributes["colspan"] for tag, attributes in page.elements if tag == "td" and "colspan" in attributes}
    assert spans == {str(len(columns))} == {"8"}


def test_without_reranking_nothing_speaks_of_it(show, made):
    path, outcomes, names = made(30)
    page = show(path, "#filter=gained&sort=before")
    assert page.cells() == [cells_of(outcome, names) for outcome in worst_first(outcomes)]
    assert "Gained" not in page.texts["control"] and "Lost" not in page.texts["control"]
    assert not [tag for tag, attributes in page.elements if "again" in (attributes.get("class") or "").split()]


def test_filters_of_reranking_by_the_keyboard(show, made):
    """The input takes the focus; the browser itself checks it and tells so by a click, as for the space bar."""
    path, outcomes, names = made(60, reranked=True)
    keys = """
        const lost = document.querySelector("[name=filter][value=lost]");
        lost.focus();
        document.activeElement.click();
        document.title = location.hash;"""
    page = show(path, script=keys)
    lost = [outcome for outcome in worst_first(outcomes) if outcome.rank_before == 1 and outcome.rank != 1]
    assert page.cells() == [cells_of(outcome, names) for outcome in lost]
    assert page.texts["title"] == "#filter=lost"


def test_open_rows_show_panels_inside_and_beside(show, tmp_path, made, monkeypatch):
    monkeypatch.setattr(report, "MAX_EMBEDDED", 1)
    panels = panels_in(tmp_path / "panels", [0, 1, 2])
    path, outcomes, _ = made(5, panels=panels)
    panels[2].unlink()  # one of the panels beside the page is lost, and it says so
    page = show(path, "#open=all&scheme=dark")
    shown = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    order = [outcome.query for outcome in worst_first(outcomes) if outcome.query in panels]
    contents = [
        base64.b64decode(source.partition(",")[2]) if source.startswith("data:image/jpeg;base64,") else source
        for source in shown
    ]
    assert contents[0] == panels[order[0]].read_bytes()
    assert contents[1:] == [f"panels/panel%20%23{query}%20100%25.jpg" for query in order[1:] if query != 2]
    assert any("Not found beside this page" in cells[0] for kind, cells in page.rows if kind == "details")
    assert page.elements[0] == ("html", {"lang": "en", "data-scheme": "dark"})


def test_no_queries_are_a_sentence(show, made):
    page = show(made(0)[0], "#filter=missed&sort=metres")
    assert "hidden" in page.with_id("queries")
    assert "hidden" not in page.with_id("no-queries")
    assert page.cells() == []


def test_hostile_names_do_nothing_in_a_browser(show, tmp_path):
    outcomes = [Outcome(query, [], None, True) for query in range(4)]
    write_report(tmp_path / "report.html", outcomes, images_of(HOSTILE), figures_with())
    page = show(tmp_path / "report.html", "#search=<&open=all")
    assert [cells[1] for cells in page.cells()] == [name for name in HOSTILE[:4] if "<" in name]
    assert page.texts["title"] == "A test"
    assert "img" not in {tag for tag, _ in page.elements}


@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_hangs_over_the_edge(show, tmp_path, width):
    long = "a_name_without_any_gap_" * 12
    Image.new("L", (2000, 50)).save(tmp_path / "wide.png")
    figures = figures_with(
        title=long, lines=[long], settings={long: long}, recalls=dict.fromkeys((1, 5, 10, 20, 100), 0.5),
        pictures=[(long, tmp_path / "wide.png")], panels=panels_in(tmp_path, [0]),
        recalls_before=dict.fromkeys((1, 5, 10, 20, 100), 0.5),
    )  # fmt: skip
    names = [long + name for name in names_of(300)]
    path = tmp_path / "report.html"
    write_report(path, reranked_by_chance(outcomes_of_chance(300)), images_of(names), figures)
    measure = """
        document.querySelector("details").open = true;
        parent.postMessage([document.documentElement.scrollWidth, document.documentElement.clientWidth], "*");"""
    text = path.read_text(encoding="utf-8").replace("</body>", f"<script>{measure}</script></body>")
    path.write_text(text, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<body><p></p><iframe src="report.html#open=all" style="width:{width}px;height:900px;border:0"></iframe>
        <script>onmessage = (event) => {{ document.querySelector("p").textContent = event.data; }};</script></body>"""
    )
    needed, there = (int(pixels) for pixels in show(frame).texts["p"].split(","))
    assert needed <= there
    assert width - 20 <= there <= width  # less a scroll bar
