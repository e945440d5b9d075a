"""What distilling costs over training the student alone, and over the loop that one would write by hand.

Steps are fed from batches in memory; an epoch has its loader included. Every contestant trains the same student on the
same pictures, with the encoder frozen or unfrozen throughout.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from benchmarks import hand_written, machine
from benchmarks.cache import cold, kept, warm, warm_epoch
from benchmarks.case import STATES, Case, Sizes, takes_by_hand
from benchmarks.elsewhere import elsewhere
from benchmarks.hand_written import Loop
from benchmarks.rounds import Times, race, ratios, spread
from kd.experiment.evaluator import Evaluator

#: name of a ratio: whose time, over whose (the sum of them, where there are several).
RATIOS = {
    "warm_over_student": ("warm", "student"),
    "cold_over_live": ("cold", "live"),
    "live_over_student": ("live", "student"),
    "live_over_parts": ("live", "student", "teacher"),
    "epoch_over_steps": ("student_epoch", "student"),
    "warm_epoch_over_student_epoch": ("warm_epoch", "student_epoch"),
    "hand_written_over_warm": ("hand_written", "warm_epoch"),
    "hand_written_channels_last_over_warm": ("hand_written_channels_last", "warm_epoch"),
    "hand_written_over_live": ("hand_written", "live_epoch"),
}
Contestants = dict[str, Iterator[object]]


def contestants(case: Case, state: str, stack: ExitStack) -> Contestants:
    """All contestants, with the encoder in one state; `stack` closes what they open."""
    answers = kept(case)
    found: Contestants = {
        "student": case.fit(case.remembered, None, state),
        "live": case.fit(case.remembered, case.live(), state),
        "warm": warm(case, state, answers),
        "cold": cold(case, state, stack),
        "teacher": case.answers(),
        "student_epoch": case.fit(case.loader(), None, state),
        "live_epoch": case.fit(case.loader(), case.live(), state),
        "warm_epoch": warm_epoch(case, state, answers),
    }
    if takes_by_hand(case.bench.data):
        for name, channels_last in (("hand_written", False), ("hand_written_channels_last", True)):
            how = (hand_written.epochs, case.job(state), *_placed(case), channels_last)
            found[name] = how[0](*how[1:]) if case.sizes.quick else stack.enter_context(elsewhere(*how))
    return found


def _placed(case: Case) -> tuple[torch.device, torch.dtype | None]:
    """The device, and the precision where it is not single, as the loop by hand takes them."""
    precision = case.bench.precision
    return precision.device, torch.bfloat16 if precision.name == "bf16" else None


def measured(case: Case, say: Callable[[str], None]) -> dict[str, Any]:
    """Every ratio of RATIOS, and the seconds per step behind them, with the encoder frozen and unfrozen."""
    found: dict[str, Any] = {name: {} for name in RATIOS} | {"seconds_per_step": {}, "gpu": {}}
    for state in STATES:
        with ExitStack() as stack:
            everybody = contestants(case, state, stack)
            said = partial(_tell, say, state, case.sizes)
            times = race(everybody, case.sizes.rounds, case.sizes.warm_up, said=said)
            found["gpu"][state] = machine.use_of_gpu(everybody, times, case)
        for name, values in compared(times).items():
            found[name][state] = values
        found["seconds_per_step"][state] = {
            name: spread([each / case.sizes.steps for each in values]) for name, values in times.items()
        }
    return {name: value for name, value in found.items() if any(value.values())}


def _tell(say: Callable[[str], None], state: str, sizes: Sizes, turn: int) -> None:
    say(f"encoder {state}, round {turn + 1} of {sizes.warm_up + sizes.rounds}")


def compared(times: Times) -> dict[str, dict[str, float]]:
    """The ratios of RATIOS between those who took part."""
    present = {name: who for name, who in RATIOS.items() if all(each in times for each in who)}
    return {name: spread(ratios(*(times[each] for each in who))) for name, who in present.items()}


def equal_metrics(cases: Sequence[Case]) -> dict[str, Any]:
    """Both loops trained to the end from the same weights, and the mean IoU on validation that each reaches.

    In exact arithmetic they end in the same student (`tests/test_benchmarks.py`); in single precision AdamW makes much
    of the last bit, and they end near each other.
    """
    found: dict[str, list[float]] = {"ours": [], "hand_written": []}
    for case in cases:
        network, loop = case.network(), Loop(case.job(), *_placed(case))
        for _ in case.fit(case.loader(), case.live(), network=network):
            pass
        for _ in loop.epochs():
            pass
        validation = Evaluator(case.bench).evaluate(network, "val")
        found["ours"].append(validation.metrics(network.class_names)["miou"])
        found["hand_written"].append(loop.miou())
    settings = cases[0].bench.settings
    return {"val_miou": found, "epochs": settings.trainer.epochs, "images": settings.data.size("train")}
