"""The Optuna study behind a search: its storage, its places, its sampler.

A place is a trial's number among those that did not fail. What is tried at a place follows from the seed, the place and what was
found before, so that a search that was killed and goes on finds what an undisturbed one finds.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from vitprune.errors import RecipeError, first_line

RANDOM = 16  # places that are searched at random before the sampler has something to go by
PATIENCE = 60.0  # seconds that a locked SQLite file is waited for
ABANDONED = 3600.0  # seconds after which a trial of another host is given up
ATTEMPTS = 5


def open_study(storage: str | None, folder: Path, name: str, seed: int, identity: Mapping[str, Any]) -> optuna.Study:
    """Open a study, or begin it.

    Args:
        storage: a URL as Optuna takes it; None = SQLite in `folder`. name: of the study. seed: of the sampler. identity: what is
            searched for; a study of something else is refused.

    Raises:
        RecipeError: VP177 the storage cannot be opened, VP178 the study there is of something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = f"sqlite:///{(folder / 'study.db').resolve()}" if storage is None else storage
    try:
        opened = _storage(url)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=8)
        study = optuna.create_study(
            storage=opened, study_name=name, load_if_exists=True, direction="minimize", sampler=ByPlace(seed), pruner=pruner
        )
        before = study.user_attrs.get("search")
        if before is None:
            study.set_user_attr("search", dict(identity))
    except Exception as error:
        raise _unopened(url, error) from error
    if before is not None and before != dict(identity):
        other = [key for key in sorted({*before, *identity}) if before.get(key) != identity.get(key)]
        raise RecipeError(
            178, f"the study '{name}' searches for something else", cause=f"other there: {', '.join(other)}",
            next_step="choose another -o (or --study), or give what it was begun with",
        )  # fmt: skip
    return study


def _storage(url: str) -> BaseStorage:
    """A storage of Optuna's: a journal file or Redis by their prefix, else a database. Two processes may make its tables at once."""
    if url.startswith("redis://"):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalRedisBackend

        return JournalStorage(JournalRedisBackend(url))
    if url.startswith("journal:///"):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(url.removeprefix("journal://")))
    options: dict[str, Any] = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {}
    for attempt in range(ATTEMPTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return RDBStorage(url, engine_kwargs=options)
        except Exception as error:
            if "already exists" not in str(error) and "UNIQUE" not in str(error) or attempt + 1 == ATTEMPTS:
                raise
            time.sleep(0.2)
    raise AssertionError


def _unopened(url: str, error: Exception) -> RecipeError:
    return RecipeError(
        177, f"the storage '{hidden(url)}' cannot be opened", cause=hidden(first_line(error))[:300],
        next_step="--storage sqlite:////folder/study.db, postgresql://..., mysql://..., redis://..., or journal:///folder/file",
    )  # fmt: skip


def hidden(url: str) -> str:
    """A URL without the password in it."""
    head, at, host = url.rpartition("@")
    scheme, colon, rest = head.partition("://")
    return f"{scheme}://{rest.partition(':')[0]}@{host}" if at and colon else url


class ByPlace(BaseSampler):
    """Optuna's TPE whose random numbers follow from the seed and the place alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._samplers: dict[int, TPESampler] = {}

    def _of(self, study: optuna.Study, trial: FrozenTrial) -> TPESampler:
        if trial.number not in self._samplers:
            seed = (self._seed * 1_000_003 + place(study, trial.number)) % 2**32
            made = TPESampler(seed=seed, n_startup_trials=RANDOM, multivariate=False, constant_liar=True)
            self._samplers = {trial.number: made}
        return self._samplers[trial.number]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """Every parameter is drawn by itself: which ones there are follows from the first."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        """See `infer_relative_search_space`."""
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """Draw one parameter."""
        return self._of(study, trial).sample_independent(study, trial, param_name, param_distribution)


def place(study: optuna.Study, number: int) -> int:
    """Place of a trial: how many before it did not fail."""
    return sum(one.number < number and one.state != TrialState.FAIL for one in study.get_trials(deepcopy=False))


def taken(study: optuna.Study) -> int:
    """Places that are done or under way."""
    return sum(one.state != TrialState.FAIL for one in study.get_trials(deepcopy=False))


def worker() -> str:
    """This process, for the others: host, number and when it began."""
    return f"{socket.gethostname()}/{os.getpid()}/{_began(os.getpid())}"


def release_abandoned(study: optuna.Study) -> int:
    """Free the places of trials whose process is gone; returns how many."""
    freed = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _abandoned(study, trial):
            study.tell(trial.number, state=TrialState.FAIL)
            freed += 1
    return freed


def _abandoned(study: optuna.Study, trial: FrozenTrial) -> bool:
    deadline = time.monotonic() + 3
    name = trial.user_attrs.get("worker")
    while name is None and time.monotonic() < deadline:  # its process is about to say who it is, or died before
        time.sleep(0.2)
        name = study.get_trials(deepcopy=False)[trial.number].user_attrs.get("worker")
    if name is None:
        return True
    host, process, began = str(name).split("/")
    if host != socket.gethostname():
        return trial.datetime_start is not None and time.time() - trial.datetime_start.timestamp() > ABANDONED
    return began != _began(int(process))


def _began(process: int) -> str:
    """When a process began, in the system's ticks; "" where there is none (or no /proc: then only its number counts)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        try:
            os.kill(process, 0)
        except OSError:
            return ""
        return "unknown"


@contextmanager
def running(study: optuna.Study, trials: int) -> Iterator[tuple[optuna.Trial, int] | None]:
    """Take the next place while there is one; a body that raises frees it again.

    Yields:
        The trial and its place, or None when all `trials` places are taken.
    """
    if taken(study) >= trials:
        yield None
        return
    trial = study.ask()
    try:
        trial.set_user_attr("worker", worker())
        where = place(study, trial.number)
        if where >= trials:  # another process was faster
            study.tell(trial, state=TrialState.FAIL)
            yield None
            return
        yield trial, where
    except BaseException:
        if study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
            study.tell(trial, state=TrialState.FAIL)
        raise
