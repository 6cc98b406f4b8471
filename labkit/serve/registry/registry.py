"""The registry itself: a thin face over publication, aliases, the cache and collection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from labkit.serve.registry import aliases, names, published
from labkit.serve.registry.aliases import Alias, Move, Pin
from labkit.serve.registry.cache import Cache
from labkit.serve.registry.collect import GRACE, Collected, collect
from labkit.serve.registry.errors import Lost, Missing
from labkit.serve.registry.holds import holding
from labkit.serve.registry.home import default_cache
from labkit.serve.registry.manifest import Version, read
from labkit.serve.registry.meter import Say
from labkit.serve.registry.publish import publish
from labkit.serve.registry.small_disk import Write, plainly
from labkit.serve.registry.store import Store

TRIES = 20


class Registry:
    """Versions of models in a store; several may use the same store at once, in threads, processes and machines.

    Args:
        store: where everything lies; see `open_registry`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def uri(self) -> str:
        """The store's address."""
        return self.store.uri

    def push(self, name: str, folder: Path | str, *, on_progress: Say | None = None, note: str = "") -> Version:
        """Publish a folder as the next version of a model.

        A push that was interrupted is taken up by pushing the same folder again: what lies in the store whole is not
        sent twice. If two publish at once, both are published; the slower one gets the next number. Files and folders
        whose names begin with '.' are left out.

        Args:
            name: the model; made by its first version.
            folder: of the model, as `labkit train` or transformers writes it.
            on_progress: told the share that is done (0 to 1) and what is being done, from several threads in turn.
            note: a text to keep with the version.

        Raises ValueError for what cannot be published, Interrupted if the store cannot be reached any more.
        """
        return publish(self.store, names.need_model(name), folder, note, on_progress)

    def models(self) -> list[str]:
        """The models in the store, sorted."""
        return sorted(self.store.folders())

    def versions(self, name: str) -> list[Version]:
        """The versions of a model, oldest first; empty if there is none. Raises Damaged if one cannot be believed."""
        return [read(data, name, id) for id, data in self._living(name)]

    def ids(self, name: str) -> list[str]:
        """The ids of a model's versions, oldest first, of damaged ones too."""
        return [id for id, _ in self._living(name)]

    def _living(self, name: str) -> list[tuple[str, bytes]]:
        return list(published.living(self.store, names.need_model(name)))[::-1]

    def version(self, name: str, ref: str = names.LATEST) -> Version:
        """What a reference names: `v3`, an alias such as `prod`, or `latest`.

        Raises Missing, saying what there is, and Damaged for a manifest that must not be used.
        """
        return published.resolve(self.store, names.need_model(name), ref)

    def aliases(self, name: str) -> dict[str, str]:
        """The aliases of a model and the ids that they name."""
        found = aliases.read_all(self.store, names.need_model(name))
        return {alias: found[alias].id for alias in sorted(found) if found[alias].now}

    def moves(self, name: str, alias: str) -> tuple[Move, ...]:
        """Every move of an alias, oldest first (the last thousand)."""
        return aliases.read(self.store, names.need_model(name), names.need_alias(alias))[0].moves

    def alias(self, name: str, alias: str, ref: str, *, expect: str | None = None) -> Version:
        """Let an alias name a version, in one step that others see whole or not at all.

        Args:
            name, alias: for example `four-domains` and `prod`.
            ref: the version, by its id or by another alias.
            expect: the id that the alias must name until now; '' that it must name none, None for no matter what.

        Returns the version. Raises Moved, with nothing changed, if `expect` is not so; Missing if there is no such
        version.
        """
        names.need_alias(alias)
        found = self.version(name, ref)
        with holding(self.store, name, versions=[found.id]):
            pin = Pin(found.id, found.sha256)
            published.pinned(self.store, name, pin)  # a collection may have removed it until the hold was there
            self._swap(name, alias, expect, lambda old: old if old.now == pin else old.to(pin))
        return found

    def unalias(self, name: str, alias: str, *, expect: str | None = None) -> None:
        """Let an alias name nothing any more; `rollback` undoes it until a collection has removed the version."""
        names.need_model(name)
        names.need_alias(alias)
        self._swap(name, alias, expect, lambda old: old.to(None) if old.now else old)

    def rollback(self, name: str, alias: str, *, expect: str | None = None) -> Version:
        """Let an alias name again what it named before, and return that.

        Rolling back twice goes back two moves. Raises Missing if it named nothing before, or if that was removed;
        Moved if `expect` is not what it names.
        """
        names.need_model(name)
        old, _ = aliases.read(self.store, name, names.need_alias(alias))
        target = old.back().now
        assert target is not None
        with holding(self.store, name, versions=[target.id]):
            found = published.pinned(self.store, name, target)
            self._swap(name, alias, old.id if expect is None else expect, Alias.back)
        return found

    def _swap(self, name: str, alias: str, expect: str | None, change: Callable[[Alias], Alias]) -> None:
        for _ in range(TRIES):
            old, tag = aliases.read(self.store, name, alias)
            aliases.need(old, expect)
            new = change(old)
            if new is old:
                return
            try:
                aliases.swap(self.store, new, tag)
            except Lost:
                continue
            return
        raise Lost(f"{name}@{alias} was moved by others {TRIES} times meanwhile; nothing was changed. Try again")

    def pull(
        self, name: str, ref: str = names.LATEST, cache: Path | str | None = None, *, on_progress: Say | None = None,
        write: Write = plainly,
    ) -> Path:  # fmt: skip
        """Bring a version into the cache and return its folder, every byte of it verified.

        A pull that was interrupted is taken up by the next. What is in the cache already is read and verified again;
        damaged files are fetched anew. Several may pull the same version at once: one fetches, the others wait.

        Args:
            name, ref: the version; see `version`.
            cache: the folder of all pulled versions; None for `models` in LABKIT_HOME.
            on_progress: as for `push`.
            write: called as write(file, data) with what was fetched; returns how many bytes it wrote. For drills: see
                `SmallDisk`.

        Raises Damaged if the store's bytes are not those that were published, Missing if there is no such version,
        Interrupted if the store cannot be reached any more, OSError (ENOSPC) if the disk is full.
        """
        found = self.version(name, ref)
        return Cache(default_cache() if cache is None else Path(cache), write).pull(self.store, found, on_progress)

    def collect(self, name: str, *, keep: int = 3, grace: float = GRACE, dry: bool = False) -> Collected:
        """Remove versions that nothing names, and shards that no version needs.

        What an alias names, what its rollback would go back to, the newest `keep` versions, and what an upload or a
        move in progress needs all stay. A removed version's number is never given again.

        Args:
            name: the model.
            keep: how many of the newest versions stay in any case.
            grace: seconds for which an upload that was interrupted keeps its shards; half an hour or more.
            dry: remove nothing, only say what would be.

        Raises Damaged, with nothing removed, if what must stay cannot be told; Lost if another collection runs.
        """
        if names.need_model(name) not in self.models():
            raise Missing(f"there is no model {name} in {self.uri}; see `labkit registry list`")
        return collect(self.store, name, keep, grace, dry)
