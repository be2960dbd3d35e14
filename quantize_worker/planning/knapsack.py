"""Multiple-choice knapsack: one option per group at the least cost, within budgets.

Exact by enumeration where there are few combinations. With one budget that binds, dynamic
programming over the budget in fine steps (Kellerer, Pferschy, Pisinger, "Knapsack Problems", 2004,
chapter 11) finds the best for every budget up to it at once. With several, HiGHS solves the linear
relaxation (Huangfu and Hall, 2018): its prices of the other budgets turn the problem into one with
one budget; all solutions of that are tried, and the best is improved by exchanging one or two
options until nothing helps. HiGHS' branch and bound has the last word where that finds nothing.

Everything is in a fixed order and without time limits: equal problems have equal answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

STEPS = 2048  # of a budget
COARSE_STEPS = 512
FEW_COMBINATIONS = 4096
EXCHANGE_OPTIONS = 600  # most options whose pairs are tried
EXCHANGE_ALL = 200  # options up to which every choice found is improved, not only the best
EXCHANGE_ROUNDS = 40
HIGHS_NODES = 500
FAR = 0.03  # of the relaxation's cost; what a layer is said to cost is less certain than that
OTHER_PRICES = (0.3, 1.1, 3.0)  # times the relaxation's
_EPSILON = 1e-9


@dataclass(frozen=True)
class Knapsack:
    """A problem. Options are sorted by group; among equals the earlier wins.

    Args:
        group: of each option, from 0 without gaps, (options,).
        cost: (options,).
        uses: what each option takes of each budget, not negative, (budgets, options).
        budgets: (budgets,).
        tolerance: a difference in cost that is not worth a longer search.
    """

    group: Indices
    cost: Floats
    uses: Floats
    budgets: Floats
    tolerance: float = 0.0

    @property
    def groups(self) -> int:
        return int(self.group[-1]) + 1 if len(self.group) else 0

    def part(self, options: Indices, budgets: Indices | None = None) -> Knapsack:
        """The problem with these options, and these budgets, only."""
        rows = np.arange(len(self.budgets)) if budgets is None else budgets
        uses = self.uses[np.ix_(rows, options)]
        return Knapsack(self.group[options], self.cost[options], uses, self.budgets[rows], self.tolerance)

    def starts(self) -> Indices:
        """The first option of every group, and the number of options."""
        starts: Indices = np.searchsorted(self.group, np.arange(self.groups + 1))
        return starts

    def fits(self, chosen: Indices) -> bool:
        """Whether the options, one per group, keep all budgets."""
        return bool(np.all(self.uses[:, chosen].sum(axis=1) <= _roomy(self.budgets)))


def solve(problem: Knapsack) -> Indices | None:
    """The best option of every group, as indices of options; None if no choice keeps the budgets.

    Costs are within about a thousandth of the least where there are many groups, exact where few.
    """
    if not problem.groups:
        return np.zeros(0, np.intp) if np.all(problem.budgets >= 0) else None
    least, most = _extremes(problem)
    if np.any(least > _roomy(problem.budgets)):
        return None
    binding = np.flatnonzero(most > problem.budgets)
    kept = useful(problem, binding, least)
    if len(np.unique(problem.group[kept])) < problem.groups:
        return None
    chosen = _solve_reduced(problem.part(kept, binding))
    return None if chosen is None else kept[chosen]


def useful(problem: Knapsack, budgets: Indices, least: Floats) -> Indices:
    """Options that can be part of a best choice.

    Without those that no choice of the other groups makes room for, and those that another option
    of the group is no worse than in cost and every budget.
    """
    room = _roomy(problem.budgets) - least
    cheapest = np.minimum.reduceat(problem.uses, problem.starts()[:-1], axis=1)[:, problem.group]
    fits = np.all(problem.uses[budgets] - cheapest[budgets] <= room[budgets, None], axis=0)
    columns = np.vstack([problem.cost, problem.uses[budgets]]).T  # (options, 1 + budgets)
    columns[~fits] = np.inf
    return np.flatnonzero(fits & ~_dominated(columns, problem.starts()))


def every_budget(problem: Knapsack) -> Indices:
    """The best choices for every size of the first budget, the tightest first, (choices, groups)."""
    kept = useful(problem, np.zeros(1, np.intp), _extremes(problem)[0])
    part = problem.part(kept, np.zeros(1, np.intp))
    table = _Table(part, 0, part.cost)
    choices: Indices = kept[table.all_choices()]
    return choices


def _solve_reduced(problem: Knapsack) -> Indices | None:
    free = _cheapest(problem, problem.cost)
    if problem.fits(free):
        return free
    sizes = np.diff(problem.starts())
    if np.log2(sizes).sum() <= math.log2(FEW_COMBINATIONS):
        return enumerate_all(problem)
    if len(problem.budgets) == 1:
        return by_budget(problem)
    violated = np.flatnonzero(problem.uses[:, free].sum(axis=1) > problem.budgets)
    if len(violated) == 1:  # the others may keep themselves
        chosen = by_budget(problem.part(np.arange(len(problem.cost)), violated))
        if chosen is None or problem.fits(chosen):
            return chosen
    return by_prices(problem)


def enumerate_all(problem: Knapsack) -> Indices | None:
    """Try every combination."""
    starts = problem.starts()
    ranges = [np.arange(a, b) for a, b in pairwise(starts)]
    grids = np.meshgrid(*ranges, indexing="ij")
    chosen = np.stack([grid.ravel() for grid in grids])  # (groups, combinations)
    kept = np.all(problem.uses[:, chosen].sum(axis=1) <= _roomy(problem.budgets)[:, None], axis=0)
    if not kept.any():
        return None
    cost = np.where(kept, problem.cost[chosen].sum(axis=0), np.inf)
    best: Indices = chosen[:, int(cost.argmin())]
    return best


def by_budget(problem: Knapsack) -> Indices | None:
    """Dynamic programming over the only budget, then exchanges."""
    chosen = _Table(problem, 0, problem.cost).within_budget()
    return exchange(problem, chosen) if chosen is not None else by_highs(problem)


def by_prices(problem: Knapsack) -> Indices | None:
    """Dynamic programming over one budget, the others priced as in the linear relaxation.

    One group may be so large that a mixture of its options, which only the relaxation has, sets the
    prices. So where the choice is far from the relaxation's cost, other prices and budgets are tried.
    """
    prices, bound = relaxed_prices(problem)
    if prices is None:
        return None
    worth = np.argsort(-prices * problem.budgets, kind="stable")
    first = _priced(problem, prices, int(worth[0]))
    if first is not None:
        first = exchange(problem, first)
        if problem.cost[first].sum() <= bound + max(FAR * abs(bound), problem.tolerance):
            return first
    others = [(rise * prices, int(axis)) for axis in worth[:2] for rise in OTHER_PRICES]
    found = [first, *(_priced(problem, other, axis, COARSE_STEPS) for other, axis in others)]
    kept = [chosen for chosen in found if chosen is not None]
    if not kept:
        return by_highs(problem)
    if len(problem.cost) <= EXCHANGE_ALL:
        kept = [exchange(problem, chosen) for chosen in kept]
    return exchange(problem, min(kept, key=lambda chosen: float(problem.cost[chosen].sum())))


def _priced(problem: Knapsack, prices: Floats, axis: int, steps: int = STEPS) -> Indices | None:
    """The best choice within all budgets that one table over a budget contains."""
    priced = problem.cost + np.delete(prices, axis) @ np.delete(problem.uses, axis, axis=0)
    worse = _dominated(np.vstack([priced, problem.uses[axis]]).T, problem.starts())
    useful = np.flatnonzero(~worse)
    table = _Table(problem.part(useful), axis, priced[useful], steps)
    choices = useful[table.all_choices().T]  # (groups, choices)
    kept = np.all(problem.uses[:, choices].sum(axis=1) <= _roomy(problem.budgets)[:, None], axis=0)
    if not kept.any():
        return None
    cost = np.where(kept, problem.cost[choices].sum(axis=0), np.inf)
    best: Indices = choices[:, int(cost.argmin())]
    return best


def relaxed_prices(problem: Knapsack) -> tuple[Floats | None, float]:
    """What a unit of each budget is worth in the linear relaxation, and its cost.

    No prices if even the relaxation has no solution.
    """
    from scipy.optimize import linprog  # here, for it loads slowly and few plans need it

    scale = _scale(problem)
    answer = linprog(
        problem.cost,
        A_ub=problem.uses / scale[:, None],
        b_ub=_roomy(problem.budgets) / scale,
        A_eq=_one_per_group(problem),
        b_eq=np.ones(problem.groups),
        bounds=(0, None),
        method="highs-ds",
        options={"presolve": False},
    )
    if answer.x is None:
        return None, 0.0
    prices: Floats = np.maximum(0.0, -answer.ineqlin.marginals) / scale
    return prices, float(answer.fun)


def by_highs(problem: Knapsack) -> Indices | None:
    """Branch and bound, to within a hundredth."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # here, as above

    scale = _scale(problem)
    answer = milp(
        problem.cost,
        integrality=np.ones(len(problem.cost)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(_one_per_group(problem), 1, 1),
            LinearConstraint(problem.uses / scale[:, None], -np.inf, _roomy(problem.budgets) / scale),
        ],
        options={"mip_rel_gap": 0.01, "node_limit": HIGHS_NODES},
    )
    if answer.x is None:
        return None
    chosen = _cheapest(problem, -answer.x)
    return exchange(problem, chosen) if problem.fits(chosen) else None


