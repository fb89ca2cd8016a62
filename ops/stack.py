"""Where the stack is: what `make deploy` was told is kept in samconfig.local.toml."""

import os
import pathlib
import shutil

from samcli.cli.types import CfnParameterOverridesType
from samcli.lib.config.samconfig import SamConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = "samconfig.local.toml"


class Stack:
    """The answers that are kept, beside the defaults of samconfig.toml."""

    def __init__(self):
        self._config = SamConfig(str(ROOT), FILE if (ROOT / FILE).exists() else "samconfig.toml")

    def _get(self, name, default=None):
        for command in (["deploy"], ["global"]):
            try:
                return self._config.get_all(command, "parameters", "default")[name]
            except KeyError:
                pass
        return default

    @property
    def name(self):
        return self._get("stack_name", "novi-bridge")

    @property
    def region(self):
        return self._get("region")

    @property
    def parameters(self):
        """The template's parameters as they were answered; none before the first deployment."""
        kept = self._get("parameter_overrides", "")
        return dict(CfnParameterOverridesType().convert(kept, None, None)) if kept else {}

    @property
    def is_new(self):
        """Whether nobody was asked yet: `make deploy` itself decides these two."""
        return set(self.parameters) <= {"Architecture", "ReserveConcurrency"}

    def remember(self, changes):
        if not (ROOT / FILE).exists():
            shutil.copy(ROOT / "samconfig.toml", ROOT / FILE)
        self._config = SamConfig(str(ROOT), FILE)
        kept = {**self.parameters, **changes}
        text = " ".join(f'{name}="{value}"' for name, value in kept.items())
        self._config.put(["deploy"], "parameters", "parameter_overrides", text, "default")
        self._config.flush()

    def environment(self):
        """What every program is started with that asks AWS: the stack's own region above all."""
        region = {"AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region} if self.region else {}
        return {**os.environ, **region, "SAM_CLI_TELEMETRY": "0"}
