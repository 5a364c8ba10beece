"""Temperature, thresholds and calibration error against cases worked out by hand."""

import math

import pytest

from afs_mlx.experts.routing.calibration import (
    Guess,
    expected_calibration_error,
    fit_temperature,
    guesses,
    softmax,
    threshold_for,
)


def test_softmax() -> None:
    assert softmax([0.0, math.log(3)]) == pytest.approx([0.25, 0.75])
    assert softmax([1000.0, 0.0]) == pytest.approx([1.0, 0.0])
    assert softmax([0.0, math.log(9)], 2.0) == pytest.approx([0.25, 0.75])


def test_the_temperature_makes_shares_true() -> None:
    # Three of four are right, the scores say nine of ten: log 9 / T = log 3.
    rows = [[0.0, math.log(9)]] * 4
    assert fit_temperature(rows, [1, 1, 1, 0]) == pytest.approx(2.0, abs=0.01)


def test_the_threshold_keeps_the_wrong_rate() -> None:
    found = [Guess(0.9, True), Guess(0.8, True), Guess(0.7, False), Guess(0.6, True), Guess(0.5, False)]
    assert threshold_for(found, 0.0) == pytest.approx(0.75)
    assert threshold_for(found, 0.25) == pytest.approx(0.55)
    assert threshold_for(found, 0.4) == 0.0
    assert threshold_for([Guess(0.9, False)], 0.1) == 1.0


def test_guesses_of_one_confidence_stand_together() -> None:
    assert threshold_for([Guess(0.8, True), Guess(0.8, False), Guess(0.6, False)], 0.1) == 1.0


def test_a_guess_at_general_is_none() -> None:
    found = guesses(["din", "general"], [[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]], ["din", "din", "general"])
    assert found == [Guess(0.7, True), Guess(0.6, False)]


def test_calibration_error() -> None:
    assert expected_calibration_error([0.75] * 4, [True, True, True, False]) == 0
    assert expected_calibration_error([1.0, 0.0], [False, False]) == pytest.approx(0.5)
    assert expected_calibration_error([], []) == 0
