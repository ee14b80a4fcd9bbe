"""The search's outer loop: the rule, its strategies on known landscapes, resume, bad rewards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.landscapes import GOAL, SETTINGS, climb, landscape, measured
from visa_core.config.search import RuleConfig, SearchConfig
from visa_core.rewards import NonFiniteRewardError
from visa_core.search.loop import search
from visa_core.search.rule import Gaussian, draw, positive_weights, update
from visa_core.search.strategies import make_strategy
from visa_core.training.checkpoint import CheckpointError

SMALL = SearchConfig(candidates=4, iterations=6, seed=3)


def sphere(candidates_KD: np.ndarray, iteration: int) -> list[dict[str, float]]:
    return [{"reward": float(-((z - 0.3) ** 2).sum())} for z in candidates_KD]


def test_rule_by_hand() -> None:
    """Two of three samples: advantages 0, 1 and -1 over one deviation, so all weight on one."""
    rule = RuleConfig(mean_rate=0.5, variance_rate=0.25, annealing=0.8, floor=0.1)
    before = Gaussian(np.array([0.0, 0.2]), np.array([0.04, 0.01]))
    candidates = np.array([[0.1, 0.1], [0.4, 0.2], [-0.3, 0.0]])
    after = update(before, candidates, np.array([1.0, 2.0, 0.0]), rule)
    np.testing.assert_allclose(after.mean, [0.2, 0.2], rtol=1e-12)
    np.testing.assert_allclose(after.variance, [0.8 * (0.75 * 0.04 + 0.25 * 0.16), 0.01])


def test_weights_follow_the_advantages() -> None:
    rewards = np.array([3.0, 1.0, 0.0, 0.0])
    advantages = (rewards - rewards.mean()) / rewards.std()
    expected = np.where(advantages > 0, advantages, 0)
    np.testing.assert_allclose(positive_weights(rewards), expected / expected.sum())
    scaled = positive_weights(5 * rewards - 7)
    np.testing.assert_allclose(scaled, positive_weights(rewards))


@pytest.mark.parametrize("reward", [0.0, 0.1, -3.7])
def test_equal_rewards_anneal_and_do_not_move(reward: float) -> None:
    before = Gaussian(np.array([0.3]), np.array([0.04]))
    after = update(before, np.array([[0.9], [0.1], [0.3]]), np.full(3, reward), RuleConfig())
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_allclose(after.variance, 0.97 * 0.04)


def test_draws_have_the_gaussians_moments_and_respect_the_bound() -> None:
    state = Gaussian(np.array([0.2, -0.4]), np.array([0.01, 0.09]))
    drawn = draw(state, 20001, 5.0, 1, 0)
    np.testing.assert_allclose(drawn.mean(0), state.mean, atol=0.001)  # mirrored pairs
    np.testing.assert_allclose(drawn.var(0), state.variance, rtol=0.03)
    assert np.abs(draw(state, 500, 0.5, 1, 0)).max() == 0.5
    assert not np.array_equal(drawn, draw(state, 20001, 5.0, 1, 1))


@pytest.mark.parametrize("name", list(SETTINGS))
def test_reaches_the_optimum_of_known_landscapes(name: str) -> None:
    """95 % of the way in at least 9 of 10 seeds within the stated budget; random points do not."""
    assert measured(name, "gaussian", 10)["solved"] >= 9
    if name != "rotated":
        assert measured(name, "random", 10)["solved"] <= 1


@pytest.mark.parametrize("name", ["sphere", "multi-modal", "boundary"])
def test_cma_reaches_them_too(name: str) -> None:
    assert measured(name, "cma", 3)["solved"] == 3


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("strategy", ["gaussian", "cma", "random"])
def test_boundaries_hold_and_variance_anneals(name: str, strategy: str) -> None:
    config = replace(SETTINGS[name], strategy=strategy, seed=1)
    result = climb(landscape(name, 1), config)
    assert np.abs(result["candidates"]).max() <= 1.0
    if strategy == "gaussian":
        assert result["spreads"][-1] < 0.5 * config.sigma
        assert result["spreads"][-1] >= config.rule.floor - 1e-12


def test_the_goal_is_the_optimum_and_the_start_is_far() -> None:
    for name in SETTINGS:
        place = landscape(name, 2)
        assert place.true(place.optimum) == pytest.approx(1.0)
        assert place.true(np.zeros(10)) == pytest.approx(0.0) and GOAL > 0.9


@pytest.mark.parametrize("strategy", ["gaussian", "cma", "random"])
@pytest.mark.parametrize("stop", range(6))
def test_resumed_from_any_iteration_to_the_same_path(
    tmp_path: Path, strategy: str, stop: int
) -> None:
    config = replace(SMALL, strategy=strategy)
    whole = search(config, 5, sphere, tmp_path / "whole.json")

    def stopping(candidates_KD: np.ndarray, iteration: int) -> list[dict[str, float]]:
        if iteration == stop:
            raise KeyboardInterrupt
        return sphere(candidates_KD, iteration)

    with pytest.raises(KeyboardInterrupt):
        search(config, 5, stopping, tmp_path / "cut.json")
    resumed = search(config, 5, sphere, tmp_path / "cut.json")
    assert resumed.iterations == whole.iterations
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


KILLED = """
import sys, time
from pathlib import Path
from visa_core.config.search import SearchConfig
from visa_core.search.loop import search
def measure(candidates, iteration):
    time.sleep(0.05)
    return [{"reward": float(-((z - 0.3) ** 2).sum())} for z in candidates]
