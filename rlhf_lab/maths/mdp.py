"""Markov decision processes small enough to solve: values, the best policy and the policy gradient, all exact.

A policy is a table pi [S, A] of probabilities, each row a law over actions. An episode ends in an *absorbing* state:
every action stays there for a reward of 0. With gamma 1 values are determined only where the policy reaches one; the
linear systems are solved on the other, transient states. With a `horizon` of H steps values depend on the time left.
Left out: continuous states, average reward, partial observation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

ROUNDING = 1e-10  # an advantage below this is none, in units of the largest value
SURE = 1e-6  # by how much the probability of reaching an end may miss 1 in a solution that can be trusted


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A finite Markov decision process; tensors become float64.

    Attributes:
        transitions: [S, A, S], P(next state | state, action); every row sums to 1 within 1e-9, in float32 1e-5.
        rewards: [S, A], expected reward of an action in a state.
        start: [S], law of the first state.
        gamma: discount, in [0, 1]; 1 needs an absorbing state or a horizon.
        horizon: steps after which an episode is cut, an integer >= 1; None: it runs until it is absorbed.
        states, actions: names, S and A of them; empty where there are none.

    Raises:
        ValueError: names the argument, what was got and what was expected.

    Chapter 01.
    """

    transitions: Tensor
    rewards: Tensor
    start: Tensor
    gamma: float
    horizon: int | None = None
    states: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("transitions", "rewards", "start")}
        for name, numbers in given.items():
            object.__setattr__(self, name, torch.as_tensor(numbers, dtype=torch.float64).clone())
        _check_shapes(self)
        for name in ("transitions", "start"):
            laws = getattr(self, name)
            _check_laws(name, laws, given[name])
            object.__setattr__(self, name, laws / laws.sum(dim=-1, keepdim=True))
        if not self.rewards.isfinite().all():
            raise ValueError(f"rewards[{_first(~self.rewards.isfinite())}] is not finite; expected finite numbers")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; expected a discount in [0, 1]")
        if self.horizon is not None and not (isinstance(self.horizon, Integral) and self.horizon >= 1):
            raise ValueError(f"horizon is {self.horizon}; expected a whole number of steps from 1 on, or None")
        if self.gamma == 1 and self.horizon is None and not self.absorbing.any():
            raise ValueError("gamma is 1 and no state is absorbing; expected gamma below 1, a horizon, or an end")

    @property
    def absorbing(self) -> Tensor:
        """[S] bool: every action stays in the state, for nothing."""
        stays = self.transitions.diagonal(dim1=0, dim2=2).T == 1  # [S, A]
        return (stays & (self.rewards == 0)).all(dim=1)

    def q_values(self, values: Tensor) -> Tensor:
        """[S, A]: rewards + gamma * sum over next states of P * values, values [S] one step later."""
        return self.rewards + self.gamma * (self.transitions @ values)


def _check_shapes(mdp: TabularMDP) -> None:
    shape = tuple(mdp.transitions.shape)
    if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
        raise ValueError(f"transitions has shape {shape}; expected [S, A, S]")
    for name, expected in (("rewards", shape[:2]), ("start", shape[:1])):
        if tuple(getattr(mdp, name).shape) != expected:
            raise ValueError(f"{name} has shape {tuple(getattr(mdp, name).shape)}; expected {expected}")
    for name, count in (("states", shape[0]), ("actions", shape[1])):
        if len(getattr(mdp, name)) not in (0, count):
            raise ValueError(f"{name} holds {len(getattr(mdp, name))} names; expected {count}, or none")


def _check_laws(name: str, laws: Tensor, given: object) -> None:
    """Raise unless the rows of `laws` are laws, as far as the precision in which they were given can say."""
    if not (laws >= 0).all():  # NaN fails too
        raise ValueError(f"{name}[{_first(~(laws >= 0))}] is negative or not a number; expected probabilities")
    missing = laws.sum(dim=-1) - 1
    wrong = missing.abs() > (1e-5 if getattr(given, "itemsize", 8) < 8 else 1e-9)
    if wrong.any():
        row, miss = f"[{_first(wrong)}]" if wrong.dim() else "", float(missing[wrong].flatten()[0])
        raise ValueError(f"{name}{row} sums to {1 + miss:.6g}; expected 1 (it is off by {miss:.2g})")


def _first(where: Tensor) -> str:
    return ", ".join(map(str, where.nonzero()[0].tolist()))


