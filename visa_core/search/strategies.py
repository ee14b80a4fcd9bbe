"""Searches over value vectors behind one interface: the Gaussian's rule, CMA-ES, random points.

A strategy's future depends on its settings and on what it was told, so that a saved search is
brought back by telling its history again.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from visa_core.config.search import SearchConfig
from visa_core.search.rule import Gaussian, draw, update


class Strategy(Protocol):
    """Ask for candidates, tell their rewards, in turns."""

    def ask(self) -> np.ndarray:
        """The next candidates, [K, D] within the bound."""
        ...

    def tell(self, candidates_KD: np.ndarray, rewards_K: np.ndarray) -> None:
        """Rewards of what `ask` gave; larger is better."""
        ...

    def answer(self) -> np.ndarray:
        """The vector to use if the search ended now, [D]."""
        ...

    def spread(self) -> np.ndarray:
        """Standard deviation of the next candidates a value, [D]."""
        ...


class GaussianSearch:
    """The paper's search: `visa_core.search.rule`. Its answer is the mean."""

    def __init__(self, config: SearchConfig, dimensions: int) -> None:
        self.config = config
        self.iteration = 0
        self.state = Gaussian(np.zeros(dimensions), np.full(dimensions, config.sigma**2))

    def ask(self) -> np.ndarray:
        config = self.config
        return draw(self.state, config.candidates, config.bound, config.seed, self.iteration)

    def tell(self, candidates_KD: np.ndarray, rewards_K: np.ndarray) -> None:
        self.state = update(self.state, candidates_KD, rewards_K, self.config.rule)
        self.iteration += 1

    def answer(self) -> np.ndarray:
        return self.state.mean

    def spread(self) -> np.ndarray:
        return np.sqrt(self.state.variance)


class CMASearch:
    """CMA-ES (Hansen and Ostermeier 2001) by the package cmaes. Its answer is its mean."""

    def __init__(self, config: SearchConfig, dimensions: int) -> None:
        try:
            from cmaes import CMA
        except ModuleNotFoundError as error:
            raise ValueError(
                "--strategy cma needs the package cmaes: pip install 'visa-core[search]'"
            ) from error
        self.config = config
        self.cma = CMA(
            mean=np.zeros(dimensions),
            sigma=config.sigma,
            bounds=np.tile([-config.bound, config.bound], (dimensions, 1)),
            seed=config.seed,
            population_size=config.candidates,
        )

    def ask(self) -> np.ndarray:
        return np.stack([self.cma.ask() for _ in range(self.config.candidates)])

    def tell(self, candidates_KD: np.ndarray, rewards_K: np.ndarray) -> None:
        self.cma.tell([(z, -float(r)) for z, r in zip(candidates_KD, rewards_K, strict=True)])

    def answer(self) -> np.ndarray:
        return np.clip(self.cma.mean, -self.config.bound, self.config.bound)

    def spread(self) -> np.ndarray:
        return self.cma._sigma * np.sqrt(np.diag(self.cma._C))


class RandomSearch:
    """Points drawn evenly from the box; the answer is the best one so far."""

    def __init__(self, config: SearchConfig, dimensions: int) -> None:
        self.config = config
        self.dimensions = dimensions
        self.iteration = 0
        self.best: tuple[float, np.ndarray] = (-np.inf, np.zeros(dimensions))

    def ask(self) -> np.ndarray:
        generator = np.random.default_rng([self.config.seed, self.iteration])
        shape = (self.config.candidates, self.dimensions)
        return generator.uniform(-self.config.bound, self.config.bound, shape)

    def tell(self, candidates_KD: np.ndarray, rewards_K: np.ndarray) -> None:
        self.iteration += 1
        first = int(rewards_K.argmax())
        if rewards_K[first] > self.best[0]:
            self.best = float(rewards_K[first]), candidates_KD[first]

    def answer(self) -> np.ndarray:
        return self.best[1]

    def spread(self) -> np.ndarray:
        return np.full(self.dimensions, self.config.bound / np.sqrt(3))


STRATEGIES = {"gaussian": GaussianSearch, "cma": CMASearch, "random": RandomSearch}


def make_strategy(config: SearchConfig, dimensions: int) -> Strategy:
    """The strategy that the settings name, at its start."""
    if config.strategy not in STRATEGIES:
        raise ValueError(
            f"--strategy must be one of {', '.join(STRATEGIES)}, got {config.strategy!r}"
        )
    return STRATEGIES[config.strategy](config, dimensions)
