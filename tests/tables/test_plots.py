"""What the plots of a study show."""

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
