"""Stores: added, tested, changed, removed, and the default one that exists from the start."""

import dataclasses
import hmac
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import ProtectedError

from access.approvals import Action, approval_use
from access.models import Approval
from audit.services import record
from core import clock, sealing
from core.errors import Conflict, NotFound
from core.rootkey import root_key
from engine.adapters import parse_config, secret_fields
from engine.errors import StoreDenied, StoreError, UsageError
from engine.keys import derive
from engine.ports import Store
from stores._plain import plain_http
from stores._probe import Step, StoreProbe, probe_store
from tenants import wiring
from tenants.models import StoreConfig, Tenant
from tenants.rules import name_checked
from tenants.services.inherited_stores import inherited_stores
from tenants.store_rules import about_checked

DEFAULT_STORE = "default"
REPOSITORIES_LOOKED_AT_MAX = 20


def store_default() -> StoreConfig:
    """The default store: a local folder `store` in the data folder, made and recorded on first use.

    With it come the stores that the environment names (inherited_stores), once. Raises UsageError when these cannot be.
    """
    row = StoreConfig.objects.filter(is_default=True).first()
    if row is not None:
        return row
    inherited = inherited_stores()
    values = {"path": str(wiring.data_folder() / "store")}
    row = StoreConfig(name=DEFAULT_STORE, kind="local", config=values, is_default=True)
    wiring.store_make(row)  # Before its row: a folder that is missing later has been lost.
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            record("store.added", message=f"default store in {values['path']}", actor="", data={"store": row.name})
            for other in inherited:
                other.save(force_insert=True)
                said = f"store {other.name}, named by the environment; not tested yet"
                record("store.added", message=said, actor="", data={"store": other.name, "kind": other.kind})
            return row
    except IntegrityError:  # Another process was first.
        return StoreConfig.objects.get(is_default=True)


def store_get(name: str) -> StoreConfig:
    """Find a store by name. Raises NotFound."""
    try:
        return StoreConfig.objects.get(name=name)
    except StoreConfig.DoesNotExist:
        if name == DEFAULT_STORE:
            return store_default()
        raise NotFound(f"there is no store {name[:60]!r}", hint="store list shows them") from None


def store_add(
    name: str,
    *,
    kind: str,
    values: Mapping[str, str],
    actor: str,
    test: bool = True,
    about: Mapping[str, str | None] | None = None,
) -> StoreConfig:
    """Add a store and make its place, tested before it is saved unless told otherwise.

    One that lets two writers create one object is saved all the same, and can hold copies only. `about`: see
    store_rules.about_checked. Raises Conflict, UsageError, StoreError.
    """
    name_checked("store", name)
    columns = about_checked(about or {})
    store_default()
    if StoreConfig.objects.filter(name__iexact=name).exists():
        raise _taken(name)
    adapter: Any = wiring.store_kind(kind)
    config = parse_config(adapter.Config, sealing.resolved(adapter.Config, values))
    row = StoreConfig(name=name, kind=kind, **columns)
    kept = sealing.seal(adapter.Config, sealing.given(adapter.Config, config, values), owner=f"store:{row.pk}")
    row.config, row.sealed = kept.plain, kept.sealed
    _keep_keys_out_of_locks(row, config, asked=columns.get("keeps_keys"))
    wiring.store_make(row)
    if test:
        probe = _tested(row)
        probe.require()
        if not probe.deletes and "keeps_keys" not in columns:
            row.keeps_keys = False  # What cannot be deleted cannot be shredded.
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            record("store.added", message=f"store {name} ({kind})", actor=actor, data={"store": name, "kind": kind})
    except IntegrityError:
        raise _taken(name) from None
    return row


def store_update(
    row: StoreConfig,
    *,
    actor: str,
    values: Mapping[str, str] | None = None,
    about: Mapping[str, str | None] | None = None,
    test: bool = True,
    approval: Approval | None = None,
) -> StoreConfig:
    """Change settings (an empty value takes one back to its default) and what is said of the store.

    With other settings it must still be the same place: it is tested, and must hold the repositories of its tenants.
    ApprovalNeeded where a second master has to agree to settings (`redirect_action`).
    Raises UsageError, Conflict, StoreError; nothing is changed then.
    """
    columns = about_checked(about or {})
    if not values and not columns:
        raise UsageError(
            "nothing to change was named", hint="give --set KEY=VALUE, --offsite yes, --medium WORDS, --paid yes …"
        )
    changed = StoreConfig.objects.get(pk=row.pk)
    for column, value in columns.items():
        setattr(changed, column, value)
    adapter: Any = wiring.store_kind(row.kind)
    if values:
        _settings_put(changed, adapter.Config, values)
    config = sealing.config_of(adapter.Config, changed.config, changed.sealed, owner=f"store:{row.pk}")
    _keep_keys_out_of_locks(changed, config, asked=columns.get("keeps_keys"))
    if values and test:
        _tested(changed).require()
        _repositories_checked(changed)
    with transaction.atomic():
        if values:
            approval_use(approval, redirect_action(row, values), actor=actor)
        changed.save()
        named = sorted([*(values or {}), *columns])
        record("store.changed", message=f"store {row.name}: {', '.join(named)}", actor=actor, data={"store": row.name})
    return changed


