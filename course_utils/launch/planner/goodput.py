"""How long a run takes when machines fail: goodput, the best checkpoint interval, and a simulation of both (lesson 15).

Goodput is the share of the time in which steps are computed that count. The rest is saving, starting again after a
failure, and computing again what the last checkpoint did not hold. Failures come at random and independently: with N
GPUs one in every ``gpu_mtbf / N`` hours. All times are seconds, but for the fields of the spec. Sources: Young 1974, "A
first order approximation to the optimum checkpoint interval"; Daly 2006, "A higher order estimate of the optimum
checkpoint interval for restart dumps" (its model, and equations 20 and 37).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from course_utils.launch.planner.memory import state_shards
from course_utils.launch.planner.plan import Plan
from course_utils.launch.planner.speed import PCIE
from course_utils.launch.spec.state import Checkpoint, checkpoint

DAY = 86_400.0


class Reported(NamedTuple):
    """Failures that somebody published: GPUs, and hours between two interruptions of one job on all of them."""

    run: str
    gpus: int
    hours: float
    source: str

    @property
    def gpu_mtbf(self) -> float:
        """Hours between failures of one GPU, its share of machine and network included."""
        return self.gpus * self.hours


REPORTED = (
    Reported(
        "Llama 3 405B, H100", 16_384, 54 * 24 / 419,
        "Grattafiori et al. 2024, 'The Llama 3 Herd of Models', section 3.3.4: 419 unexpected interruptions in 54 days",
    ),
    Reported(
        "BLOOM 176B, A100", 384, 7 * 24 / 1.5,
        "https://huggingface.co/blog/bloom-megatron-deepspeed: 1-2 GPU failures a week, on a new cluster",
    ),
    Reported(
        "Meta's research cluster, A100", 1024, 7.9,
        "Kokolis et al. 2024, arXiv 2410.21680: mean time to failure of jobs on 1,024 GPUs",
    ),
)  # fmt: skip


class Saving(NamedTuple):
    """One way to save: ``stall`` seconds in which training stands still, then ``behind`` more until it counts."""

    kind: str
    stall: float
    behind: float = 0.0


class Failures(NamedTuple):
    """Seconds between failures of the whole job, and from a failure until training goes on."""

    mtbf: float
    restart: float


def goodput(interval: float, failures: Failures, saving: Saving) -> float:
    """Share of an endless run's time that counts, with ``interval`` seconds of computing between two checkpoints.

    A life between two failures is exponential with mean M. Its first checkpoint counts R + interval + stall + behind
    after the failure, each further one a cycle later; so the expected number of them is a geometric series, and

        goodput = interval / M * exp(-(R + interval + stall + behind) / M) / (1 - exp(-cycle / M))

    Without ``behind`` this is Daly's equation 20. Failures during a restart are counted. A save that is not yet
    written keeps the next one waiting: the cycle is ``stall + max(interval, behind)``.
    """
    mean, cycle = failures.mtbf, saving.stall + max(interval, saving.behind)
    first = failures.restart + interval + saving.stall + saving.behind
    return interval / mean * math.exp(-first / mean) / -math.expm1(-cycle / mean)


def young(failures: Failures, saving: Saving) -> float:
    """Young's interval: ``sqrt(2 stall M)``."""
    return math.sqrt(2 * saving.stall * failures.mtbf)


def daly(failures: Failures, saving: Saving) -> float:
    """Daly's interval (equation 37), a series in ``stall / M``; M where saving takes longer than 2 M."""
    share = saving.stall / (2 * failures.mtbf)
    if share >= 1:
        return failures.mtbf
    return young(failures, saving) * (1 + math.sqrt(share) / 3 + share / 9) - saving.stall


def best_interval(failures: Failures, saving: Saving) -> float:
    """The interval with the largest goodput, exactly: ``M (1 + W(-exp(-1 - stall / M)))``, W being Lambert's function.

    It does not depend on the restart. No shorter than what a save takes in the background.
    """
    from scipy.special import lambertw

    root = lambertw(-math.exp(-1 - saving.stall / failures.mtbf)).real
    return max(failures.mtbf * (1 + float(root)), saving.behind)


def simulate(work: float, interval: float, failures: Failures, saving: Saving, gpus: int = 1, seed: int = 0) -> float:
    """Seconds that ``work`` seconds of computing take, event by event, as it might happen once.

    Every GPU draws its own time of failure; the first one ends a life of the job. Nothing of ``goodput`` is used.

    Args:
        gpus: among which ``failures.mtbf`` is divided: each fails once in ``gpus * mtbf`` seconds.
    """
    draw = np.random.default_rng(seed)
    clock = kept = 0.0
    while True:
        ends = clock + draw.exponential(gpus * failures.mtbf, gpus).min()
        now, done, written = clock + failures.restart, kept, 0.0
        while now < ends:
            now, done = now + min(interval, work - done), done + min(interval, work - done)
            if done >= work and now <= ends:
                return now
            now = max(now, written) + saving.stall  # an earlier save is still being written: wait
            written = now + saving.behind
            if written <= ends:
                kept = done
        clock = ends


class Outlook(NamedTuple):
    """What one way to save makes of a plan: as asked (``save_every``), and at the best interval."""

    saving: Saving
    interval: float
    share: float
    best: float
    best_share: float
    days: float
    best_days: float
    cost: float | None
    best_cost: float | None
    lost: float  # seconds that a failure costs on average, as asked


def saved(plan: Plan) -> Checkpoint:
    """Bytes of one checkpoint of the plan."""
    return checkpoint(plan.spec, plan.shape)


def failures_of(plan: Plan) -> Failures:
    return Failures(plan.spec.gpu_mtbf * 3600 / plan.gpus, plan.spec.restart)


def ways_to_save(plan: Plan) -> tuple[Saving, Saving]:
    """As the Trainer does it: training stands still until all is written. And asynchronously
    (``torch.distributed.checkpoint.async_save``), which the launch files do not offer: it stands still while a GPU
    copies its part to host memory, and each save counts when it is written.
    """
    size, parts = saved(plan), plan.stages * state_shards(plan.spec)
    written = size.size / (plan.spec.storage * 1e9)
    copied = (size.by_rank_0 + size.by_all / parts) / PCIE
    return Saving("blocking", written), Saving("asynchronous", min(copied, written), written)


def outlook(plan: Plan, saving: Saving) -> Outlook:
    """Goodput, days and cost of a plan's run, saved every ``save_every`` steps and at the best whole number of them.

    The best is at most the whole run, whose end is saved in any case.
    """
    spec, failures, step = plan.spec, failures_of(plan), plan.speed.step
    interval = spec.save_every * step
    best = min(max(1, round(best_interval(failures, saving) / step)), spec.max_steps) * step
    shares = [goodput(seconds, failures, saving) for seconds in (interval, best)]
    days = [plan.speed.hours / 24 / share if share else math.inf for share in shares]
    cost = [None if plan.speed.cost is None else plan.speed.cost / share if share else math.inf for share in shares]
    # Half an interval on average, and what a save takes until it counts; never more than a life.
    lost = failures.restart + min((interval + saving.stall) / 2 + saving.behind, failures.mtbf)
    return Outlook(saving, interval, shares[0], best, shares[1], *days, *cost, lost)
