"""Which tokens are in use: versions of a registered model in MLflow, of which one has the alias `champion`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

CHAMPION = "champion"
_TOKENS, _PREVIOUS = "softrepa.tokens", "softrepa.previous_champion"


@dataclass(frozen=True)
class Version:
    """A registered version: its number, its token file, and the version whose place it took."""

    number: int
    tokens: str
    previous: int | None
    is_champion: bool = False


class Registry:
    """The versions of one registered model, such as `softrepa-embedded_sd3`."""

    def __init__(self, name: str) -> None:
        self.name, self.client = name, MlflowClient()

    def champion(self) -> Version | None:
        """The version in use; None before the first promotion."""
        try:
            return _read(self.client.get_model_version_by_alias(self.name, CHAMPION), is_champion=True)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        champion = self.champion()
        found = self.client.search_model_versions(f"name = '{self.name}'")
        numbers = sorted(found, key=lambda version: -int(version.version))
        return [_read(own, champion is not None and int(own.version) == champion.number) for own in numbers]

    def promote(self, tokens: str, source: str, run_id: str | None, tags: Mapping[str, str]) -> Version:
        """Register a token file and give it the alias; tokens that are registered already get no second version.

        Setting the alias is the last step and a single one: a crash before leaves the old champion in its place.
        """
        before = self.champion()
        if before is not None and before.tokens == tokens:
            return before
        version = next((own for own in self.versions() if own.tokens == tokens), None)
        if version is None:
            previous = "" if before is None else str(before.number)
            self._create()
            own = {**tags, _TOKENS: tokens, _PREVIOUS: previous}
            version = _read(self.client.create_model_version(self.name, source, run_id, tags=own))
        self.client.set_registered_model_alias(self.name, CHAMPION, str(version.number))
        return version

    def roll_back(self) -> Version:
        """Give the alias back to the version whose place the champion took.

        Raises:
            ValueError: there is no champion, or none before it.
        """
        champion = self.champion()
        if champion is None or champion.previous is None:
            raise ValueError(f"{self.name} has no champion before the present one; nothing to go back to")
        self.client.set_registered_model_alias(self.name, CHAMPION, str(champion.previous))
        return _read(self.client.get_model_version(self.name, str(champion.previous)), is_champion=True)

    def _create(self) -> None:
        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _read(version: ModelVersion, is_champion: bool = False) -> Version:
    previous = version.tags.get(_PREVIOUS) or None
    return Version(int(version.version), version.tags[_TOKENS], int(previous) if previous else None, is_champion)
