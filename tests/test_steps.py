"""Jobs in a row: what a job left in Keras is freed, and nothing is done after one that was skipped."""

import pytest

from kser_tf.pipelines import steps
from kser_tf.pipelines.job import write_job


@pytest.fixture
def freed(monkeypatch):
    calls = []
    monkeypatch.setattr(steps, "forget_graphs", lambda: calls.append("freed"))
    return calls


def writes(folder, result):
    """A job that leaves its file, as one does that was not skipped."""

    def train(config):
        write_job(folder, job="train", config=config, inputs={}, result=result, seconds=1.0)
        return result

    return train


def test_graphs_are_freed_after_a_job_and_not_after_one_that_was_skipped(tmp_path, freed):
    jobs = steps.Steps()
    assert jobs.do(writes(tmp_path, {"auc": 0.8}), {}, tmp_path) == {"auc": 0.8}
    assert freed == ["freed"]
    jobs.do(lambda config: {"auc": 0.8}, {}, tmp_path)
    assert freed == ["freed"]
    assert [job["skipped"] for job in jobs.done] == [False, True]


def test_graphs_of_a_failed_job_are_freed_too(tmp_path, freed):
    writes(tmp_path, {})({})  # of a run before, which stays

    def diverges(config):
        raise ValueError("NaN in the loss")

    with pytest.raises(ValueError, match="NaN in the loss"):
        steps.Steps().do(diverges, {}, tmp_path)
    assert freed == ["freed"]