def exchange(problem: Knapsack, chosen: Indices) -> Indices:
    """Replace one option, or two, as long as that makes the choice cheaper within the budgets."""
    chosen = chosen.copy()
    for _ in range(EXCHANGE_ROUNDS):
        current = chosen[problem.group]
        gain = problem.cost - problem.cost[current]
        more = problem.uses - problem.uses[:, current]
        room = _roomy(problem.budgets) - problem.uses[:, chosen].sum(axis=1)
        swap = _best_swap(problem.group, gain, more, room)
        if swap is None:
            break
        for option in swap:
            chosen[problem.group[option]] = option
    return chosen


def _best_swap(group: Indices, gain: Floats, more: Floats, room: Floats) -> tuple[int, ...] | None:
    best = -_EPSILON * (1.0 + float(np.abs(gain).max(initial=0.0)))
    swap: tuple[int, ...] | None = None
    single = np.where(np.all(more <= room[:, None], axis=0), gain, np.inf)
    if single.min(initial=np.inf) < best:
        best, swap = float(single.min()), (int(single.argmin()),)
    near = np.sort(np.argsort(np.abs(gain), kind="stable")[:EXCHANGE_OPTIONS])
    dearer, cheaper = near[gain[near] >= 0], near[gain[near] < 0]
    pairs = gain[cheaper][:, None] + gain[dearer]
    fits = (pairs < best) & (group[cheaper][:, None] != group[dearer])
    for row, limit in zip(more, room, strict=True):
        fits &= row[cheaper][:, None] + row[dearer] <= limit
    if fits.any():
        first, second = np.unravel_index(int(np.where(fits, pairs, np.inf).argmin()), pairs.shape)
        swap = (int(cheaper[first]), int(dearer[second]))
    return swap