# -- a given policy ---------------------------------------------------------------------------------------------------
def policy_evaluation(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Value of every state under a policy, by solving Bellman's equation; differentiable in `policy`.

        V = r_pi + gamma P_pi V

    Args:
        mdp: the process.
        policy: [S, A] probabilities.

    Returns:
        [S]; with a horizon H [H + 1, S], row h the values with H - h steps left.

    Raises:
        ValueError: `policy` is no law; or gamma is 1 and from some state the policy never ends, or so rarely that the
            linear system cannot tell.

    Example:
        >>> policy_evaluation(chain(3, gamma=0.5), torch.tensor([[0.0, 1.0]] * 4)).tolist()
        [0.25, 0.5, 1.0, 0.0]

    Source: Bellman 1957, Dynamic Programming. Chapter 01.
    """
    moves, rewards = _under(mdp, policy)
    if mdp.horizon is not None:
        values = [torch.zeros_like(rewards)]
        for _ in range(mdp.horizon):
            values.append(rewards + mdp.gamma * (moves @ values[-1]))
        return torch.stack(values[::-1])
    system, transient = _system(mdp, moves)
    values = torch.linalg.solve(system, rewards[transient])
    return torch.zeros_like(rewards).index_put((transient,), values)


def occupancy(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Expected discounted visits of every state, [S], 0 at absorbing ones.

        d = start + gamma P_pi^T d,    J = sum over s, a of d(s) pi(a | s) r(s, a)

    With a horizon H [H, S], row t the discounted law of the state at step t, absorbing ones too.

    Args, Raises: as `policy_evaluation`. Chapter 02.
    """
    moves, _ = _under(mdp, policy)
    if mdp.horizon is not None:
        visits = [mdp.start]
        for _ in range(mdp.horizon - 1):
            visits.append(mdp.gamma * visits[-1] @ moves)
        return torch.stack(visits)
    system, transient = _system(mdp, moves)
    visits = torch.linalg.solve(system.T, mdp.start[transient])
    return torch.zeros_like(mdp.start).index_put((transient,), visits)


def expected_return(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """J = sum over states of start * V, a scalar; differentiable in `policy`. Chapter 01."""
    values = policy_evaluation(mdp, policy)
    return mdp.start @ (values if mdp.horizon is None else values[0])


def policy_gradient(mdp: TabularMDP, logits: Tensor) -> Tensor:
    """Exact gradient of J with respect to the logits [S, A] of a softmax policy, by the policy gradient theorem.

        dJ / dlogits(s, a) = d(s) pi(a | s) (Q(s, a) - V(s)),    with a horizon summed over the steps

    The visits d carry the discount gamma^t, which estimators of practice drop.

    Args:
        mdp: the process.
        logits: [S, A] of the policy.

    Returns:
        [S, A], detached.

    Raises:
        ValueError: as `policy_evaluation`.

    Source: Sutton et al. 2000, Policy Gradient Methods for Reinforcement Learning. Chapter 02.
    """
    policy = torch.softmax(logits.detach().double(), dim=-1)
    values, visits = policy_evaluation(mdp, policy), occupancy(mdp, policy)
    if mdp.horizon is None:
        return visits[:, None] * policy * (mdp.q_values(values) - values[:, None])
    later = zip(visits, values[:-1], values[1:], strict=True)
    steps = (d[:, None] * policy * (mdp.q_values(after) - now[:, None]) for d, now, after in later)
    return sum(steps)


def _under(mdp: TabularMDP, policy: Tensor) -> tuple[Tensor, Tensor]:
    """(P_pi [S, S], r_pi [S]): the process with the policy's choices built in."""
    if tuple(policy.shape) != tuple(mdp.rewards.shape):
        raise ValueError(f"policy has shape {tuple(policy.shape)}; expected {tuple(mdp.rewards.shape)}")
    _check_laws("policy", policy.detach().double(), policy)
    policy = policy.double()
    policy = policy / policy.detach().sum(dim=1, keepdim=True)
    return torch.einsum("sa,sat->st", policy, mdp.transitions), (policy * mdp.rewards).sum(dim=1)


def _system(mdp: TabularMDP, moves: Tensor) -> tuple[Tensor, Tensor]:
    """(I - gamma P_pi on the transient states, their numbers)."""
    transient = (~mdp.absorbing).nonzero().squeeze(1)
    system = torch.eye(len(transient), dtype=torch.float64) - mdp.gamma * moves[transient][:, transient]
    if mdp.gamma == 1:
        _check_ends(mdp, moves.detach(), system.detach())
    return system, transient


def _check_ends(mdp: TabularMDP, moves: Tensor, system: Tensor) -> None:
    """Raise if some state cannot reach an absorbing one, or if the system does not know that it does."""
    ends = mdp.absorbing
    for _ in range(len(ends)):
        ends = ends | ((moves > 0) & ends).any(dim=1)
    if not ends.all():
        state = _first(~ends)
        raise ValueError(f"policy never ends from state {state}, so with gamma 1 its values are open; lower gamma")
    into_end = moves[~mdp.absorbing][:, mdp.absorbing].sum(dim=1)
    reached, failed = torch.linalg.solve_ex(system, into_end)  # the probability of an end, which is 1
    if failed or not ((reached - 1).abs() < SURE).all():  # NaN fails too
        raise ValueError("policy ends too rarely for its values to be computed with gamma 1; lower gamma or end sooner")


# -- the best policy --------------------------------------------------------------------------------------------------
def value_iteration(mdp: TabularMDP, tolerance: float = 1e-12, sweeps: int = 100_000) -> tuple[Tensor, Tensor]:
    """Values of the best policy, and the policy, by repeating Bellman's optimality equation from V = 0.

        V(s) = max over a of r(s, a) + gamma sum over s' of P(s' | s, a) V(s')

    Args:
        mdp: the process.
        tolerance: the sweeps end once no value changes by more.
        sweeps: most of them.

    Returns:
        values [S] and policy [S, A], 1 at the best action (of equal ones the first, or with gamma 1 the first on the
        way to an end); with a horizon H values [H + 1, S] and policy [H, S, A], row h for H - h steps left.

    Raises:
        ValueError: no convergence, as where rewards can be collected for ever with gamma 1.

    Source: Bellman 1957, Dynamic Programming. Chapter 01.
    """
    values = torch.zeros(len(mdp.start), dtype=torch.float64)
    if mdp.horizon is not None:
        return _backwards(mdp, values, mdp.horizon)
    for _ in range(sweeps):
        better = mdp.q_values(values).amax(dim=1)
        change, values = (better - values).abs().max(), better
        if change <= tolerance:
            return values, _best_policy(mdp, mdp.q_values(values))
    raise ValueError(f"no convergence in {sweeps} sweeps (last change {change:.3g}); lower gamma or set a horizon")


def _backwards(mdp: TabularMDP, final: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """`value_iteration` with a horizon: from the last step to the first."""
    values, best = [final], []
    for _ in range(horizon):
        q_values = mdp.q_values(values[-1])
        values.append(q_values.amax(dim=1))
        best.append(_greedy(q_values))
    return torch.stack(values[::-1]), torch.stack(best[::-1])


def policy_iteration(mdp: TabularMDP) -> tuple[Tensor, Tensor]:
    """Values [S] of the best policy, and the policy [S, A]: evaluate, improve, until nothing improves.

    It starts from the uniform policy and keeps an action unless another one is better, so it ends. With gamma 1 the
    best is the best among the policies that end; `value_iteration` may know a better one that never does.

    Raises:
        ValueError: a horizon is set (use `value_iteration`), or as `policy_evaluation`.

    Source: Howard 1960, Dynamic Programming and Markov Processes. Chapter 01.
    """
    if mdp.horizon is not None:
        raise ValueError(f"horizon is {mdp.horizon}; expected None here, or use value_iteration")
    states, actions = mdp.rewards.shape
    policy = torch.full((states, actions), 1 / actions, dtype=torch.float64)
    while True:
        values = policy_evaluation(mdp, policy)
        q_values = mdp.q_values(values)
        improves = q_values.amax(dim=1) - values > _slack(q_values)
        if not improves.any():
            return values, _best_policy(mdp, q_values)
        policy = torch.where(improves[:, None], _greedy(q_values), policy)


def _greedy(q_values: Tensor) -> Tensor:
    """[S, A], 1 at the action with the highest value, the first of those within rounding."""
    return _one_hot(_ties(q_values))


def _best_policy(mdp: TabularMDP, q_values: Tensor) -> Tensor:
    """Greedy, and with gamma 1 on the way to an end: an action as good as another may walk in a circle for ever."""
    ties, ends = _ties(q_values), mdp.absorbing
    if mdp.gamma < 1:
        return _one_hot(ties)
    chosen = ties & ends[:, None]
    while True:
        closer = ties & (mdp.transitions[:, :, ends].sum(2) > 0) & ~ends[:, None]
        if not closer.any():  # where no tie leads to an end, none is better than another
            return _one_hot(torch.where(ends[:, None], chosen, ties))
        chosen, ends = chosen | closer, ends | closer.any(1)


def _slack(q_values: Tensor) -> float:
    return ROUNDING * max(1.0, float(q_values.abs().max()))


def _ties(q_values: Tensor) -> Tensor:
    return q_values >= q_values.amax(dim=1, keepdim=True) - _slack(q_values)


def _one_hot(allowed: Tensor) -> Tensor:
    """[S, A], 1 at the first allowed action of every state."""
    return torch.nn.functional.one_hot(allowed.int().argmax(dim=1), allowed.shape[1]).double()


# -- processes --------------------------------------------------------------------------------------------------------
def _with_end(states: int, actions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Empty transitions, rewards and start of `states` states, and one more that is the end."""
    moves = torch.zeros(states + 1, actions, states + 1, dtype=torch.float64)
    moves[states, :, states] = 1
    return moves, torch.zeros(states + 1, actions, dtype=torch.float64), torch.zeros(states + 1, dtype=torch.float64)


def chain(length: int, gamma: float = 1.0, step_reward: float = 0.0) -> TabularMDP:
    """`length` states in a row and an end: action 1 moves right, 0 left; the step into the end pays 1.

    Raises:
        ValueError: length is below 1, or gamma as in `TabularMDP`.

    Chapter 01.
    """
    if length < 1:
        raise ValueError(f"length is {length}; expected at least 1")
    moves, rewards, start = _with_end(length, 2)
    for state in range(length):
        moves[state, 0, max(state - 1, 0)] = moves[state, 1, state + 1] = 1
    start[0], rewards[:length] = 1, step_reward
    rewards[length - 1, 1] += 1
    return TabularMDP(moves, rewards, start, gamma, actions=("left", "right"))


def from_table(
    table: Mapping[int, Mapping[int, Sequence[tuple]]],
    start: Sequence[float],
    gamma: float,
    horizon: int | None = None,
) -> TabularMDP:
    """A process from a table as gymnasium's toy-text environments hold it, `env.unwrapped.P`.

    Args:
        table: table[state][action] is a list of (probability, next state, reward, terminated).
        start: [S] law of the first state, `env.unwrapped.initial_state_distrib`.
        gamma, horizon: of the process.

    Returns:
        A TabularMDP with one more state, the absorbing end into which every terminated step leads.

    Raises:
        ValueError: `start` has not one number a state, or what is in the table is no process.

    Chapter 01.
    """
    end = len(table)
    moves, rewards, first = _with_end(end, len(table[0]))
    if len(start) != end:
        raise ValueError(f"start holds {len(start)} numbers; expected {end}, one a state of the table")
    first[:end] = torch.as_tensor(start, dtype=torch.float64)
    for state, row in table.items():
        for action, outcomes in row.items():
            for probability, after, reward, terminated in outcomes:
                moves[state, action, end if terminated else after] += probability
                rewards[state, action] += probability * reward
    return TabularMDP(moves, rewards, first, gamma, horizon)


def gridworld(
    rows: Sequence[str], gamma: float = 0.95, slip: float = 0.0, step_reward: float = 0.0, goal_reward: float = 1.0,
    pit_reward: float = -1.0,
) -> TabularMDP:  # fmt: skip
    """A map of S start, G goal, O pit, # wall and . floor, walked north, east, south and west.

    Entering a goal or a pit ends the episode; walking into a wall or over the edge stays. With probability `slip` the
    step goes to one of the two sides instead. The last state is the end.

    Raises:
        ValueError: no row, rows of unlike lengths, an unknown letter, not one start, or a slip outside [0, 1].

    Example:
        >>> gridworld(["S.", "#G"]).states
        ('0,0', '0,1', 'end')

    Chapter 01.
    """
    _check_map(rows)
    if not 0 <= slip <= 1:
        raise ValueError(f"slip is {slip}; expected a probability, in [0, 1]")
    floor = [(y, x) for y, row in enumerate(rows) for x, letter in enumerate(row) if letter in "S."]
    number, end = {cell: i for i, cell in enumerate(floor)}, len(floor)
    paid = {"G": goal_reward, "O": pit_reward}
    moves, rewards, start = _with_end(end, 4)
    for (y, x), state in number.items():
        start[state] = rows[y][x] == "S"
        for action in range(4):
            for turn, probability in ((0, 1 - slip), (1, slip / 2), (-1, slip / 2)):
                south, east = ((-1, 0), (0, 1), (1, 0), (0, -1))[(action + turn) % 4]
                there = (y + south, x + east)
                inside = 0 <= there[0] < len(rows) and 0 <= there[1] < len(rows[0])
                letter = rows[there[0]][there[1]] if inside else "#"
                after = end if letter in paid else number.get(there, state)
                moves[state, action, after] += probability
                rewards[state, action] += probability * (step_reward + paid.get(letter, 0.0))
    states = (*(f"{y},{x}" for y, x in floor), "end")
    return TabularMDP(moves, rewards, start, gamma, states=states, actions=("north", "east", "south", "west"))


def _check_map(rows: Sequence[str]) -> None:
    if not rows or len(set(map(len, rows))) > 1:
        raise ValueError(f"rows has {'rows of unlike lengths' if rows else 'no row'}; expected rows of the same length")
    letters = "".join(rows)
    if unknown := set(letters) - set("SGO#."):
        raise ValueError(f"rows holds {min(unknown)!r}; expected S, G, O, # and .")
    if letters.count("S") != 1:
        raise ValueError(f"rows has {letters.count('S')} start cells; expected one S")


Said = tuple[str, ...]  # the history of a dialogue
HELLO, ASK = "Hello, I am looking for a place to read.", "Do you want to buy a book?"
REPLIES = ("Go to the bookshop.", "Go to the library.", ASK, "I do not know.")
TIMINGS = ("immediate", "delayed", "sparse")


def dialogue(timing: str = "immediate", buyers: float = 0.5, gamma: float = 1.0) -> TabularMDP:
    """A help desk and a visitor who wants to buy a book or to borrow one: states are histories, actions replies.

    The right place earns 1, the wrong one -1, asking back costs 0.2, asking twice 1, not to know nothing. After the
    visitor's last words there is one more step, in which nothing that is said matters.

    Args:
        timing: "immediate": every reply is paid when it is given; "delayed": all that was earned is paid in the last
            step; "sparse": 1 in the last step if the visitor was sent to the right place, and nothing else.
        buyers: share of the visitors who want to buy, in [0, 1].
        gamma: discount.

    Raises:
        ValueError: another timing, or a share outside [0, 1].

    Chapter 01.
    """
    if timing not in TIMINGS:
        raise ValueError(f"timing is {timing!r}; expected one of {TIMINGS}")
    if not 0 <= buyers <= 1:
        raise ValueError(f"buyers is {buyers}; expected a share in [0, 1]")
    earned: dict[Said, float] = {(HELLO,): 0.0}  # with each history
    steps: list[tuple[Said, int, float, Said, float]] = []  # (history, action, probability, next, reward)
    histories: list[Said] = [(HELLO,)]
    for history in histories:  # which grow while they are read
        for action, reply in enumerate(REPLIES):
            for probability, answer, reward in _visitor(history, reply, buyers):
                after = (*history, reply, answer)
                histories.append(after)
                earned[after] = earned[history] + reward
                steps.append((history, action, probability, after, reward))
    number = {history: i for i, history in enumerate(histories)}
    moves, rewards, start = _with_end(len(histories), len(REPLIES))
    start[0] = 1
    for history, action, probability, after, reward in steps:
        moves[number[history], action, number[after]] = probability
        rewards[number[history], action] += probability * reward * (timing == "immediate")
    paid_last: dict[str, Callable[[Said], float]] = {
        "immediate": lambda history: 0.0,
        "delayed": lambda history: earned[history],
        "sparse": lambda history: float(history[-1] == "Thank you!"),
    }
    for history in set(histories) - {step[0] for step in steps}:  # nothing is answered to these
        moves[number[history], :, -1], rewards[number[history]] = 1, paid_last[timing](history)
    states = (*(" / ".join(history) for history in histories), "end")
    return TabularMDP(moves, rewards, start, gamma, states=states, actions=REPLIES)


def _visitor(history: Said, reply: str, buyers: float) -> list[tuple[float, str, float]]:
    """What the visitor answers, as (probability, answer, reward of the reply); nothing after the last words."""
    wants = {HELLO: buyers, "Yes.": 1.0, "No.": 0.0}.get(history[-1])
    if wants is None:
        return []
    if reply == ASK:
        again = [(1.0, "You asked that already. Goodbye.", -1.0)]
        return again if ASK in history else [(wants, "Yes.", -0.2), (1 - wants, "No.", -0.2)]
    if reply == "I do not know.":
        return [(1.0, "Goodbye.", 0.0)]
    right = wants if reply == "Go to the bookshop." else 1 - wants
    return [(right, "Thank you!", 1.0), (1 - right, "That is not what I wanted.", -1.0)]
