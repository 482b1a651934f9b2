import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kser_tf import metrics
from kser_tf.errors import DataError

LABELS = [0, 0, 1, 1]
SCORES = [0.1, 0.4, 0.35, 0.8]

# A user with both classes, one with positives alone, one with negatives alone, one with ties.
GROUPS = ["a", "a", "a", "b", "b", "c", "d", "d"]
GROUPED_LABELS = [1, 0, 0, 1, 1, 0, 1, 0]
GROUPED_SCORES = [0.5, 0.2, 0.9, 0.1, 0.3, 0.6, 0.4, 0.4]


def pairwise_auc(labels, scores):
    """All pairs, one by one."""
    positives = [s for y, s in zip(labels, scores, strict=True) if y]
    negatives = [s for y, s in zip(labels, scores, strict=True) if not y]
    if not positives or not negatives:
        return math.nan
    return sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives) / (len(positives) * len(negatives))


def looped_gauc(labels, scores, groups):
    total = weight = 0.0
    for group in set(groups):
        rows = [i for i, g in enumerate(groups) if g == group]
        value = pairwise_auc([labels[i] for i in rows], [scores[i] for i in rows])
        if not math.isnan(value):
            total, weight = total + len(rows) * value, weight + len(rows)
    return total / weight if weight else math.nan


# Few different scores, so that ties are the rule.
tied_rows = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 4)), max_size=40)


def columns(rows):
    return tuple(list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])