search(SearchConfig(candidates=4, iterations=6, seed=3), 5, measure, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_process_resumes_to_the_same_path(repo: Path, tmp_path: Path) -> None:
    search(SMALL, 5, sphere, tmp_path / "whole.json")
    state = tmp_path / "killed.json"
    paths = os.pathsep.join(str(repo / part) for part in ("", "kernels", "trainers"))
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(state)], env=env)
    limit = time.monotonic() + 120
    while not state.exists() or len(json.loads(state.read_text())["iterations"]) < 3:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    search(SMALL, 5, sphere, state)
    assert state.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_more_iterations_go_on_and_other_settings_are_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    first = search(replace(SMALL, iterations=2), 5, sphere, state)
    more = search(SMALL, 5, sphere, state)
    assert more.iterations[:2] == first.iterations and len(more.iterations) == 6
    with pytest.raises(CheckpointError, match="other settings .*sigma: 0.3 -> 0.2"):
        search(replace(SMALL, sigma=0.2), 5, sphere, state)
    with pytest.raises(CheckpointError, match="other settings .*weight"):
        search(SMALL, 5, sphere, state, fingerprint={"weight": 2})


def test_a_state_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json is not a readable state"):
        search(SMALL, 5, sphere, state)
    search(SMALL, 5, sphere, tmp_path / "other.json")
    record = json.loads((tmp_path / "other.json").read_text())
    record["iterations"][1]["candidates"][0][0] += 1e-9
    state.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="iteration 1 cannot be repeated"):
        search(SMALL, 5, sphere, state)


def test_rewards_that_cannot_be_used(tmp_path: Path) -> None:
    def broken(candidates_KD: np.ndarray, iteration: int) -> list[dict[str, float]]:
        records = sphere(candidates_KD, iteration)
        if iteration == 2:
            records[1]["reward"] = float("nan")
        return records

    state = tmp_path / "state.json"
    with pytest.raises(NonFiniteRewardError, match="iteration 2: the reward of candidate 1 is nan"):
        search(SMALL, 5, broken, state)
    assert len(json.loads(state.read_text())["iterations"]) == 2
    assert len(search(SMALL, 5, sphere, state).iterations) == 6
    with pytest.raises(ValueError, match="all 4 candidates have the reward 1.0"):
        search(SMALL, 5, lambda z, i: [{"reward": 1.0}] * len(z), tmp_path / "flat.json")
    with pytest.raises(ValueError, match="gave 1 records for 4 candidates"):
        search(SMALL, 5, lambda z, i: [{"reward": 1.0}], tmp_path / "few.json")


def test_later_equal_rewards_only_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def flat_end(candidates_KD: np.ndarray, iteration: int) -> list[dict[str, float]]:
        return sphere(candidates_KD, iteration) if iteration < 4 else [{"reward": 0.0}] * 4

    history = search(SMALL, 5, flat_end, tmp_path / "state.json")
    assert history.iterations[5]["answer"] == history.iterations[3]["answer"]
    assert "iteration 4: all 4 candidates" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"candidates": 1}, "--candidates must be at least 2, got 1: a candidate's advantage"),
        ({"iterations": 0}, "--iterations must be at least 1"),
        ({"sigma": 0.0}, "--sigma must be above 0"),
        ({"bound": float("inf")}, "--bound must be above 0"),
    ],
)
def test_settings_are_checked(change: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **change)
    with pytest.raises(ValueError, match="--annealing must be in"):
        RuleConfig(annealing=1.5)
    with pytest.raises(ValueError, match="--strategy must be one of gaussian, cma, random"):
        make_strategy(replace(SMALL, strategy="grid"), 5)


def test_a_folder_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def never(candidates_KD: np.ndarray, iteration: int) -> list[dict[str, float]]:
        raise AssertionError("measured")

    with pytest.raises(CheckpointError, match="cannot write|not a readable"):
        search(SMALL, 5, never, tmp_path / "file" / "state.json")
