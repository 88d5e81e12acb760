"""Runs a model over the examples and collects second moments of its layers' inputs.

A pass need not run the whole model. It ends when everything it collects has been seen, and it can
begin where an earlier pass left off: the hidden state at the entrance of a unit (a block, or a
layer outside of any) is remembered for every example, the blocks before it are skipped, and the
remembered tensor takes the place of what reaches it. Skipped blocks return NaN, so that anything
else that flows from them into the rest is noticed. Besides, the first example of each kind runs
both ways in every pass: unless all inputs are equal bit for bit, and for any example in which NaN
appears, the pass runs the whole model.
"""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from .collected import Collected, accumulator_type, check_finite, unmasked_rows
from .dense_model import on_device_of
from .moments import Accumulator
from .shortcut import replaced, skipped
from .trace import Trace, Tracer, UnsharedInputError, block_input, layer_input

Example = Mapping[str, Any]
# A leader, and its input as rows without padding.
Received = tuple[str, torch.Tensor]


class _Enough(BaseException):
    """Ends a forward pass. No ``Exception``, so that no model mistakes it for a failure."""


class ForwardPasses:
    """The passes over one set of examples.

    Parameters
    ----------
    model
        A transformers model; its weights may change between passes.
    examples
        Gives the same model inputs in the same order whenever it is called.
    progress
        Show a progress bar on stderr.
    """

    def __init__(
        self, model: Any, examples: Callable[[], Iterable[Example]], *, progress: bool = False
    ) -> None:
        self.model = model.eval()
        self._examples, self._progress = examples, progress
        self._states: dict[int, torch.Tensor] = {}
        self._states_at: str | None = None

    @property
    def marked(self) -> str | None:
        """The unit at which the last pass remembered the states."""
        return self._states_at

    def trace(self, full: Mapping[str, bool], memory: int) -> tuple[Trace, dict[int, Accumulator]]:
        """Run everything once to see what is called.

        Parameters
        ----------
        full
            The layers of interest and whether their full second moment is wanted.
        memory
            If the accumulators of all inputs fit into so many bytes, this pass collects them.

        Returns
        -------
        tuple
            The structure, and the accumulators by the input's number; none if they do not fit.
        """
        separate: frozenset[str] = frozenset()
        while True:
            collected = Collected(full, memory)
            tracer = Tracer(self.model, full, separate, collected.observe)
            try:
                with tracer.watch():
                    for example in self._shown("1"):
                        collected.mask = example.get("attention_mask")
                        self._forward(example)
                        tracer.end_example()
            except UnsharedInputError as found:
                separate |= {found.layer}
                continue
            trace = tracer.result()
            return trace, collected.by_number(trace)

    def collect(
        self,
        trace: Trace,
        numbers: Sequence[int],
        full: Mapping[str, bool],
        *,
        start: str | None = None,
        mark: str | None = None,
        title: str = "",
    ) -> dict[int, Accumulator]:
        """Run as much as is needed to collect the moments of some inputs.

        Parameters
        ----------
        numbers
            The inputs' numbers in the trace.
        start
            Begin at this unit, where the last pass remembered the states; None for the beginning.
        mark
            Remember the states at this unit for the next pass.
        title
            What the progress bar calls the pass.
        """
        device = self.model.device
        found = {n: accumulator_type(trace, n, full)(trace.inputs[n].size, device) for n in numbers}
        by_leader = {trace.inputs[n].leader: moment for n, moment in found.items()}
        marked: dict[int, torch.Tensor] = {}
        # Whether beginning at ``start`` gives the same inputs, by the kind of example.
        proven: dict[int, bool] = {}
        for number, example in enumerate(self._shown(title)):
            run = _Run(trace, number, example, by_leader, mark)
            if not run.left and not run.marking:
                continue
            state = self._states.get(number) if start and start == self._states_at else None
            if state is None or not start or not run.gains_from(start):
                marked.update(self._whole(run, _adder(by_leader)))
                continue
            shortcut = self._short(run, start, state)
            kind = trace.kinds[number]
            if kind not in proven:
                proven[kind] = shortcut is not None and self._is_proven(run, shortcut)
            if shortcut is None or not proven[kind]:
                marked.update(self._whole(run, _adder(by_leader)))
                continue
            for leader, rows in shortcut[0]:
                by_leader[leader].add(rows)
            marked.update(shortcut[1])
        self._states, self._states_at = marked, mark
        return found

    def _whole(self, run: _Run, receive: Callable[[str, torch.Tensor], None]) -> _States:
        """Run from the beginning; return the state to remember, by the example's number."""

        def checked(leader: str, rows: torch.Tensor) -> None:
            check_finite(leader, rows)
            receive(leader, rows)

        with self._observed(run, checked) as states:
            self._forward(run.example)
        return states

    def _short(
        self, run: _Run, start: str, state: torch.Tensor
    ) -> tuple[list[Received], _States] | None:
        """Run from ``start``; None if that does not work."""
        received: list[Received] = []
        try:
            with (
                skipped(self.model, run.trace.blocks, run.trace.skippable(run.number, start)),
                replaced(self.model.get_submodule(start), state),
                self._observed(run, _keeper(received)) as states,
            ):
                self._forward(run.example)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:
            # The model stumbled over a skipped block's output; a genuine error comes up again when
            # the whole model runs.
            return None
        finite = all(bool(torch.isfinite(rows).all()) for _, rows in received)
        return (received, states) if finite else None

    def _is_proven(self, run: _Run, shortcut: tuple[list[Received], _States]) -> bool:
        expected: list[Received] = []
        states = self._whole(run, _keeper(expected))
        received, found = shortcut
        return (
            [leader for leader, _ in expected] == [leader for leader, _ in received]
            and all(torch.equal(a, b) for (_, a), (_, b) in zip(expected, received, strict=True))
            and states.keys() == found.keys()
            and all(torch.equal(states[number], found[number]) for number in states)
        )

    @contextmanager
    def _observed(
        self, run: _Run, receive: Callable[[str, torch.Tensor], None]
    ) -> Iterator[_States]:
        """Hand over every input of interest, and stop when there are no more."""
        left, states = Counter(run.left), {}
        waiting = [run.marking]

        def at_mark(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = _unit_input(module, args, kwargs)
            if value is not None:
                states[run.number] = value.detach().clone()
            waiting[0] = False
            stop_if_done()

        def at_layer(leader: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                receive(leader, unmasked_rows(layer_input(args, kwargs), run.mask))
                left[leader] -= 1
                stop_if_done()

            return hook

        def stop_if_done() -> None:
            if not waiting[0] and not +left:
                raise _Enough

        with ExitStack() as hooks, suppress(_Enough):
            # Before the layers': a unit may be a layer, at which the pass ends.
            if run.marking and run.mark:
                _hook(hooks, self.model.get_submodule(run.mark), at_mark)
            for leader in run.left:
                _hook(hooks, self.model.get_submodule(leader), at_layer(leader))
            yield states

    def _shown(self, title: str) -> Iterable[Example]:
        from tqdm import tqdm

        return tqdm(
            self._examples(),
            desc=f"calibrating, pass {title}",
            unit="example",
            leave=False,
            disable=not self._progress,
        )

    def _forward(self, example: Example) -> None:
        inputs = on_device_of(self.model, example)
        # In a copy of the context, because a pass may end in the middle of the model. Not in
        # inference mode: its tensors do not count changes, which tells shared inputs apart.
        with torch.no_grad():
            contextvars.copy_context().run(self.model, **inputs)


_States = dict[int, torch.Tensor]


class _Run:
    """What one example has to give in one pass."""

    def __init__(
        self,
        trace: Trace,
        number: int,
        example: Example,
        leaders: Iterable[str],
        mark: str | None,
    ) -> None:
        self.trace, self.number, self.example, self.mark = trace, number, example, mark
        self.mask = example.get("attention_mask")
        calls = Counter(trace.sequence(number))
        self.left = {leader: calls[leader] for leader in leaders if calls[leader]}
        self.marking = mark is not None and calls[mark] == 1

    def gains_from(self, start: str) -> bool:
        """Whether blocks can be skipped, and all that is wanted comes after them."""
        sequence = self.trace.sequence(self.number)
        if sequence.count(start) != 1:
            return False
        position = sequence.index(start)
        wanted = [*self.left, *([self.mark] if self.marking and self.mark else [])]
        comes_after = all(sequence.index(name) >= position for name in wanted)
        return comes_after and bool(self.trace.skippable(self.number, start))


def _adder(accumulators: Mapping[str, Accumulator]) -> Callable[[str, torch.Tensor], None]:
    return lambda leader, rows: accumulators[leader].add(rows)


def _keeper(received: list[Received]) -> Callable[[str, torch.Tensor], None]:
    # Copies, because the model may change an activation in place later on.
    return lambda leader, rows: received.append((leader, rows.clone()))


def _unit_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor | None:
    return layer_input(args, kwargs) if type(module) is nn.Linear else block_input(args, kwargs)


def _hook(hooks: ExitStack, module: nn.Module, hook: Callable[..., Any]) -> None:
    hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
