"""Settings: what there is to set, how it is spelled, and where it is read from."""

from velollm.config.load import config_folder, find_config, load_settings
from velollm.config.options import Option, options
from velollm.config.settings import (
    BackendDefaults,
    BackendSettings,
    CacheSettings,
    EngineSettings,
    ModelSettings,
    ObservabilitySettings,
    RoutingSettings,
    SchedulingSettings,
    ServerSettings,
    Settings,
    ToolCallSettings,
)
from velollm.config.units import (
    AUTO,
    parse_concurrency,
    parse_seconds,
    parse_size,
    show_concurrency,
    show_seconds,
    show_size,
)

__all__ = [
    "AUTO",
    "BackendDefaults",
    "BackendSettings",
    "CacheSettings",
    "EngineSettings",
    "ModelSettings",
    "ObservabilitySettings",
    "Option",
    "RoutingSettings",
    "SchedulingSettings",
    "ServerSettings",
    "Settings",
    "ToolCallSettings",
    "config_folder",
    "find_config",
    "load_settings",
    "options",
    "parse_concurrency",
    "parse_seconds",
    "parse_size",
    "show_concurrency",
    "show_seconds",
    "show_size",
]
