"""Apply a plan inside its transaction and prove the outcome, up to but without the commit."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg

from connectors._postgresql.catalogue import Catalogue
from connectors._postgresql.changes import Applier, ConcurrentChange
from connectors._postgresql.connection import Connection, run
from connectors._postgresql.definitions import SEQUENCES
from connectors._postgresql.description import sequence_facts
from connectors._postgresql.difference import Difference
from connectors._postgresql.followers import advance_all, advance_past_rows, refresh_views
from connectors._postgresql.large_applying import LargeApplier
from connectors._postgresql.links import check_links, check_new_children
from connectors._postgresql.neighbours import Ledger, Outside, fingerprint_outside
from connectors._postgresql.outcome import check_outcome, schema_check
from connectors._postgresql.planning import Planned, Work
from connectors._postgresql.silencing import as_the_application, as_the_application_unless_superuser, silence
from connectors._postgresql.staging import Pair
from connectors._postgresql.uniqueness import check_uniqueness
from engine.errors import TargetError
from engine.faults import kill_point
from engine.ports import Check, RestoreReport, SourceView


class Applying:
    """One plan; `run` once. `view` is the backup, None for an undo, which has its image alone."""

    def __init__(
        self, work: Work, planned: Planned, view: SourceView | None, reconnect: Callable[[], Connection]
    ) -> None:
        self._work, self._planned, self._view, self._reconnect = work, planned, view, reconnect
        self._connection = work.connection

    def run(self) -> RestoreReport:
        """Raises TargetError when the outcome would not be what was planned, ConcurrentChange to try again."""
        work, planned = self._work, self._planned
        kill_point("pg.restore.loaded")
        work.progress.phase("apply")
        differences = planned.parents_first
        loaded = [difference.pair.view for difference in differences if difference.pair.straight]
        work.progress.total(bytes=sum(v.byte_count for v in loaded), items=sum(v.row_count for v in loaded))
        before = self._fingerprint()
        ledger = Ledger(self._connection)
        quiet = self._quiet()
        self._apply(differences, ledger, quiet=quiet)
        if planned.large is not None and planned.large.mark:
            LargeApplier(self._connection, work.warn).run(again=not quiet)
            kill_point("pg.restore.objects")
        if planned.missing is not None:
            planned.missing.complete(self._connection, work.warn)
        links = self._check_constraints(planned.linked if quiet else planned.catalogue, differences, quiet=quiet)
        work.progress.phase("check")
        integrity = Check("data_integrity", True, 0, 0, f"{links} foreign key checks, no row without its parent")
        pairs = [difference.pair for difference in planned.differences]
        checks = (check_outcome(self._connection, planned), schema_check(pairs), integrity)
        self._advance_sequences(pairs)
        neighbours: dict[str, Any] = {"tables": ledger.settle(planned.catalogue), "triggers_silent": quiet}
        neighbours["fingerprints"] = self._prove(before, self._fingerprint())
        self._refresh(differences)
        work.progress.check()
        changes = {difference.change.name: difference.change for difference in differences}
        return RestoreReport(
            tables=(*(changes[name] for name in sorted(changes)), *planned.large_changes),
            checks=checks,
            neighbours=neighbours,
            warnings=tuple(work.warnings),
            digest=planned.digest,
        )

    # -------------------------------------------------------- writing

    def _quiet(self) -> bool:
        """Silence triggers and cascades where the role may; False where the server's own rules stay on."""
        quiet = silence(self._connection)
        if not quiet:
            run(self._connection, "SET CONSTRAINTS ALL DEFERRED")
        return quiet

    def _apply(self, differences: Sequence[Difference], ledger: Ledger, *, quiet: bool) -> None:
        if quiet:
            run(self._connection, "SET CONSTRAINTS ALL DEFERRED")
            with as_the_application_unless_superuser(self._connection):
                Applier(self._connection, differences, ledger, self._work.progress).apply(deletions_last=False)
            return
        with as_the_application(self._connection):
            self._apply_under_rules(differences, ledger)

    def _apply_under_rules(self, differences: Sequence[Difference], ledger: Ledger) -> None:
        reason: Exception | None = None
        for deletions_last in (False, True):
            with ledger.attempt() as attempt:
                try:
                    Applier(self._connection, differences, ledger, self._work.progress).apply(
                        deletions_last=deletions_last
                    )
                except (psycopg.IntegrityError, ConcurrentChange) as error:
                    reason = error
                    attempt.undo()
            if not attempt.undone:
                return
        if isinstance(reason, ConcurrentChange):
            raise reason
        assert isinstance(reason, psycopg.Error), "an attempt is undone for a reason"
        raise TargetError(
            f"the changes cannot be made in an order that the constraints allow ({reason.diag.constraint_name})",
            hint="nothing was changed; restore as a role that may set session_replication_role (superuser, or from 15 on "
            "GRANT SET ON PARAMETER)",
        )

    def _check_constraints(self, catalogue: Catalogue, differences: Sequence[Difference], *, quiet: bool) -> int:
        """Check what the server could not, and let it check now what it would check at the commit; return how many links."""
        if quiet:
            check_uniqueness(self._connection, differences)
        changed = {d.pair.table.oid: d for d in differences if d.any}
        links = check_links(self._connection, catalogue, changed, lock=quiet)
        if quiet and self._work.request.prove:
            with contextlib.closing(self._reconnect()) as other:
                check_new_children(self._connection, other, catalogue, changed)
        # Deferred triggers must have written what they write before anybody counts the rows.
        with as_the_application(self._connection):
            run(self._connection, "SET CONSTRAINTS ALL IMMEDIATE")
        return links

    # -------------------------------------------------------- what follows the rows

    def _advance_sequences(self, pairs: Sequence[Pair]) -> None:
        """Move sequences past the restored keys, and a tenant's own ones to where they stood; never backwards."""
        facts = sequence_facts(self._connection)
        for pair in pairs:
            for sequence in facts.get(pair.table.oid, ()):
                if sequence["column"] in pair.columns:
                    advance_past_rows(self._connection, pair.restored, sequence, at_most=self._drawn(pair, sequence))
        view = self._view
        own = self._work.config.layout != "rows" and self._work.request.mode != "selective"
        if view is not None and own and SEQUENCES in view.documents:
            advance_all(self._connection, json.loads(view.documents[SEQUENCES].read()))

    def _drawn(self, pair: Pair, sequence: Mapping[str, Any]) -> int | None:
        """The last number that a shared sequence had given at the backup: a tenant's own inventions must not use it up."""
        if self._work.config.layout != "rows":
            return None
        stood = [s["last_value"] for s in pair.view.facts.get("sequences", ()) if s["column"] == sequence["column"]]
        return max((int(last) for last in stood if last is not None), default=0) if stood else None

    def _refresh(self, differences: Sequence[Difference]) -> None:
        """Materialized views of a tenant's own database or schema show the restored rows."""
        if self._view is not None and any(difference.any for difference in differences):
            refresh_views(self._connection, self._view.facts.get("materialized", ()), self._work.warn)

    # -------------------------------------------------------- proof

    def _fingerprint(self) -> dict[str, Outside]:
        if not self._work.request.prove:
            return {}
        planned = self._planned
        return fingerprint_outside(
            self._connection, planned.catalogue, planned.selection.scopes, adopted=planned.adopted
        )

    def _prove(self, before: Mapping[str, Outside], after: Mapping[str, Outside]) -> dict[str, Any]:
        changed = sorted(name for name in before if before[name] != after.get(name))
        if changed:
            raise TargetError(
                f"rows of others would have changed in {', '.join(changed[:5])}",
                hint="nothing was changed; report this",
            )
        return {name: {"rows": outside.count, "digest": outside.digest} for name, outside in after.items()}
