"""The beginning of a run: done once before its first step, by the parent of its ranks or, under a launcher, by rank 0.

No torch.
"""

from __future__ import annotations

import os

from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import TridentConfig
from trainer.data.capacity import check_capacity
from trainer.data.epochs import with_steps
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData, stream_identity
from trainer.data.streams import check_epochs, new_stream
from trainer.data.told import told_documents, told_epochs, told_examples, told_left_out, told_packing, told_sources
from trainer.description import describe, plan_record
from trainer.engine.adam import check_compiler
from trainer.evaluation.task_names import check_tasks
from trainer.launcher.attempts import note_restart, restarted_by
from trainer.launcher.guard import RankGuard
from trainer.log import say
from trainer.metrics.jsonl import read_rows
from trainer.metrics.tensorboard_sink import check_tensorboard
from trainer.planner.foresee import Foresight
from trainer.progress import PREPARING, current
from trainer.run_folder import DATA_FOLDER, STREAM, RunFolder
from trainer.samples.check import check_samples


class Beginning:
    """The steps of a run's beginning. A parent takes them all, in `by_parent`.

    Rank 0 of a launcher takes them one by one, with all other ranks: it claims the folder before the data are prepared,
    since all ranks write their logs there meanwhile.

    Args:
        config: the run's config.
        foresight: what this process has predicted of the run already; None: nothing.
    """

    def __init__(self, config: TridentConfig, foresight: Foresight | None = None) -> None:
        self._config = config
        self._foresight = foresight or Foresight()
        self.folder = RunFolder.of(config)
        """Claimed for as long as this object lives."""

    def by_parent(self) -> RunPlan:
        """Take all steps, before a rank is started, and return the plan. Faults are found before anything is written.

        Raises:
            TridentError: as the steps.
        """
        prepared = self.prepared()
        plan = make_plan(with_steps(self._config, prepared), prepared.vocab_size, attended=prepared.attended)
        self.check_size(plan, prepared)
        self.claim(restarted_by(os.environ))
        self.write(plan, prepared)
        return plan

    def prepared(self) -> PreparedData:
        """Check everything that a user can get wrong, and prepare the data. Writes nothing into the run's folder.

        Raises:
            PeerLostError: ranks of an earlier start do not end.
            TridentError: as `check` and `check_data`.
        """
        self.folder.wait_until_free(self._config)
        self.check()
        current().enter(PREPARING)
        prepared = prepare(self._config, say)
        self.check_data(prepared)
        return prepared

    def check(self) -> None:
        """Check all that a user can get wrong besides the data. Writes nothing.

        Raises:
            ConfigError: the run folder or the machine cannot be used.
            CheckpointError: a key names a checkpoint that cannot be used.
        """
        config = self._config
        self.folder.check(config)
        check_compiler(config.optimizer, config.zero, config.runtime)
        check_tensorboard(config.logging)

    def check_data(self, prepared: PreparedData) -> None:
        """Check that the data are enough, and that the run began with them. Writes nothing.

        Raises:
            DataError: they are not.
            ConfigError: texts are to be written, but cannot be with these data.
            CheckpointError: the weights to begin with are not those of the model, whose vocabulary is known now.
        """
        check_capacity(prepared, self._config)
        origin = self._config.checkpoint
        begins_elsewhere = origin.init_from is not None or origin.resume not in ("auto", "never")
        is_imported = begins_elsewhere or self.folder.hugging_face.is_dir()
        check_samples(prepared, self._config, may_be_imported=is_imported)
        check_tasks(self._config, prepared.vocab_size)
        self.folder.check_weights(self._config, prepared.vocab_size)
        self.folder.check_data(self._config, stream_identity(prepared, self._config))

    def check_size(self, plan: RunPlan, prepared: PreparedData) -> None:
        """Check that the run may fit into its devices, and may read its data so often. Writes nothing.

        Raises:
            ConfigError: it surely does not fit.
            DataError: a source has too few samples.
        """
        self._foresight.refuse_too_large(plan)
        if not self.folder.holds_training():
            # One that goes on is judged by what it has read so far.
            stream = new_stream(prepared, self._config, self._config.model.seq_length)
            check_epochs(stream, self._config, plan.run_tokens)

    def claim(self, restarted_by: str | None) -> None:
        """Keep other runs out of the folder, and remove files of an earlier start that are in the way of this one.

        Args:
            restarted_by: the launcher that started the run again; None if none says so.

        Raises:
            ConfigError: another run has the folder, or as `check`.
            PeerLostError: ranks of an earlier start do not end.
            StorageError: the folder cannot be written.
        """
        folder = self.folder
        folder.claim(self._config)
        if restarted_by is not None:
            note_restart(restarted_by, folder.path, folder.logs, read_rows(folder.metrics))
        RankGuard.prepare(folder.logs)

    def write(self, plan: RunPlan, prepared: PreparedData) -> None:
        """Write config and plan into the folder, and print the plan.

        Raises:
            StorageError: the folder cannot be written.
        """
        foreseen = self._foresight.of(plan)
        data: dict[str, object] = {
            STREAM: stream_identity(prepared, self._config),
            DATA_FOLDER: str(prepared.folder),
        }
        record = {**plan_record(plan, foreseen), **data}
        self.folder.write(self._config, record)
        if prepared.tokenizer_folder is not None:
            self.folder.keep_tokenizer(prepared.tokenizer_folder)
        config = self._config
        stream = new_stream(prepared, config, config.model.seq_length)
        told = [told_left_out(prepared), told_examples(prepared, config), told_documents(prepared, config)]
        told += [told_epochs(config, stream, plan.steps), *told_packing(prepared, config)]
        for line in (*told, *told_sources(prepared, config, stream, plan.run_tokens)):
            if line is not None:
                say(line)
        say(describe(plan, foreseen))