def redirect_action(row: StoreConfig, values: Mapping[str, str]) -> Action:
    """What a second master has to agree to: with other settings backups may go, and be read, elsewhere. No secret is in it.

    Of a secret a digest under the root key, so that another one is another action.
    """
    adapter: Any = wiring.store_kind(row.kind)
    secrets, meant = secret_fields(adapter.Config), sealing.resolved(adapter.Config, values)  # Files may change.
    shown = {name: _marked(row, name, str(value)) if name in secrets else value for name, value in meant.items()}
    return Action("stores", "store.set", details={"store": row.name, "id": row.pk, "set": shown})


def _marked(row: StoreConfig, name: str, value: str) -> str:
    key = derive(root_key().secret_bytes(), salt=b"", info=b"lastro/v1/approval")
    digest = hmac.new(key, f"{row.pk}:{name}:{value}".encode(), "sha256").hexdigest()
    return f"a secret, marked {digest[:16]}"


_ENDING_HINT = (
    "end that first; keyrings leave a store by: store set NAME --keeps-keys no, then key repair; if it is gone for good: "
    "store remove NAME --lost"
)


_COPIES_HINT = "copy remove TENANT STORE first; if it is gone for good: store remove NAME --lost"


def store_remove(row: StoreConfig, *, actor: str) -> None:
    """Forget a store that keeps nothing of ours; its place and whatever is in it stay as they are. Raises Conflict."""
    if row.is_default:
        raise Conflict("the default store cannot be removed", hint="tenants that name no store go there")
    data = {"store": row.name, "kind": row.kind}
    try:
        with transaction.atomic():
            _unused_checked(row)
            record("store.removed", message=f"store {row.name} ({row.kind})", actor=actor, data=data, level="warning")
            row.delete()
    except ProtectedError as error:
        named = sorted({str(each._meta.verbose_name) for each in error.protected_objects})
        raise Conflict(f"store {row.name} is still counted on by: {', '.join(named)}", hint=_ENDING_HINT) from None


def store_objects_present(row: StoreConfig) -> bool:
    """Whether any repository lies in the store, whoever's it is. Raises StoreError when it cannot be read."""
    with _opened_without_locks(row) as (store, _):
        return next(iter(store.list("r/")), None) is not None


def store_test(row: StoreConfig) -> StoreProbe:
    """Write, read, list, lock and delete a probe; the findings are kept in the row. Raises the error of what failed."""
    probe = _tested(row)
    StoreConfig.objects.filter(pk=row.pk).update(tested=row.tested, tested_at=row.tested_at)
    probe.require()
    return probe


def store_probe(row: StoreConfig) -> StoreProbe:
    """Like `store_test`, what failed told in the result. Raises StoreUnreachable all the same."""
    try:
        probe = _tested(row)
    except StoreError as error:
        StoreConfig.objects.filter(pk=row.pk).update(tested=_failure(error), tested_at=clock.now())
        raise
    StoreConfig.objects.filter(pk=row.pk).update(tested=row.tested, tested_at=row.tested_at)
    return probe


def primary_checked(row: StoreConfig) -> None:
    """Raise StoreDenied for a store that cannot tell two writers apart; one that was never tested is tested now."""
    if not row.tested and not row.is_default:
        store_test(row)
        row.refresh_from_db()
    if row.tested.get("conditional") is False:
        raise StoreDenied(
            f"store {row.name!r} lets two writers create one object",
            hint="it cannot keep the manifests of a primary: use another store, and this one for copies",
        )


def probe_output(probe: StoreProbe) -> dict[str, Any]:
    """What a test found, as `store test` prints it and the row keeps it."""
    return {
        "status": "failed" if not probe.usable else "limited" if probe.warned else "ok",
        "conditional": probe.conditional,
        "deletes": probe.deletes,
        "versions": probe.versions,
        "locked_until": probe.locked_until.isoformat().replace("+00:00", "Z") if probe.locked_until else None,
        "free_bytes": probe.free_bytes,
        "steps": [
            {"step": step.name, "state": step.state, "said": step.said, "hint": step.hint} for step in probe.steps
        ],
    }


