"""What TensorBoard's HPARAMS tab is told of a run."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from lm.base.rundir import RunDir
from lm.training.log import RunLog

METRICS = {"final/valid_ppl": 90.5, "final/test_ppl": 88.0, "final/train_ppl": 60.0}


@pytest.mark.parametrize("absent", [(), ("final/test_ppl",), tuple(METRICS)])
def test_every_run_names_all_final_figures_as_the_tab_has_the_columns_of_the_first(absent, tmp_path):
    figures = {name: None if name in absent else value for name, value in METRICS.items()}
    with RunLog(RunDir(tmp_path)) as log:
        log.hparams({"alpha": 2.0, "when": [1]}, figures)
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == list(METRICS)
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == {
        name: value for name, value in figures.items() if value is not None
    }
