"""The training loop, on Hugging Face accelerate: one process or many, CPU or GPU, any behaviour.

Everything random in a step is drawn from generators seeded by (seed, step, process), so a run that was killed goes on to the same
weights: a checkpoint holds weights, optimiser, averaged weights and counters, and nothing else is needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.errors import RecipeError
from vitprune.training import checkpoints
from vitprune.training.behaviour import Behaviour, Teacher
from vitprune.training.feeding import BadImages, Batch, Feed, order, seed_all, share
from vitprune.training.logs import Logs
from vitprune.training.optimising import optimiser, schedule
from vitprune.training.watching import State, watch

Warn = Callable[[str], None]
Progress = Callable[[int, int, str], None]  # steps done, steps in all, text


@dataclass(frozen=True)
class Setting:
    """What belongs to the machine rather than to the result.

    workers: processes that read images. checkpoint_steps: also write a checkpoint every so many steps, 0 = after epochs only.
    log_steps: steps per row of steps.csv. bad_images: "fatal" or "skip".
    """

    workers: int = 0
    checkpoint_steps: int = 0
    log_steps: int = 50
    bad_images: str = "fatal"


class Run:
    """One training run.

    Args:
        behaviour: what is trained. teacher: the dense model, frozen, or None. feed, held_out: training and validation images.
        folder: for logs and checkpoints. identity: what a checkpoint must share with the run that resumes it.
    """

    def __init__(
        self, accelerator: Any, behaviour: Behaviour, teacher: nn.Module | None, feed: Feed, held_out: Feed | None,
        folder: Path, identity: dict[str, Any], setting: Setting, warn: Warn, progress: Progress,
    ) -> None:  # fmt: skip
        self.accelerator, self.setting, self.keys = accelerator, setting, behaviour.keys
        self.feed, self.held_out, self.folder, self.identity = feed, held_out, folder, identity
        self.warn, self.progress = warn, progress
        self.bad = BadImages(setting.bad_images == "fatal")
        self.state = State()
        self.steps = self._steps_per_epoch(len(feed.source))
        self.behaviour = behaviour.to(accelerator.device)
        self.teacher = None if teacher is None else teacher.to(accelerator.device).eval().requires_grad_(False)
        made = optimiser(self.behaviour, self.keys)
        self.schedule, self.epochs = schedule(made, self.keys, self.steps)
        self.average = self._average()
        self.wrapped, self.optimiser = accelerator.prepare(self.behaviour, made)
        self.mixup = self._mixup()

    def _steps_per_epoch(self, count: int) -> int:
        pieces = self.accelerator.num_processes * self.keys.accumulate
        if self.keys.batch % pieces:
            raise RecipeError(
                160,
                f"train.batch {self.keys.batch} cannot be split into {pieces}",
                cause=f"{self.accelerator.num_processes} processes, accumulate {self.keys.accumulate}",
                next_step=f"--set train.batch={max(1, self.keys.batch // pieces) * pieces}",
            )
        if count < self.keys.batch:
            raise RecipeError(
                161,
                f"there are fewer images ({count}) than a batch has ({self.keys.batch})",
                cause="an epoch would have no step",
                next_step=f"--set train.batch={max(1, count // 4)}",
            )
        return count // self.keys.batch

    def _average(self) -> Any:
        if self.keys.ema is None:
            return None
        from timm.utils import ModelEmaV3

        return ModelEmaV3(self.behaviour, decay=self.keys.ema)

    def _mixup(self) -> Any:
        augment = self.keys.augment
        if not (augment.mixup or augment.cutmix):
            return None
        from timm.data import Mixup

        classes = (
            self.behaviour.model.shape.classes if hasattr(self.behaviour.model, "shape") else self.behaviour.model.num_classes
        )
        return Mixup(
            mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix, label_smoothing=self.keys.smoothing, num_classes=classes
        )

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.steps * self.epochs

    @property
    def best_known(self) -> Behaviour:
        """The weights that count: averaged ones, where the recipe asks for them."""
        chosen: Behaviour = self.behaviour if self.average is None else self.average.module
        return chosen

    def resume(self) -> None:
        """Go on where the folder's checkpoint is; raises as `checkpoints.load`."""
        saved = checkpoints.load(self.folder, self.identity)
        self.behaviour.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.average is not None:
            self.average.module.load_state_dict(saved["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.state = State(**saved["state"])
        self.bad.found = dict(saved["bad"])

    def train(self, resumed: bool) -> State:
        """Train to the end.

        Raises:
            TrainError: VP801 the numbers are no longer finite. LoadError: VP621 an image cannot be read.
        """
        main = self.accelerator.is_main_process
        logs = (
            Logs(self.folder, self.state.step if resumed else None, self.state.step // self.steps if resumed else None)
            if main
            else None
        )
        try:
            while self.state.step < self.total:
                self._epoch(self.state.step // self.steps, logs)
        finally:
            if logs is not None:
                logs.close()
        return self.state

    def _epoch(self, epoch: int, logs: Logs | None) -> None:
        keys, began, before = self.keys, time.perf_counter(), self.state.seconds
        self.behaviour.start_epoch(epoch)
        self.wrapped.train()
        permutation = order(len(self.feed.source), keys.seed, epoch)
        first = self.state.step - epoch * self.steps
        parts = [
            share(permutation[step * keys.batch : (step + 1) * keys.batch], self.accelerator.process_index, self.accelerator.num_processes)
            for step in range(first, self.steps)
        ]  # fmt: skip
        for batch in self.feed.batches(parts, epoch, self.setting.workers):
            for sentence in self.bad.book(batch.bad):
                self.warn(sentence)
            self._step(batch)
            self.state.step += 1
            self.state.seconds = before + time.perf_counter() - began
            if self.state.step % self.setting.log_steps == 0 or self.state.step % self.steps == 0:
                self._log(logs)
            at_end = self.state.step % self.steps == 0
            if not at_end and self.setting.checkpoint_steps and self.state.step % self.setting.checkpoint_steps == 0:
                self.save()
        row = {f"val_{name}": value for name, value in self.judge().items()} | self.best_known.facts()
        self.state.seconds = before + time.perf_counter() - began
        self.state.history.append({"epoch": epoch + 1, "seconds": round(self.state.seconds, 1), **row})
        if logs is not None:
            logs.epoch(epoch + 1, self.state.step, row)
            self.progress(self.state.step, self.total, f"epoch {epoch + 1}/{self.epochs} " + _text(row))
        self.save()

    def _step(self, batch: Batch) -> None:
        state, keys = self.state, self.keys
        seed_all(keys.seed, state.step, self.accelerator.process_index, 4)
        images, targets = batch.images.to(self.accelerator.device), batch.labels.to(self.accelerator.device)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        self.schedule.step_update(state.step)
        self.optimiser.zero_grad()
        terms: dict[str, Tensor] = {}
        pieces = list(zip(images.chunk(keys.accumulate), targets.chunk(keys.accumulate), strict=True))
        for number, (some, theirs) in enumerate(pieces):
            quiet = number + 1 < len(pieces)
            with self.accelerator.no_sync(self.wrapped) if quiet else nullcontext():
                found = self.wrapped(some, theirs, self._ask_teacher(some))
                loss = torch.stack(list(found.values())).sum() / len(pieces)
                self.accelerator.backward(loss)
            for name, value in found.items():
                terms[name] = terms.get(name, value.new_zeros(())) + value.detach().float() / len(pieces)
        norm = float(self.accelerator.clip_grad_norm_(self.behaviour.parameters(), keys.clip_grad or math.inf))
        finite = math.isfinite(norm) or (self.accelerator.scaler is not None and all(bool(v.isfinite()) for v in terms.values()))
        watch(state, finite, norm, terms, self.warn)
        if finite:
            self.optimiser.step()
            if self.average is not None:
                self.average.update(self.behaviour, step=state.step)
        for name, value in terms.items():
            state.window[name] = state.window.get(name, 0.0) + float(value)
        state.window["steps"] = state.window.get("steps", 0.0) + 1

    def _ask_teacher(self, images: Tensor) -> Teacher | None:
        if self.teacher is None:
            return None
        model: Any = self.teacher
        with torch.no_grad(), self.accelerator.autocast():
            tokens = model.forward_features(images)
            return Teacher(model.forward_head(tokens).float(), tokens.float())

    def _log(self, logs: Logs | None) -> None:
        window, self.state.window = self.state.window, {}
        steps = window.pop("steps")
        names = list(window)
        values = torch.tensor([window[name] / steps for name in names], dtype=torch.float64 if self._doubles else torch.float32)
        mean = self.accelerator.reduce(values.to(self.accelerator.device), reduction="mean").tolist()
        terms = dict(zip(names, mean, strict=True))
        if logs is None:
            return
        row = {"loss": sum(terms.values()), **terms, "lr": max(group["lr"] for group in self.optimiser.param_groups)}
        logs.step(self.state.step, row | {"grad_norm": self.state.norm} | self.behaviour.facts())
        self.progress(self.state.step, self.total, f"loss {row['loss']:.4f}")

    @property
    def _doubles(self) -> bool:
        return self.accelerator.device.type != "mps"

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Top-1 in percent of the pruned model, as it will run, on the validation images; empty without any."""
        if self.held_out is None:
            return {}
        model = self.best_known.pruned().to(self.accelerator.device).eval()
        count = len(self.held_out.source)
        mine = order(count, 0, 0)[self.accelerator.process_index :: self.accelerator.num_processes]
        size = max(1, min(256, self.keys.batch // self.accelerator.num_processes))
        parts = [mine[start : start + size] for start in range(0, len(mine), size)]
        hits = torch.zeros((), device=self.accelerator.device)
        for batch in self.held_out.batches(parts, 0, self.setting.workers):
            for sentence in self.bad.book(batch.bad):
                self.warn(sentence)
            logits = model(batch.images.to(self.accelerator.device))
            hits += (logits.argmax(1) == batch.labels.to(self.accelerator.device)).sum()
        return {"top1": 100 * float(self.accelerator.reduce(hits, reduction="sum")) / count}

    def save(self) -> None:
        """Write a checkpoint (main process only)."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "identity": self.identity, "state": dict(vars(self.state)), "bad": self.bad.found,
            "model": self.behaviour.state_dict(), "optimiser": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }  # fmt: skip
        checkpoints.save(self.folder, state)


def _text(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items())