def simulated(rows=4000, users=60, noise=0.5, seed=0):
    """Labels drawn from known logits, and two models' scores: the logits themselves, and the logits with noise."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=rows)
    labels = generator.random(rows) < 1 / (1 + np.exp(-logits))
    return (
        labels.astype(int),
        logits,
        logits + noise * generator.normal(size=rows),
        generator.integers(users, size=rows),
    )


class TestAuc:
    def test_by_hand(self):
        assert metrics.auc(LABELS, SCORES) == 0.75  # of four pairs, (0.35, 0.4) alone is in the wrong order

    def test_ties_count_half(self):
        assert metrics.auc([0, 1], [0.5, 0.5]) == 0.5
        assert metrics.auc([0, 0, 1], [0.5, 0.1, 0.5]) == 0.75

    @given(tied_rows)
    def test_equals_the_share_of_pairs(self, rows):
        labels, scores, _ = columns(rows)
        assert metrics.auc(labels, scores) == pytest.approx(pairwise_auc(labels, scores), nan_ok=True)

    @given(tied_rows)
    def test_negated_scores_give_the_complement(self, rows):
        labels, scores, _ = columns(rows)
        assert metrics.auc(labels, [-s for s in scores]) == pytest.approx(1 - metrics.auc(labels, scores), nan_ok=True)

    def test_equals_scikit_learn(self):
        sklearn = pytest.importorskip("sklearn.metrics")
        labels, _, scores, _ = simulated()
        scores = np.round(scores, 1)
        assert metrics.auc(labels, scores) == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-12)

    @pytest.mark.parametrize("labels", [[], [1, 1], [0]])
    def test_is_nan_if_a_class_is_missing(self, labels):
        assert math.isnan(metrics.auc(labels, [0.5] * len(labels)))

    def test_infinite_scores_are_in_order(self):
        assert metrics.auc([0, 1, 1], [-np.inf, 0.0, np.inf]) == 1.0

    def test_takes_what_keras_predicts(self):
        assert metrics.auc(np.array(LABELS, bool)[:, None], np.array(SCORES, np.float32)[:, None]) == 0.75

    def test_many_rows_do_not_overflow(self):
        # 10^10 pairs, more than 32 bits hold.
        labels = np.arange(200_000) >= 100_000
        assert metrics.auc(labels, np.arange(200_000)) == 1.0


class TestGauc:
    def test_by_hand(self):
        # a: 0.5 with three rows, d: 0.5 * 1 pair with two rows; b and c have one class.
        assert metrics.gauc(GROUPED_LABELS, GROUPED_SCORES, GROUPS) == pytest.approx((3 * 0.5 + 2 * 0.5) / 5)
        assert metrics.gauc([1, 0, 0, 1, 0], [3, 2, 4, 9, 1], [7, 7, 7, 5, 5]) == pytest.approx((3 * 0.5 + 2 * 1.0) / 5)

    @given(tied_rows)
    def test_equals_a_loop_over_users(self, rows):
        labels, scores, groups = columns(rows)
        expected = looped_gauc(labels, scores, groups)
        assert metrics.gauc(labels, scores, groups) == pytest.approx(expected, nan_ok=True)
        names = np.array([f"user {g}" for g in groups], object)
        assert metrics.gauc(labels, scores, names) == pytest.approx(expected, nan_ok=True)

    def test_one_user_is_the_auc(self):
        assert metrics.gauc(LABELS, SCORES, ["u"] * 4) == metrics.auc(LABELS, SCORES)

    def test_is_nan_if_no_user_has_both_classes(self):
        assert math.isnan(metrics.gauc([0, 1], [0.1, 0.2], [1, 2]))

    def test_a_million_rows_of_six_thousand_users(self):
        generator = np.random.default_rng(0)
        labels, scores = generator.integers(2, size=1_000_000), generator.random(1_000_000, np.float32)
        users = generator.integers(6_000, size=1_000_000)
        start = time.process_time()
        value = metrics.gauc(labels, scores, users)
        # A loop over users takes a minute; the bound leaves room for a slow machine.
        assert time.process_time() - start < 8
        assert value == pytest.approx(0.5, abs=0.005)


class TestLogLoss:
    def test_by_hand(self):
        expected = -(math.log(0.9) + math.log(0.6) + math.log(0.2)) / 3
        assert metrics.log_loss([1, 0, 1], [0.9, 0.4, 0.2]) == pytest.approx(expected, abs=1e-12)

    def test_equals_scikit_learn_on_saturated_probabilities(self):
        sklearn = pytest.importorskip("sklearn.metrics")
        for dtype in (np.float32, np.float64):
            probabilities = np.array([0.0, 1.0, 0.3, 1.0], dtype)
            labels = [1, 1, 0, 0]
            assert metrics.log_loss(labels, probabilities) == pytest.approx(
                sklearn.log_loss(labels, probabilities), rel=1e-6
            )

    def test_logits_and_probabilities_agree(self):
        labels, logits, _, _ = simulated()
        from_logits = metrics.log_loss_from_logits(labels, logits)
        assert from_logits == pytest.approx(metrics.log_loss(labels, metrics.sigmoid(logits)), abs=1e-12)

    def test_logits_of_any_size(self):
        assert metrics.log_loss_from_logits([1, 0], [-1000.0, -1000.0]) == 500.0
        assert metrics.log_loss_from_logits([1], [50.0]) == pytest.approx(math.exp(-50), rel=1e-12)
        assert metrics.log_loss_from_logits([0], [math.inf]) == math.inf

    def test_no_rows(self):
        assert math.isnan(metrics.log_loss([], []))
        assert math.isnan(metrics.log_loss_from_logits([], []))


def test_sigmoid_of_any_size():
    np.testing.assert_allclose(
        metrics.sigmoid([-np.inf, -1000.0, -50.0, 0.0, math.log(3), 1000.0]),
        [0, 0, math.exp(-50), 0.5, 0.75, 1],
        rtol=1e-14,
    )


class TestCalibration:
    def test_by_hand(self):
        # Two bins of two rows: predicted 0.15 and 0.75, observed 0.5 and 1.
        labels, probabilities = [1, 0, 1, 1], [0.1, 0.2, 0.7, 0.8]
        assert metrics.calibration_curve(labels, probabilities, bins=2) == [
            {"predicted": pytest.approx(0.15), "observed": 0.5, "rows": 2},
            {"predicted": pytest.approx(0.75), "observed": 1.0, "rows": 2},
        ]
        assert metrics.calibration_error(labels, probabilities, bins=2) == pytest.approx(0.5 * 0.35 + 0.5 * 0.25)

    def test_bins_have_equal_mass(self):
        labels, logits, _, _ = simulated(rows=1000)
        curve = metrics.calibration_curve(labels, metrics.sigmoid(logits))
        assert [point["rows"] for point in curve] == [50] * 20

    def test_calibrated_and_overconfident(self):
        labels, logits, _, _ = simulated(rows=100_000)
        assert metrics.calibration_error(labels, metrics.sigmoid(logits)) < 0.01
        assert metrics.calibration_error(labels, metrics.sigmoid(3 * logits)) > 0.1

    def test_a_constant_prediction_is_one_bin(self):
        # A stable sort of sorted labels would make bins of zeros and bins of ones here, and call it badly calibrated.
        labels = [0] * 50 + [1] * 50
        assert metrics.calibration_curve(labels, [0.5] * 100) == [{"predicted": 0.5, "observed": 0.5, "rows": 100}]
        assert metrics.calibration_error(labels, [0.5] * 100) == 0.0

    @given(tied_rows.filter(len), st.integers(1, 6), st.randoms())
    def test_the_order_of_rows_does_not_matter(self, rows, bins, random):
        labels, scores, _ = columns(rows)
        probabilities = metrics.sigmoid(scores)
        order = list(range(len(rows)))
        random.shuffle(order)
        curve = metrics.calibration_curve(labels, probabilities, bins)
        shuffled = metrics.calibration_curve(np.array(labels)[order], probabilities[order], bins)
        assert [p["rows"] for p in curve] == [p["rows"] for p in shuffled]
        assert [p["observed"] for p in curve] == pytest.approx([p["observed"] for p in shuffled])
        assert sum(p["rows"] for p in curve) == len(rows)
        assert sum(p["rows"] * p["observed"] for p in curve) == pytest.approx(sum(labels))

    def test_no_rows(self):
        assert metrics.calibration_curve([], []) == []
        assert math.isnan(metrics.calibration_error([], []))

    def test_no_bins(self):
        with pytest.raises(DataError, match=r"`bins` must be at least 1. Received: `bins=0`"):
            metrics.calibration_curve([1], [0.5], bins=0)


class TestAucByPopularity:
    def test_by_hand(self):
        result = metrics.auc_by_popularity(
            labels=[1, 0, 1, 0, 1, 1],
            scores=[2, 1, 1, 2, 5, 0],
            training_rows=[0, 0, 1, 9, 10, 5000],
            edges=(0, 1, 10, 100),
        )
        assert result == [
            {"low": 0, "high": 1, "rows": 2, "positives": 1, "auc": 1.0},
            {"low": 1, "high": 10, "rows": 2, "positives": 1, "auc": 0.0},
            {"low": 10, "high": 100, "rows": 1, "positives": 1, "auc": None},
            {"low": 100, "high": None, "rows": 1, "positives": 1, "auc": None},
        ]

    @given(tied_rows)
    def test_equals_the_auc_of_each_bin(self, rows):
        labels, scores, counts = columns(rows)
        for i, point in enumerate(metrics.auc_by_popularity(labels, scores, counts, edges=(0, 1, 3))):
            inside = [j for j, c in enumerate(counts) if (c == 0, c in (1, 2), c >= 3)[i]]
            expected = pairwise_auc([labels[j] for j in inside], [scores[j] for j in inside])
            assert point["rows"] == len(inside)
            assert point["auc"] == (None if math.isnan(expected) else pytest.approx(expected))

    def test_bad_edges(self):
        with pytest.raises(DataError, match=r"`edges` must be rising .* Received: `edges=\(0, 5, 5\)`"):
            metrics.auc_by_popularity([1], [1.0], [3], edges=(0, 5, 5))
        with pytest.raises(DataError, match=r"`training_rows` holds 3, which is below the first of `edges=\(4, 5\)`"):
            metrics.auc_by_popularity([1], [1.0], [3], edges=(4, 5))


# u has 10 interactions, v 30, w 20: the median over users is 20, and v alone is active. (The median over rows is 30.)
SLICE_USERS = ("u", "v", "v", "v", "v", "v", "w", "w")
SLICE_COLUMNS = {
    "users": np.array(SLICE_USERS, object),
    "item_training_rows": [0, 49, 50, 51, 0, 0, 1000, 10],
    "item_is_cold": [True, False, False, False, True, True, False, False],
    "user_interactions": [{"u": 10, "v": 30, "w": 20}[user] for user in SLICE_USERS],
}
SLICE_LABELS = (0, 1, 1, 0, 0, 1, 1, 0)
SLICE_LOGITS = (-1.0, 2.0, 0.5, 1.0, -2.0, 3.0, 0.0, -0.5)


class TestEvaluateSlices:
    def test_rows_of_each_slice(self):
        result = metrics.evaluate_slices(SLICE_LABELS, SLICE_LOGITS, **SLICE_COLUMNS)
        assert {name: (values["rows"], values["positives"]) for name, values in result.items()} == {
            "all": (8, 4),
            "warm": (5, 3),
            "head": (3, 2),
            "tail": (2, 1),
            "cold": (3, 1),
            "active_users": (5, 3),
            "quiet_users": (3, 1),
        }

    def test_metrics_are_those_of_the_rows(self):
        cold = metrics.evaluate_slices(SLICE_LABELS, SLICE_LOGITS, **SLICE_COLUMNS)["cold"]
        labels, logits, users = [0, 0, 1], [-1.0, -2.0, 3.0], ["u", "v", "v"]
        probabilities = 1 / (1 + np.exp(-np.array(logits)))
        assert cold["auc"] == pairwise_auc(labels, logits)
        assert cold["gauc"] == looped_gauc(labels, logits, users)
        assert cold["log_loss"] == pytest.approx(metrics.log_loss(labels, probabilities))
        # Three rows, so three bins of one row each.
        assert cold["calibration_error"] == pytest.approx(np.mean(np.abs(probabilities - labels)))

    def test_what_is_not_defined_is_none(self):
        columns = {name: values[:1] for name, values in SLICE_COLUMNS.items()}
        result = metrics.evaluate_slices([1], [0.0], **columns)
        assert result["cold"] == {
            "rows": 1,
            "positives": 1,
            "auc": None,
            "gauc": None,
            "log_loss": pytest.approx(math.log(2)),
            "calibration_error": 0.5,
        }
        assert set(result["warm"].values()) == {0, None}

    def test_further_slices(self):
        further = {"odd": [row % 2 == 1 for row in range(8)]}
        result = metrics.evaluate_slices(SLICE_LABELS, SLICE_LOGITS, **SLICE_COLUMNS, further=further)
        assert result["odd"]["auc"] == pairwise_auc(np.array(SLICE_LABELS)[1::2], np.array(SLICE_LOGITS)[1::2])
        assert result["odd"]["rows"] == 4
        assert list(result)[-1] == "odd"
        with pytest.raises(DataError, match="a slice called 'cold' is always there"):
            metrics.evaluate_slices(SLICE_LABELS, SLICE_LOGITS, **SLICE_COLUMNS, further={"cold": further["odd"]})
        with pytest.raises(DataError, match="`odd` must have one value for each row"):
            metrics.evaluate_slices(SLICE_LABELS, SLICE_LOGITS, **SLICE_COLUMNS, further={"odd": [True]})

    def test_slice_rows(self):
        chosen = {name: list(np.flatnonzero(rows)) for name, rows in metrics.slice_rows(**SLICE_COLUMNS).items()}
        assert chosen == {
            "all": [0, 1, 2, 3, 4, 5, 6, 7],
            "warm": [1, 2, 3, 6, 7],
            "head": [2, 3, 6],
            "tail": [1, 7],
            "cold": [0, 4, 5],
            "active_users": [1, 2, 3, 4, 5],
            "quiet_users": [0, 6, 7],
        }

    def test_no_rows(self):
        result = metrics.evaluate_slices([], [], users=[], item_training_rows=[], item_is_cold=[], user_interactions=[])
        assert all(set(values.values()) == {0, None} for values in result.values())

    def test_a_column_of_another_length(self):
        with pytest.raises(DataError, match=r"`item_is_cold` must have one value .* Received: 2 values for 8"):
            metrics.evaluate_slices(SLICE_LABELS, SLICE_LOGITS, **{**SLICE_COLUMNS, "item_is_cold": [True, False]})


class TestBadInput:
    def test_labels_that_are_not_binary(self):
        with pytest.raises(DataError, match=r"`labels` must be 0 or 1. Received: 5 at row 1"):
            metrics.auc([0, 5], [0.1, 0.2])
        with pytest.raises(DataError, match=r"`labels` must be 0 or 1. Received: nan at row 0"):
            metrics.auc([math.nan, 1], [0.1, 0.2])

    def test_scores_of_a_diverged_model(self):
        with pytest.raises(DataError, match=r"`logits` must be numbers. Received: NaN in 1 of 2 rows, .* row 1"):
            metrics.log_loss_from_logits([0, 1], [0.1, math.nan])

    def test_lengths(self):
        with pytest.raises(DataError, match=r"`labels` and `scores` must be of one length. Received: 2 and 3 rows"):
            metrics.auc([0, 1], [0.1, 0.2, 0.3])

    def test_shape(self):
        with pytest.raises(DataError, match=r"`scores` must be of shape .* Received: shape \(2, 2\)"):
            metrics.auc([0, 1], np.zeros((2, 2)))

    def test_logits_for_probabilities(self):
        with pytest.raises(DataError, match=r"`probabilities` must be .* Received: -2.5 at row 1. Are they logits"):
            metrics.log_loss([0, 1], [0.5, -2.5])


class TestPairedDifference:
    def test_by_hand(self):
        # Differences 1, 2, 3: mean 2, standard deviation 1, t(2) = 4.3027 from the tables.
        result = metrics.paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
        assert result["difference"] == 2.0
        assert result["low"] == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-4)
        assert result["high"] == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-4)
        assert result["seeds"] == 3

    def test_equals_scipy(self):
        stats = pytest.importorskip("scipy.stats")
        ours, theirs = np.random.default_rng(0).normal(size=(2, 5))
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        result = metrics.paired_difference(list(ours), list(theirs))
        assert (result["low"], result["high"]) == pytest.approx((interval.low, interval.high), rel=1e-10)

    def test_one_seed_has_no_interval(self):
        assert metrics.paired_difference([0.5], [0.25]) == {"difference": 0.25, "low": None, "high": None, "seeds": 1}

    def test_undefined_figures(self):
        expected = {"difference": None, "low": None, "high": None, "seeds": 2}
        assert metrics.paired_difference([0.5, None], [0.25, 0.5]) == expected
        assert metrics.paired_difference([], [])["difference"] is None

    def test_lengths(self):
        with pytest.raises(DataError, match=r"one figure for each seed. Received: shapes \(2,\) and \(1,\)"):
            metrics.paired_difference([0.5, 0.5], [0.5])


class TestStudentT:
    @pytest.mark.parametrize(
        ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
    )
    def test_tables(self, degrees, expected):
        assert metrics.student_t_quantile(degrees) == pytest.approx(expected, abs=5e-5)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 300), st.floats(0.01, 0.999))
    def test_equals_scipy(self, degrees, confidence):
        stats = pytest.importorskip("scipy.stats")
        expected = stats.t.ppf((1 + confidence) / 2, degrees)
        assert metrics.student_t_quantile(degrees, confidence) == pytest.approx(expected, rel=1e-8)

    @pytest.mark.parametrize(("degrees", "confidence"), [(0, 0.95), (3, 1.0)])
    def test_out_of_range(self, degrees, confidence):
        with pytest.raises(DataError, match=f"`degrees_of_freedom={degrees}`, `confidence={confidence}`"):
            metrics.student_t_quantile(degrees, confidence)


class TestBootstrap:
    @pytest.mark.parametrize("most_users_in_a_matrix", [0, 2048])
    @pytest.mark.parametrize("smallest_block", [4, 64])
    def test_equals_a_bootstrap_that_copies_rows(self, monkeypatch, most_users_in_a_matrix, smallest_block):
        monkeypatch.setattr(metrics, "_MOST_USERS_IN_A_MATRIX", most_users_in_a_matrix)
        monkeypatch.setattr(metrics, "_SMALLEST_BLOCK", smallest_block)
        monkeypatch.setattr(metrics, "_PAIRS_AT_ONCE", 5 * smallest_block)
        labels, ours, theirs, users = simulated(rows=120, users=12)
        ours, theirs = np.round(ours, 1), np.round(theirs, 1)  # with ties
        result = metrics.bootstrap_auc_difference(labels, ours, theirs, users, repetitions=25, seed=3)
        generator = np.random.default_rng(3)
        drawn = []
        for _ in range(25):
            rows = np.concatenate([np.flatnonzero(users == user) for user in generator.integers(12, size=12)])
            drawn.append(pairwise_auc(labels[rows], ours[rows]) - pairwise_auc(labels[rows], theirs[rows]))
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (result["low"], result["high"]) == pytest.approx((low, high), abs=1e-12)
        assert result["difference"] == pytest.approx(pairwise_auc(labels, ours) - pairwise_auc(labels, theirs))

    def test_a_better_model_is_better_and_equal_ones_are_equal(self):
        labels, ours, theirs, users = simulated()
        result = metrics.bootstrap_auc_difference(labels, ours, theirs, users, repetitions=200)
        assert 0 < result["low"] < result["difference"] < result["high"]
        nothing = metrics.bootstrap_auc_difference(labels, ours, 2 * ours + 1, users, repetitions=20)
        assert nothing == {"difference": 0.0, "low": 0.0, "high": 0.0}

    def test_users_not_rows_are_resampled(self):
        # Every row ten times, as ten rows of one user: ten times the rows tell nothing new, and the interval must not
        # shrink.
        labels, ours, theirs, _ = simulated(rows=200)
        single = metrics.bootstrap_auc_difference(labels, ours, theirs, np.arange(200), repetitions=300)
        tenfold = metrics.bootstrap_auc_difference(
            *(np.repeat(values, 10) for values in (labels, ours, theirs, np.arange(200))), repetitions=300
        )
        assert tenfold == pytest.approx(single, abs=1e-9)

    def test_the_seed_decides(self):
        labels, ours, theirs, users = simulated(rows=500)
        first, second, other = (
            metrics.bootstrap_auc_difference(labels, ours, theirs, users, repetitions=30, seed=seed)
            for seed in (1, 1, 2)
        )
        assert first == second
        assert first["low"] != other["low"]

    def test_one_class_and_one_user(self):
        nothing = {"difference": None, "low": None, "high": None}
        assert metrics.bootstrap_auc_difference([1, 1], [1, 2], [2, 1], ["a", "b"]) == nothing
        one_user = metrics.bootstrap_auc_difference([0, 1], [1, 2], [2, 1], ["a", "a"])
        assert one_user == {"difference": 1.0, "low": None, "high": None}

    def test_draws_of_one_class_are_left_out(self):
        # Each user has one class: draws of one user twice have no AUC; all others have the one of the two rows.
        result = metrics.bootstrap_auc_difference([0, 1], [1, 2], [2, 1], ["a", "b"], repetitions=20)
        assert result == {"difference": 1.0, "low": 1.0, "high": 1.0}

    def test_bad_repetitions(self):
        with pytest.raises(DataError, match=r"`repetitions` must be at least 1. Received: `repetitions=0`"):
            metrics.bootstrap_auc_difference([0, 1], [1, 2], [2, 1], ["a", "b"], repetitions=0)


class TestBootstrapAuc:
    def test_differences_of_its_draws_are_the_paired_bootstrap(self):
        labels, ours, theirs, users = simulated(rows=300)
        draws = [metrics.bootstrap_auc(labels, scores, users, repetitions=50, seed=2) for scores in (ours, theirs)]
        expected = metrics.bootstrap_auc_difference(labels, ours, theirs, users, repetitions=50, seed=2)
        assert metrics.percentile_interval(draws[0] - draws[1]) == (expected["low"], expected["high"])

    def test_spread_is_that_of_theory(self, rng):
        # One row a user: the variance of the AUC is known (DeLong, DeLong and Clarke-Pearson 1988), from how often each
        # positive row beats the negative ones, and each negative row is beaten.
        labels = np.arange(1200) % 3 == 0
        scores = rng.normal(size=1200) + labels
        wins = scores[labels][:, None] > scores[~labels]
        variance = wins.mean(axis=1).var(ddof=1) / labels.sum() + wins.mean(axis=0).var(ddof=1) / (~labels).sum()
        drawn = metrics.bootstrap_auc(labels, scores, np.arange(1200), repetitions=4000)
        assert drawn.mean() == pytest.approx(wins.mean(), abs=4 * np.sqrt(variance / 4000))
        assert drawn.std() == pytest.approx(np.sqrt(variance), rel=0.05)

    def test_nothing_to_draw_from(self):
        assert np.isnan(metrics.bootstrap_auc([], [], [], repetitions=3)).tolist() == [True] * 3
        assert np.isnan(metrics.bootstrap_auc([1, 1], [1, 2], ["a", "b"], repetitions=2)).all()
        assert metrics.percentile_interval([np.nan, np.nan]) == (None, None)
        assert metrics.percentile_interval([np.nan, 1.0, 1.0]) == (1.0, 1.0)
        with pytest.raises(DataError, match=r"`repetitions` must be at least 1. Received: `repetitions=0`"):
            metrics.bootstrap_auc([0, 1], [1, 2], ["a", "b"], repetitions=0)
