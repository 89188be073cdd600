"""What the plots of a study show."""

import json

import pytest

from lm.tables.lines import curves, distribution
from lm.tables.page import report
from lm.tables.plots import _over_field
from tests.ledgers import analysis_of, record


def test_the_legend_names_each_colour_of_the_lines_beside_the_baselines_own(tmp_path):
    losses = {(0.2, 0): 4.5, (0.4, 0): 4.4, (0.2, 1): 4.3, (0.4, 1): 4.2}
    lines = [record(1, loss, test=loss, config={"dropout": p, "alpha": a}) for (p, a), loss in losses.items()]
    body = "[[grid]]\ndropout = [0.2, 0.4]\nalpha = [0, 1]\n"
    figure, caption = _over_field(analysis_of(tmp_path, lines, seeds=[1], body=body), "dropout")
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["baseline", "chosen on valid", "other configurations", "alpha 1"]
    assert "beside it alpha 1" in caption


def test_a_plot_that_has_no_data_any_more_is_deleted_and_no_other_picture(tmp_path):
    lines = [record(1, 4.5, config={"alpha": a, "beta": b}) for a in (0, 1) for b in (0, 1)]
    analysis = analysis_of(tmp_path, lines, seeds=[1], body="[[grid]]\nalpha = [0, 1]\nbeta = [0, 1]\n")
    report(str(tmp_path))
    assert {"alpha.png", "beta.png", "heatmap.png"} <= {path.name for path in tmp_path.glob("*.png")}
    (tmp_path / "mine.png").touch()
    analysis.study.ledger.write_text("".join(f"{json.dumps(line)}\n" for line in lines[::2]))
    (tmp_path / "study.toml").write_text('dataset = "ptb"\nseeds = [1]\n[[grid]]\nalpha = [0, 1]\n')
    report(str(tmp_path))
    assert not {"beta.png", "heatmap.png"} & {path.name for path in tmp_path.glob("*.png")}
    assert {"alpha.png", "mine.png"} <= {path.name for path in tmp_path.glob("*.png")}


def test_the_distribution_has_the_baseline_and_the_best_of_each_norm(tmp_path):
    settings = [(0, "l2", 4.5), (1, "l2", 4.4), (2, "l2", 4.3), (1, "l1", 4.45), (2, "l1", 4.6)]
    lines = []
    for alpha, norm, loss in settings:
        for seed in (1, 2):
            line = record(seed, loss, test=loss, config={"alpha": alpha, "ar_norm": norm})
            line["activation"]["histogram"] = [0.25 * seed / 2, 0.75 * seed / 2]
            lines.append(line)
    body = '[[grid]]\nalpha = [0, 1, 2]\nar_norm = ["l2", "l1"]\n[baseline]\nalpha = 0\nar_norm = "l2"\n'
    figure, caption = distribution(analysis_of(tmp_path, lines, seeds=[1, 2], body=body))
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert shown == {"alpha 0, ar_norm l2 (baseline)", "alpha 2 (chosen)", "alpha 1, ar_norm l1"}
    for stairs in figure.axes[0].patches:
        assert stairs.get_data().values.tolist() == [0.1875, 0.5625]
        assert stairs.get_data().edges.tolist() == [-1, 0, 1]
    assert "each norm" in caption
    for line in lines:
        del line["activation"]["histogram"]
    assert distribution(analysis_of(tmp_path / "older", lines, seeds=[1, 2], body=body)) is None


@pytest.mark.parametrize(
    "more", [{}, {"lr": (20, 30), "clip": (0.25, 0.5), "dropout": (0.2, 0.3), "wdrop": (0.4, 0.5)}]
)
def test_names_too_long_to_stand_beside_the_curves_stand_below_them(more, tmp_path):
    fields = {"alpha": (0, 1), **more}
    configs = [{name: values[at] for name, values in fields.items()} for at in (0, 1)]
    lines = [record(1, loss, config=config) for loss, config in zip((4.5, 4.4), configs, strict=True)]
    for line in lines:
        line["curve"] = [[1, 100.0], [2, 90.0]]
    body = "\n".join(f"[[grid]]\n{''.join(f'{n} = [{v}]' + chr(10) for n, v in c.items())}" for c in configs)
    figure, _ = curves(analysis_of(tmp_path, lines, seeds=[1], body=body))
    figure.canvas.draw()
    names, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert axes.width > 0.4 * figure.bbox.width
    assert names.y1 < axes.y0 if more else names.x0 > axes.x1
