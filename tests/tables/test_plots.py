"""What the plots of a study show."""

import json

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