class _Table:
    """The least cost for every step of one budget, and the option that each group has in it."""

    def __init__(self, problem: Knapsack, axis: int, cost: Floats, steps: int = STEPS) -> None:
        self._problem, self._axis, self._starts = problem, axis, problem.starts()
        use = problem.uses[axis]
        least = np.minimum.reduceat(use, self._starts[:-1])
        self._room = float(problem.budgets[axis] - least.sum())  # all that is left to decide about
        per_unit = steps / self._room if self._room > 0 else 0.0
        self._steps = np.rint((use - least[problem.group]) * per_unit).astype(np.intp)
        self._resolution, self._top = (
            steps,
            steps + problem.groups // 2 + 1,
        )  # rounding up may cost half a step a group
        self._choice: NDArray[Any] = np.zeros((problem.groups, self._top + 1), np.int32)
        self._fill(cost)

    def within_budget(self) -> Indices | None:
        """The best choice that really keeps the budget."""
        use, budget = self._problem.uses[self._axis], _roomy(self._problem.budgets)[self._axis]
        step = self._top
        while step >= 0:
            chosen = self._choice_at(step)
            excess = float(use[chosen].sum() - budget)
            if excess <= 0:
                return chosen
            step -= max(1, int(excess / self._room * self._resolution) // 2) if self._room > 0 else step + 1
        return None

    def all_choices(self) -> Indices:
        """Best choices of every step without repetitions, (choices, groups)."""
        left = np.arange(self._top + 1)
        chosen: Indices = np.zeros(self._choice.shape, np.intp)
        for index in reversed(range(self._problem.groups)):
            chosen[index] = self._choice[index][left]
            left = left - self._steps[chosen[index]]
        changed = np.any(np.diff(chosen, axis=1) != 0, axis=0)
        distinct: Indices = chosen[:, np.concatenate([[True], changed])].T
        return distinct

    def _fill(self, cost: Floats) -> None:
        size = self._top + 1
        padded = np.full(2 * size, np.inf)  # before the start: nothing can be reached
        least = padded[size:]
        least[:] = 0.0
        candidate, better = np.empty(size), np.empty(size, bool)
        for index, choice in enumerate(self._choice):
            best = np.full(size, np.inf)
            choice[:] = self._starts[index]
            for option in range(self._starts[index], self._starts[index + 1]):
                step = self._steps[option]
                if step >= size:
                    continue
                np.add(padded[size - step : 2 * size - step], cost[option], out=candidate)
                np.less(candidate, best, out=better)
                np.copyto(best, candidate, where=better)
                choice[better] = option
            least[:] = best

    def _choice_at(self, step: int) -> Indices:
        chosen = np.zeros(self._problem.groups, np.intp)
        for index in reversed(range(self._problem.groups)):
            chosen[index] = self._choice[index, step]
            step -= self._steps[chosen[index]]
        return chosen


def _roomy(budgets: Floats) -> Floats:
    """Budgets with room for the rounding of sums."""
    roomy: Floats = budgets + _EPSILON * np.abs(budgets)
    return roomy


def _scale(problem: Knapsack) -> Floats:
    """Makes budgets about one."""
    scale: Floats = np.maximum(np.abs(problem.budgets), 1e-12)
    return scale


def _extremes(problem: Knapsack) -> tuple[Floats, Floats]:
    """Least and most of each budget that any choice takes."""
    starts = problem.starts()[:-1]
    least = np.minimum.reduceat(problem.uses, starts, axis=1).sum(axis=1)
    most = np.maximum.reduceat(problem.uses, starts, axis=1).sum(axis=1)
    return least, most


def _cheapest(problem: Knapsack, cost: Floats) -> Indices:
    """The first cheapest option of every group."""
    starts = problem.starts()
    return np.array([a + int(cost[a:b].argmin()) for a, b in pairwise(starts)], np.intp)


def _dominated(columns: Floats, starts: Indices) -> NDArray[np.bool_]:
    """Options that another of the group is no worse than; of equals the first stays."""
    found = np.zeros(len(columns), bool)
    widths = np.diff(starts)
    for width in np.unique(widths):  # groups of one size together
        rows = starts[:-1][widths == width][:, None] + np.arange(width)
        block = columns[rows]  # (groups, width, columns)
        no_worse = np.all(block[:, :, None] <= block[:, None], axis=-1)  # (groups, this, that)
        same = np.all(block[:, :, None] == block[:, None], axis=-1)
        earlier = np.arange(width)[:, None] < np.arange(width)
        found[rows] = np.any(no_worse & (~same | earlier), axis=1)
    return found


def _one_per_group(problem: Knapsack) -> object:
    from scipy.sparse import csr_array  # here, as above

    shape = (problem.groups, len(problem.group))
    return csr_array(
        (np.ones(len(problem.group)), (problem.group, np.arange(len(problem.group)))), shape=shape
    )
