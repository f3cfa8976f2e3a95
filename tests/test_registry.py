"""The champion, in a real MLflow store."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from softrepa_pipeline.registry import CHAMPION, Registry


@pytest.fixture
def registry(store: str, request: pytest.FixtureRequest) -> Registry:
    return Registry(f"tokens-{request.node.name}")


def test_before_the_first_promotion_there_is_no_champion(registry: Registry) -> None:
    assert registry.champion() is None
    assert registry.versions() == []
    with pytest.raises(ValueError, match="nothing to go back to"):
        registry.roll_back()


def test_a_promotion_moves_the_alias_and_a_rollback_moves_it_back(registry: Registry) -> None:
    first = registry.promote("/tokens/1", "/tokens/1", None, {"gain": "1"})
    second = registry.promote("/tokens/2", "/tokens/2", None, {"gain": "2"})
    champion = registry.champion()
    assert champion is not None
    assert (champion.number, champion.tokens, champion.previous) == (second.number, "/tokens/2", first.number)
    assert [(version.number, version.is_champion) for version in registry.versions()] == [(2, True), (1, False)]
    assert MlflowClient().get_model_version(registry.name, "2").tags["gain"] == "2"
    assert registry.roll_back().tokens == "/tokens/1"
    assert MlflowClient().get_model_version_by_alias(registry.name, CHAMPION).tags["gain"] == "1"
    with pytest.raises(ValueError, match="nothing to go back to"):
        registry.roll_back()


def test_promoting_the_same_tokens_again_makes_no_second_version(registry: Registry) -> None:
    registry.promote("/tokens/1", "/tokens/1", None, {})
    registry.promote("/tokens/1", "/tokens/1", None, {})
    assert len(registry.versions()) == 1


def test_a_crash_between_registration_and_promotion_leaves_the_champion_and_is_made_good(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote("/tokens/1", "/tokens/1", None, {})
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_registered_model_alias", _killed)
        with pytest.raises(KeyboardInterrupt):
            registry.promote("/tokens/2", "/tokens/2", None, {})
    champion = registry.champion()
    assert champion is not None
    assert champion.tokens == "/tokens/1"
    assert registry.promote("/tokens/2", "/tokens/2", None, {}).number == 2
    assert len(registry.versions()) == 2


def _killed(*_: object) -> None:
    raise KeyboardInterrupt
