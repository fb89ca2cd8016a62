"""The deployed stack's name, region and parameters, which `make deploy` saves in samconfig.local.toml."""

import os
import pathlib
import shutil

from samcli.cli.types import CfnParameterOverridesType
from samcli.lib.config.samconfig import SamConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOCAL_CONFIG = "samconfig.local.toml"


class Stack:
    """The saved configuration, or the defaults of samconfig.toml if nothing has been saved."""

    def __init__(self):
        self._config = SamConfig(str(ROOT), LOCAL_CONFIG if (ROOT / LOCAL_CONFIG).exists() else "samconfig.toml")

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
        """The saved values of the template's parameters. Empty before the first deployment."""
        overrides = self._get("parameter_overrides", "")
        return dict(CfnParameterOverridesType().convert(overrides, None, None)) if overrides else {}

    @property
    def is_new(self):
        """True if `sam deploy --guided` has not run yet: `make deploy` sets these two parameters itself."""
        return set(self.parameters) <= {"Architecture", "ReserveConcurrency"}

    def save(self, changes):
        """Merges `changes` into the saved parameters."""
        if not (ROOT / LOCAL_CONFIG).exists():
            shutil.copy(ROOT / "samconfig.toml", ROOT / LOCAL_CONFIG)
        self._config = SamConfig(str(ROOT), LOCAL_CONFIG)
        parameters = {**self.parameters, **changes}
        text = " ".join(f'{name}="{value}"' for name, value in parameters.items())
        self._config.put(["deploy"], "parameters", "parameter_overrides", text, "default")
        self._config.flush()

    def environment(self):
        """The environment for every program that calls AWS. It sets the stack's region."""
        region = {"AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region} if self.region else {}
        return {**os.environ, **region, "SAM_CLI_TELEMETRY": "0"}