# ---------------------------------------------------------------- inner parts


def _tested(row: StoreConfig) -> StoreProbe:
    """Probe the store and put the findings into the row, unsaved."""
    with _opened_without_locks(row) as (store, locks):
        probe = probe_store(store, lock=locks)
    if step := line_step(row):
        probe = dataclasses.replace(probe, steps=(*probe.steps, step))
    row.tested, row.tested_at = probe_output(probe), clock.now()
    return probe


def line_step(row: StoreConfig) -> Step | None:
    """What a test says of a line that can be read on the way; None for https, for SFTP, and on this very host."""
    adapter: Any = wiring.store_kind(row.kind)
    host = plain_http(sealing.config_of(adapter.Config, row.config, row.sealed, owner=f"store:{row.pk}"))
    if not host:
        return None
    said = f"{host} is reached by http: who listens on the way reads names, sizes and signatures, and can use what a signature allows"
    return Step("line", "missing", said, "give an https endpoint; what is stored is encrypted all the same")


def _failure(error: StoreError) -> dict[str, Any]:
    said = {"step": "reach", "state": "failed", "said": error.message, "hint": error.hint}
    return {"status": "failed", "conditional": None, "deletes": None, "steps": [said]}


@contextmanager
def _opened_without_locks(row: StoreConfig) -> Iterator[tuple[Store, bool]]:
    """The store as it is set up, but for the lock on every new object: a probe must not stay for years."""
    adapter: Any = wiring.store_kind(row.kind)
    config = sealing.config_of(adapter.Config, row.config, row.sealed, owner=f"store:{row.pk}")
    locks = bool(getattr(config, "lock_days", 0))
    if locks:
        config = dataclasses.replace(config, lock_days=0)
    store: Store = adapter(config)
    try:
        yield store, locks
    finally:
        store.close()


def _settings_put(row: StoreConfig, config_class: type, values: Mapping[str, str]) -> None:
    """Merge named settings into those that the row keeps; an empty value takes one back to its default."""
    known = {field.name for field in dataclasses.fields(config_class)}
    strange = set(values) - known
    if strange:
        raise UsageError(f"unknown setting {min(strange)[:60]!r}", hint=f"known: {', '.join(sorted(known))}")
    cleared = {name for name, value in values.items() if value == ""}
    before = {**row.config, **sealing.unseal(row.sealed, owner=f"store:{row.pk}")}
    given = sealing.resolved(config_class, {name: value for name, value in values.items() if name not in cleared})
    merged = {name: value for name, value in {**before, **given}.items() if name not in cleared}
    config = parse_config(config_class, merged)
    kept = sealing.seal(config_class, sealing.given(config_class, config, merged), owner=f"store:{row.pk}")
    row.config, row.sealed = kept.plain, kept.sealed


def _keep_keys_out_of_locks(row: StoreConfig, config: Any, *, asked: object) -> None:
    """A keyring that cannot be deleted could never be shredded."""
    if not getattr(config, "lock_days", 0):
        return
    if asked:
        raise UsageError(
            "a store that locks its objects cannot keep keys",
            hint="keys must go when a tenant is shredded: --keeps-keys no",
        )
    row.keeps_keys = False


def _repositories_checked(row: StoreConfig) -> None:
    tenants = Tenant.objects.filter(store=row, repository_ready=True).order_by("-id")[:REPOSITORIES_LOOKED_AT_MAX]
    with wiring.store_open(row) as store:
        gone = [each.slug for each in tenants if not wiring.repository_present(store, each.repository_id)]
    if gone:
        raise Conflict(
            f"with these settings store {row.name} does not hold the repository of {', '.join(gone[:5])}; nothing was changed",
            hint="move the objects there first, or add the new place as a store of its own",
        )


def _unused_checked(row: StoreConfig) -> None:
    """Raise Conflict while a tenant, a copy or anything else of the catalogue counts on the store."""
    slugs = list(Tenant.objects.filter(store=row).order_by("slug").values_list("slug", flat=True)[:5])
    if slugs:
        raise Conflict(
            f"store {row.name} keeps the backups of {', '.join(slugs)}",
            hint="a store goes when its last tenant has gone",
        )
    copies = list(row.copies.values_list("tenant__slug", flat=True)[:5])
    if copies:
        raise Conflict(f"store {row.name} holds copies of {', '.join(copies)}", hint=_COPIES_HINT)


def _taken(name: str) -> Conflict:
    return Conflict(f"a store named {name!r} exists already", hint="choose another name, or: store set")
