"""Every figure that `lm.report` prints, writes and draws of a small study, computed anew with numpy and scipy."""

import csv
import fcntl
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from lm.report import main
from lm.study.ledger import read_ledger
from lm.tables.page import report, report_text
from tests.ledgers import GRID, LOSSES, records_of, write_study

# With beta 1 come effects far below and far above seed noise. Sorted, the configurations are in the order of GRID.
MORE = {(0, 1): (4.49, 4.53, 4.505), (1, 1): (4.4502, 4.4697, 4.4601), (2, 1): (4.471, 4.498, 4.466)}
CELLS = dict(sorted((LOSSES | MORE).items()))
LABELS = ("alpha 0, beta 0", "beta 1", "alpha 1", "alpha 1, beta 1", "alpha 2", "alpha 2, beta 1")
PARTS = ("mean", "n", "low", "high", "p", "p_holm")
# Ranges that the other figures of a run are drawn from.
ACTIVATION = {"rms": (0.3, 0.4), "mean_abs": (0.2, 0.3), "frac_small": (0.1, 0.2), "temporal_rms": (0.4, 0.5)}
OTHERS = {"train_ppl": (50, 60), "valid_bits_per_char": (1, 2), "test_bits_per_char": (2, 3), "seconds": (60, 600)}
METRICS = ("valid_loss", "test_loss", "valid_ppl", "test_ppl", *OTHERS, *ACTIVATION, "best_epoch", "gap")
# Heading -> what the table shows of a configuration; the verdict, last, stands in the answer and in comparisons.
TEXTS = {
    "valid ppl": "{valid_ppl_mean:.2f} ± {valid_ppl_sd:.2f}", "test ppl": "{test_ppl_mean:.2f} ± {test_ppl_sd:.2f}",
    "valid bits/char": "{valid_bits_per_char_mean:.4f} ± {valid_bits_per_char_sd:.4f}",
    "test bits/char": "{test_bits_per_char_mean:.4f} ± {test_bits_per_char_sd:.4f}",
    "diff valid": "{diff_valid_mean:+.4f}",
    "diff test": "{diff_test_mean:+.4f} [{diff_test_low:+.4f}, {diff_test_high:+.4f}]",
    "p": "{p}", "train ppl": "{train_ppl_mean:.2f}", "gap": "{gap_mean:.3f}", "rms h": "{rms_mean:.4f}",
    "mean abs h": "{mean_abs_mean:.4f}", "near 0": "{percent:.1f} %", "rms dh": "{temporal_rms_mean:.4f}",
    "min": "{minutes:.1f}", "verdict": "{noise} seed noise (Holm-adjusted p {sign}{p}, n = 3)",
}  # fmt: skip


