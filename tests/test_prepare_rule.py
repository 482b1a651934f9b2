"""Rules over the columns of a log."""

import numpy as np
import pytest

from kser_tf.errors import ConfigError
from kser_tf.pipelines.log_rule import Rule

COLUMNS = {
    "stars": np.array([1.0, 3.0, 5.0, np.nan]),
    "seconds": np.array([-2.0, 40.0, 40.5, 40.0]),
    "source": np.array(["web", None, "app", "web"], dtype=object),
    "the source": np.array(["β", "β", "δ", None], dtype=object),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stars > 3", [0, 0, 1, 0]),
        ("stars <= 3", [1, 1, 0, 0]),
        ("stars != 3", [1, 0, 1, 0]),  # a missing value satisfies nothing
        ("seconds == -2", [1, 0, 0, 0]),
        ("seconds < 40.5 and stars >= 1", [1, 1, 0, 0]),
        ("source == 'web' or stars > 3", [1, 0, 1, 1]),
        ('source != "web"', [0, 0, 1, 0]),
        ("stars == 1 or stars == 5 and source == 'web'", [1, 0, 0, 0]),  # `and` binds closer
        ("(stars == 1 or stars == 5) and source == 'app'", [0, 0, 1, 0]),
        ("`the source` == 'β' and `stars` < 3", [1, 0, 0, 0]),
    ],
)
def test_rules_say_what_they_say_in_python(text, expected):
    rule = Rule(text)
    assert rule({name: COLUMNS[name] for name in rule.columns}).tolist() == [bool(value) for value in expected]


def test_columns_tell_how_they_are_compared():
    assert Rule("stars > 3 and (`the source` == 'β' or stars < 1)").columns == {"stars": float, "the source": str}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stars",
        "stars >",
        "3 < stars",
        "1 < stars < 3",
        "stars > seconds",
        "stars > 3 and source",
        "not stars > 3",
        "stars in [1, 2]",
        "abs(stars) > 3",
        "stars.real > 3",
        "__import__('os').system('true') == 0",
        "stars = 3",
        "stars > 3; seconds > 3",
        "source == -'web'",
        "stars > None",
        "stars > 3\x00",
        "stars > (3",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match=r"is not a rule\. A rule compares columns with numbers or quoted strings"):
        Rule(text)


def test_a_column_is_a_number_or_a_text():
    with pytest.raises(ConfigError, match="compares `stars` with a number and with a string"):
        _ = Rule("stars > 3 or stars == 'many'").columns
