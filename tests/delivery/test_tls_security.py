"""The contexts for connections to other servers, and what they keep in memory."""

from dataclasses import replace
from pathlib import Path

import pytest

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.delivery.attempt import DeliveryContext
from minismtp.delivery.tls_security import Contexts
from minismtp.hooks.loader import PluginSet
from minismtp.runtime.log import Log


def test_contexts_are_made_when_a_delivery_needs_them(tmp_path: Path) -> None:
    """They take 1.4 MB, and a server that only receives mail has no use for them."""
    config = replace(Config.embedded(), state_directory=tmp_path, plugins=[])
    contexts = DeliveryContext.of(config, PluginSet.load(config), Log()).setting.contexts
    assert not {"open", "verified"} & vars(contexts).keys()
    assert contexts.open is contexts.open
    assert contexts.verified is contexts.verified


def test_authorities_of_the_configuration_are_loaded_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no PEM\n")
    with pytest.raises(ConfigError, match=r"ca\.pem is no PEM file of certificates"):
        Contexts(tmp_path / "ca.pem")