def lines_of(losses, generator):
    """A ledger in which no figure of one run is that of another: seeds 1 to 3, of which 3 ends an epoch earlier."""
    lines = records_of(losses)
    for line in lines:
        line |= {name: generator.uniform(*ends) for name, ends in OTHERS.items()}
        line["activation"] = {name: generator.uniform(*ends) for name, ends in ACTIVATION.items()}
        line["best_epoch"] = int(generator.integers(1, 40))
        line["curve"] = [[e, line["valid_ppl"] + generator.uniform(5, 9) / e] for e in range(1, 7 - line["seed"] // 3)]
    return lines


def columns_of(lines, reference):
    """The columns of table.csv, a row a configuration; differences are to the lines of `reference`, paired by seed."""
    flat = [line | line["activation"] | {"gap": line["valid_loss"] - np.log(line["train_ppl"])} for line in lines]
    values = {name: np.reshape([line[name] for line in flat], (6, 3)) for name in METRICS}
    found = {f"{name}_mean": array.mean(1) for name, array in values.items()}
    found |= {f"{name}_sd": array.std(1, ddof=1) for name, array in values.items()}
    for split in ("valid", "test"):
        ours, theirs = values[f"{split}_loss"], np.reshape([line[f"{split}_loss"] for line in reference], (6, 3))
        test = stats.ttest_rel(ours, theirs, axis=1)
        p, order = test.pvalue, np.argsort(test.pvalue)
        holm = np.maximum.accumulate(p[order] * (np.isfinite(p).sum() - np.arange(6)))[np.argsort(order)]
        parts = (np.mean(ours - theirs, 1), 3 + 0 * p, *test.confidence_interval(0.95), p, np.minimum(1, holm))
        found |= {f"diff_{split}_{part}": array for part, array in zip(PARTS, parts, strict=True)}
    return found


def texts(columns, i):
    """TEXTS of configuration `i`; nothing where there is no number."""
    configuration = {name: array[i] for name, array in columns.items()}
    configuration |= {"percent": 100 * configuration["frac_small_mean"], "minutes": configuration["seconds_mean"] / 60}
    configuration["noise"] = "more than" if (p := configuration["diff_test_p_holm"]) < 0.05 else "within"
    configuration |= {"sign": "", "p": "< 0.001"} if p < 0.001 else {"sign": "= ", "p": f"{p:.3f}"}
    return {heading: "" if "nan" in (text := form.format(**configuration)) else text for heading, form in TEXTS.items()}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study, and what of it was printed, written and drawn."""
    folder, figures, lines = tmp_path_factory.mktemp("results"), {}, lines_of(CELLS, np.random.default_rng(0))
    write_study(folder, lines, body=GRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.tables.plots.save_png", lambda figure, path: figures.update({path.name: figure}))
        printed = report_text(report(folder)).splitlines()
    nothing = {"valid_loss": np.nan, "test_loss": np.nan}  # the baseline has no difference to itself
    found = {"folder": folder, "lines": lines, "printed": printed, "figures": figures}
    return SimpleNamespace(**found, columns=columns_of(lines, 3 * [nothing] + 5 * lines[:3]))


def test_the_printed_table_and_that_of_the_page_show_every_figure_of_every_configuration(study):
    table, marks = [["", "configuration", "n", *TEXTS][:-1]], {0: "baseline", 4: "chosen"}
    table += [[marks.get(i, ""), LABELS[i], "3", *texts(study.columns, i).values()][:-1] for i in range(6)]
    page = [line for line in (study.folder / "README.md").read_text().splitlines() if line.startswith("| ")]
    assert [line[2:-2].split(" | ") for line in page[:1] + page[2:]] == table
    printed = [line.split() for line in study.printed[3:4] + study.printed[5:11]]
    assert printed == [" ".join(row).split() for row in table]


def test_every_column_of_the_csv_file_holds_its_figure(study):
    rows = csv.DictReader((study.folder / "table.csv").open())
    for i, (row, (alpha, beta)) in enumerate(zip(rows, CELLS, strict=True)):
        expected = {name: f"{array[i]:.6g}".replace("nan", "") for name, array in study.columns.items()}
        expected |= {"configuration": LABELS[i], "alpha": str(alpha), "beta": str(beta), "baseline": str(i == 0)}
        expected |= {"chosen": str(i == 4), "n": "3", "seeds": "1 2 3", "unfinished": "0", "quoted_from": ""}
        welch = "False" if i else ""  # all are pairs
        expected |= {"diff_valid_welch": welch, "diff_test_welch": welch, "frac_zero_mean": "", "frac_zero_sd": ""}
        assert row == expected


def test_the_answer_states_perplexities_difference_and_activations_of_the_chosen_configuration(study):
    text, shown = study.printed[1], texts(study.columns, 4)
    base, best = ({name: array[i] for name, array in study.columns.items()} for i in (0, 4))
    ours, theirs = (f"valid {c['valid_ppl_mean']:.2f} / test {c['test_ppl_mean']:.2f}" for c in (best, base))
    assert f"alpha 2, perplexity {ours} (mean of 3 seeds), against perplexity {theirs} (mean of 3 seeds)" in text
    effect = f"{shown['diff test']} nats per token on test ({100 * np.expm1(best['diff_test_mean']):+.1f} % perplexity)"
    assert f"{effect.replace('[', '[95 %: ')}, {shown['verdict']}." in text
    for name, metric in (("activation rms", "rms_mean"), ("temporal rms", "temporal_rms_mean")):
        change = f"{100 * (best[metric] - base[metric]) / base[metric]:+.0f} %"
        assert f"{name} went from {base[metric]:.4f} to {best[metric]:.4f} ({change})" in text
    assert f"gap between train and valid from {base['gap_mean']:.3f} to {best['gap_mean']:.3f} nats" in text


def test_a_comparison_of_two_studies_shows_every_figure_in_text_and_json(study, tmp_path, capsys):
    generator = np.random.default_rng(1)
    lines = lines_of(
        {configuration: np.array(x) - generator.normal(0.02, 0.01, 3) for configuration, x in CELLS.items()}, generator
    )
    names, columns = [str(study.folder), str(write_study(tmp_path, lines))], columns_of(lines, study.lines)
    main(["--compare", *names, "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    main(["--compare", *names])
    header, _, *printed = map(str.split, capsys.readouterr().out.splitlines())
    assert (
        " ".join(header) == "configuration source verdict n valid ppl test ppl on diff nats diff ppl gap rms h rms dh"
    )
    for i, ((alpha, beta), reference, row) in enumerate(zip(CELLS, rows[::2], rows[1::2], strict=True)):
        shown, change = texts(columns, i), columns["test_ppl_mean"][i] - study.columns["test_ppl_mean"][i]
        difference = pytest.approx({part: columns[f"diff_test_{part}"][i] for part in PARTS} | {"welch": False})
        expected = {"config": {"alpha": alpha, "beta": beta}, "dataset": "ptb", "quoted_from": None, "source": names[1]}
        expected |= {"reference": False, "verdict": shown["verdict"], "split": "test", "difference": difference}
        expected |= {"ppl_difference": pytest.approx(change), "other_protocol": None, "config_differs": []}
        for name in METRICS:
            expected[name] = pytest.approx({part: columns[f"{name}_{part}"][i] for part in ("mean", "sd")} | {"n": 3})
        assert {name: row[name] for name in expected} == expected
        alone = {"source": names[0], "reference": True, "split": None, "difference": None, "ppl_difference": None}
        assert reference | alone | {"verdict": "reference"} == reference
        form = "3 {valid ppl} {test ppl} {compared} {gap} {rms h} {rms dh}"
        first = form.format(**texts(study.columns, i), compared="")
        second = form.format(**shown, compared=f"test {shown['diff test']} {change:+.2f}")
        assert printed[2 * i] == f"alpha {alpha}, beta {beta} {names[0]} reference {first}".split()
        assert printed[2 * i + 1] == f"{names[1]} {shown['verdict']} {second}".split()


def check_points(ax, x, y, *reaches):
    """Points lie at (x, y); each of `reaches`, (dx, dy), is how far a bar of theirs goes to both sides."""
    places, *reaches = (np.transpose(pair) for pair in ((x, y), *reaches))
    for place, container, *reach in zip(places, ax.containers, *reaches, strict=True):
        point, _, bars = container.lines
        assert point.get_xydata()[0] == pytest.approx(place)
        for bar, far in zip(bars, reach, strict=True):
            assert bar.get_segments()[0] == pytest.approx(np.array([place - far, place + far]))


@pytest.mark.parametrize(("name", "lines"), [("alpha", [[0, 2, 4], [1, 3, 5]]), ("beta", [[0, 1], [2, 3], [4, 5]])])
def test_a_plot_over_a_field_shows_means_sd_and_the_band_of_the_baseline_on_each_split(study, name, lines):
    places = np.arange(len(lines[0]))
    for ax, split in zip(study.figures[f"{name}.png"].axes, ("valid", "test"), strict=True):
        means, sds = (study.columns[f"{split}_ppl_{part}"][lines] for part in ("mean", "sd"))
        check_points(ax, np.tile(places, len(lines)), means.ravel(), [0 * sds.ravel(), sds.ravel()])
        level, *drawn = (line for line in ax.lines if len(line.get_xydata()) > 1)
        assert level.get_ydata() == pytest.approx(means[0, [0, 0]])
        for line, mean in zip(drawn, means, strict=True):
            assert line.get_xydata() == pytest.approx(np.transpose([places, mean]))
        mean, sd = means[0, 0], sds[0, 0]
        assert ax.patches[0].get_bbox().intervaly == pytest.approx([mean - sd, mean + sd])


def test_the_heatmap_shows_mean_valid_perplexity_over_alpha_and_beta(study):
    ax, mean = study.figures["heatmap.png"].axes[0], study.columns["valid_ppl_mean"]
    assert np.array(ax.images[0].get_array()) == pytest.approx(mean.reshape(3, 2).T)
    inks = np.where(mean < (mean.min() + mean.max()) / 2, "white", "black")
    expected = {
        configuration: (f"{value:.2f}", ink) for configuration, value, ink in zip(CELLS, mean, inks, strict=True)
    }
    assert {text.get_position(): (text.get_text(), text.get_color()) for text in ax.texts} == expected


def test_the_plot_of_activations_shows_means_and_sd_of_both_coordinates_and_names_the_configurations(study):
    for ax, name in zip(study.figures["activations.png"].axes, ("rms", "temporal_rms"), strict=True):
        x, dx, y, dy = (study.columns[f"{metric}_{part}"] for metric in (name, "test_ppl") for part in ("mean", "sd"))
        check_points(ax, x, y, [dx, 0 * dx], [0 * dy, dy])
        labels = {text.get_text(): text.xy for text in ax.texts}
        assert np.array([labels[f"{alpha}/{beta}"] for alpha, beta in CELLS]) == pytest.approx(np.transpose([x, y]))


def test_learning_curves_are_means_over_seeds_of_the_epochs_that_all_have(study):
    means = np.reshape([line["curve"][:5] for line in study.lines], (6, 3, 5, 2)).mean(1)
    worst_first = np.argsort(-study.columns["valid_ppl_mean"])  # so that the best is drawn on top
    for line, i in zip(study.figures["curves.png"].axes[0].lines, worst_first, strict=True):
        assert line.get_xydata() == pytest.approx(means[i])


def test_a_reader_waits_while_a_writer_holds_the_ledger(tmp_path):
    ledger = tmp_path / "runs.jsonl"
    with ThreadPoolExecutor() as pool, ledger.open("w") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        print('{"id": "a", ', end="", file=writer, flush=True)
        reader = pool.submit(read_ledger, ledger)
        with pytest.raises(TimeoutError):
            reader.result(timeout=0.3)
        print('"seed": 1}', file=writer, flush=True)
        fcntl.flock(writer, fcntl.LOCK_UN)
        assert reader.result(timeout=30) == [{"id": "a", "seed": 1}]
