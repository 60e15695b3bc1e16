"""What a tuning is: settings, each with its reasons, for one target on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import attrs

__all__ = ["Setting", "Target", "Tuning", "Workload"]

Target: TypeAlias = Literal["ollama", "llama-server", "velo"]


@attrs.frozen(kw_only=True)
class Setting:
    """One variable, flag or key: `why` it is set, the `memory` arithmetic where there is one, the expected `effect`."""

    name: str
    value: str
    why: str
    memory: str = ""
    effect: str = ""


@attrs.frozen(kw_only=True)
class Workload:
    """What the engine is for: how many clients at once, and the longest conversation in tokens (None: decide)."""

    clients: int = 4
    context: int | None = None


@attrs.frozen(kw_only=True)
class Tuning:
    """The settings for a target; `notes` say what was left out and why. `gain` is the measured factor, None before."""

    target: Target
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()
    model: str = ""
    version: str = ""
    gain: float | None = None

    @property
    def values(self) -> dict[str, str]:
        """The settings by name."""
        return {setting.name: setting.value for setting in self.settings}

    def with_values(self, values: Mapping[str, str], why: str) -> Tuning:
        """The same with other values: names that are new come last, with `why` as their reason."""
        known = self.values
        changed = [
            setting if values.get(setting.name, setting.value) == setting.value
            else attrs.evolve(setting, value=values[setting.name], why=f"{why}; {setting.why}")
            for setting in self.settings
        ]  # fmt: skip
        added = [Setting(name=name, value=value, why=why) for name, value in values.items() if name not in known]
        return attrs.evolve(self, settings=(*changed, *added))
